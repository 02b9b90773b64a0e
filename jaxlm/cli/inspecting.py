"""The verbs that show runs, or write them for others: `jaxlm info`, `plot`, `report` and `export`."""

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.cli.ending import FAILED
from jaxlm.cli.parsing import whole
from jaxlm.cli.tables import json_text
from jaxlm.cli.verbs import (
    CHECKPOINT,
    DATA_DIR,
    JSON,
    MODEL,
    RUN,
    argument,
    check_run,
    loaded,
    output,
    pathname,
    verb,
)
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.fields import setting_text
from jaxlm.terminal import say, say_line
from jaxlm.units import perplexity_text

TARGETS = (
    "safetensors",
    "onnx",
    "stablehlo",
    "hub",
)  # (whose code imports JAX: too slow for --help)
TARGET = "safetensors (a PyTorch state_dict), hub (a folder with a model card), onnx or stablehlo"


def _target(name: str) -> str:
    """The type of `--to`."""
    if name == "torch":
        raise argparse.ArgumentTypeError(
            "torch is gone: --to safetensors writes the same state_dict, "
            "for safetensors.torch.load_file"
        )
    return name


@verb("show a run's results, config, corpus, checkpoints and problems", RUN, JSON, uses_jax=False)
def info(args: argparse.Namespace) -> int:
    check_run(args.run)
    found = contents(args.run)
    if args.json:
        say(json_text(found, indent=1))
    else:
        for line in _lines(found):
            say_line(line)
    if found["problems"]:
        return FAILED
    return 0


@verb(
    "draw the learning curve and a map of the embedding",
    *MODEL,
    argument(
        "--words",
        type=whole(1),
        default=400,
        metavar="N",
        help="most frequent words on the map (default 400)",
    ),
    argument(
        "--method",
        default="tsne",
        choices=("tsne", "pca"),
        help="how the map is drawn (default tsne)",
    ),
)
def plot(args: argparse.Namespace) -> None:
    lm = loaded(args.run, args.checkpoint)

    from jaxlm.report.curve import learning_curve
    from jaxlm.report.word_map import embedding_map
    from jaxlm.runs.metrics import read_metrics

    rows = read_metrics(args.run)
    if any(row["kind"] == "epoch" for row in rows):
        say_line(learning_curve(rows, lm.config.train.bptt_length, args.run / "curve.png"))
    else:
        say("there is no learning curve: no epoch has ended")
    picture = args.run / "embedding.png"
    say_line(
        embedding_map(
            lm.params["embedding"], lm.vocab.words, picture, count=args.words, method=args.method
        )
    )


@verb(
    "write a page of HTML about runs and sweeps",
    pathname("runs", "RUN", "directories of runs and of sweeps", nargs="+"),
    output("the file to write (default: report.html in the one directory)"),
    argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        help="colour a text by its surprisal; repeatable",
    ),
    CHECKPOINT,
    DATA_DIR,
)
def report(args: argparse.Namespace) -> None:
    for run in args.runs:
        if not run.is_dir():
            raise RunDirError(f"there is no directory {run}: name that of a run or a sweep")

    from jaxlm.sweeps.report_file import write_report

    say_line(
        write_report(
            args.runs, args.output, which=args.checkpoint, texts=args.text, data_dir=args.data_dir
        )
    )


@verb(
    "write a run's model for another program",
    *MODEL,
    argument("--to", type=_target, choices=TARGETS, required=True, metavar="TARGET", help=TARGET),
    output("the file or folder to make", required=True),
)
def export(args: argparse.Namespace) -> None:
    check_run(args.run)

    from jaxlm.interop.exporting import export_model

    for note in export_model(args.run, args.to, args.output, args.checkpoint):
        say_line(note)
    say_line(f"exported to {args.output}")


def contents(run: Path) -> dict[str, Any]:
    """What a run's directory holds; a problem is a sentence for each file that is damaged.

    Perplexities may be infinite; what cannot be read is None. Raises RunDirError where there is no run.
    """
    from jaxlm.runs import checkpoint, directory
    from jaxlm.runs.metrics import read_metrics, read_timing

    config = directory.saved_config(run)
    problems = directory.problems(run)
    timing = read_timing(run)
    corpus = {}
    results = []
    manifests = checkpoint.manifests(run)
    with suppress(JaxlmError):  # (`problems` names it)
        corpus = directory.saved_record(run)["corpus"]
        results = [row for row in read_metrics(run) if row["kind"] != "window"]
    last = max(manifests, default=0)
    best = checkpoint.best_step(manifests)
    fields = []
    for section, name, spec, value in config.every_field():
        default = value == type(getattr(config, section)).__dataclass_fields__[name].default
        fields.append(
            {
                "section": section,
                "field": name,
                "value": value,
                "unit": spec.unit,
                "default": default,
            }
        )
    checkpoints = []
    for step, manifest in manifests.items():
        known = {
            "step": step,
            "epoch": manifest.epoch,
            "valid_perplexity": manifest.valid_perplexity,
        }
        labels = [label for label, at in (("last", last), ("best", best)) if at == step]
        checkpoints.append({**known, "corpus": manifest.corpus.get("name"), "labels": labels})
    return {
        "run": str(run),
        "preset": config.preset,
        "kinds": config.kinds,
        "parameters": _parameters(run / checkpoint.FOLDER / f"{last:08d}" / checkpoint.STATE),
        "seconds": sum(row["seconds"] for row in timing.values()) if timing else None,
        "config": fields,
        "corpus": corpus,
        "checkpoints": checkpoints,
        "results": results,
        "problems": problems,
    }


def _parameters(path: Path) -> int | None:
    """How many parameters a checkpoint has, by the header of its arrays."""
    from safetensors import SafetensorError, safe_open

    from jaxlm.files import Folder

    with suppress(OSError, SafetensorError), Folder.open(path.parent, follow=False) as folder:
        folder.reader(path.name).close()  # (a regular file, and no link)
        with safe_open(path, "numpy") as arrays:
            names = [name for name in arrays.keys() if name.startswith("params.")]  # noqa: SIM118 (it is no mapping)
            return sum(math.prod(arrays.get_slice(name).get_shape()) for name in names)


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables, those that a user looks for first."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in found["results"]:
        shown = {
            name: value for name, value in row.items() if name not in ("kind", "preset", "corpus")
        }
        tables.setdefault(f"perplexity of each {row['kind']}", []).append(shown)
    tables["checkpoints"] = [
        {**row, "labels": " ".join(row["labels"])} for row in found["checkpoints"]
    ]
    corpus = {name: value for name, value in found["corpus"].items() if value not in ([], None)}
    tables["corpus"] = [{"part": name, "value": value} for name, value in corpus.items()]
    tables |= {"fields": [], "fields at their defaults": []}
    for row in found["config"]:
        shown = {"field": row["field"], "value": setting_text(row["value"]), "unit": row["unit"]}
        tables["fields at their defaults" if row["default"] else "fields"].append(shown)
    parameters = "unknown" if found["parameters"] is None else f"{found['parameters']:,}"
    seconds = "" if found["seconds"] is None else f", {found['seconds']:,.1f} s"
    yield f"{found['run']} (preset {found['preset']}: {_text(found['kinds'])})"
    yield f"  {parameters} parameters"
    yield f"  {max((row['step'] for row in found['checkpoints']), default=0):,} windows trained{seconds}"
    shown = {title: [*_table(rows)] for title, rows in tables.items()}
    for title, lines in {**shown, "problems": found["problems"]}.items():
        yield ""
        yield title if lines else f"{title}: none"
        yield from (f"  {line}" for line in lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of names and a line for each row; numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [
        [
            re.sub("(?<!word)_perplexity$", "", name).replace("_", " "),
            *(_text(row.get(name), name) for row in rows),
        ]
        for name in names
    ]
    sides = [
        ">" if any(isinstance(row.get(name), int | float) for row in rows) else "<"
        for name in names
    ]
    widths = [min(max(map(len, column)), 40) for column in columns]
    for cells in zip(*columns, strict=True):
        line = (
            f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)
        )
        yield "  ".join(line).rstrip()


def _text(value: Any, name: str = "") -> str:
    """A value in a table; `name` is its column's."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float):
        if re.search("perplexity|floor", name):
            return perplexity_text(value)
        return f"{value:.6g}"
    if value is None:
        return ""
    return str(value)
