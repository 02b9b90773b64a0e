"""The verbs that show runs: `jaxlm info`, `plot` and `report`."""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from jaxlm.cli.ending import FAILED
from jaxlm.cli.parsing import some_path, whole
from jaxlm.cli.verbs import CHECKPOINT, DATA_DIR, RUN, argument, check_run, loaded, output, verb
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.fields import setting_text
from jaxlm.report.units import perplexity_text
from jaxlm.terminal import say, say_line

MOST_TIMING = 64 << 20  # bytes of timing.jsonl
Found = TypeVar("Found")


@verb(
    "show a run's results, config, corpus, checkpoints and problems",
    RUN,
    argument("--json", action="store_true", help="print JSON"),
    uses_jax=False,
)
def info(args: argparse.Namespace) -> int:
    check_run(args.run)
    found = contents(args.run)
    if args.json:
        from jaxlm.files import finite

        # DEL is the one control character that JSON leaves as it is.
        say(json.dumps(finite(found), indent=1, allow_nan=False).replace("\x7f", "\\u007f"))
    else:
        for line in _lines(found):
            say_line(line)
    return FAILED if found["problems"] else 0


@verb(
    "draw the learning curve and a map of the embedding",
    RUN,
    CHECKPOINT,
    argument(
        "--words", type=whole(1), default=400, metavar="N", help="words on the map, the most frequent (default 400)"
    ),
    argument("--method", default="tsne", choices=("tsne", "pca"), help="how the map is drawn (default tsne)"),
)
def plot(args: argparse.Namespace) -> None:
    lm = loaded(args.run, args.checkpoint)

    from jaxlm.report.curve import learning_curve
    from jaxlm.report.word_map import embedding_map
    from jaxlm.runs.metrics import read_metrics

    if rows := read_metrics(args.run):
        say_line(learning_curve(rows, args.run / "curve.png"))
    else:
        say("there is no learning curve: this run has trained no window")
    picture = args.run / "embedding.png"
    say_line(embedding_map(lm.params["embedding"], lm.vocab.words, picture, count=args.words, method=args.method))


@verb(
    "write a page of HTML about runs and sweeps",
    argument("runs", type=some_path, nargs="+", metavar="RUN", help="directories of runs and of sweeps"),
    output("the file to write (default: report.html in the one directory)"),
    argument(
        "--text", action="append", default=[], metavar="TEXT", help="colour this text by its surprisal; repeatable"
    ),
    CHECKPOINT,
    DATA_DIR,
)
def report(args: argparse.Namespace) -> None:
    for run in args.runs:
        if not run.is_dir():
            raise RunDirError(f"there is no directory {run}: name that of a run or a sweep")

    from jaxlm.sweeps.reporting import write_report

    say_line(write_report(args.runs, args.output, which=args.checkpoint, texts=args.text, data_dir=args.data_dir))


def contents(run: Path) -> dict[str, Any]:
    """What a run's directory holds.

    Args:
        run: the directory.

    Returns:
        run, preset, kinds, parameters (a count), seconds (of training), config (a list of section, field, value, unit
        and whether the value is the default), corpus, checkpoints, results and problems: a sentence for each file that
        is damaged. Perplexities may be infinite; what cannot be read is None.

    Raises:
        RunDirError: there is no run.
    """
    from jaxlm.runs import checkpoint, directory
    from jaxlm.runs.metrics import read_metrics

    config, problems = directory.saved_config(run), directory.problems(run)

    def read(part: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return part()
        except JaxlmError as error:
            problems.append(str(error))
            return otherwise

    manifests = checkpoint.manifests(run)
    labels = {"last": max(manifests, default=None), "best": checkpoint.best_step(manifests)}
    return {
        "run": str(run),
        "preset": config.preset,
        "kinds": config.kinds,
        "parameters": _parameters(run / checkpoint.FOLDER / f"{labels['last']:08d}" / checkpoint.STATE)
        if manifests
        else None,
        "seconds": _seconds(run),
        "config": [
            {
                "section": section,
                "field": name,
                "value": value,
                "unit": spec.unit,
                "default": value == type(getattr(config, section)).__dataclass_fields__[name].default,
            }
            for section, name, spec, value in config.every_field()
        ],
        "corpus": read(lambda: directory.saved_record(run)["corpus"], {}),
        "checkpoints": [
            {
                "step": step,
                "epoch": manifest.epoch,
                "valid_perplexity": manifest.valid_perplexity,
                "corpus": manifest.corpus.get("name"),
                "labels": [label for label, at in labels.items() if at == step],
            }
            for step, manifest in manifests.items()
        ],
        "results": read(lambda: [row for row in read_metrics(run) if row["kind"] != "window"], []),
        "problems": list(dict.fromkeys(problems)),
    }


def _parameters(path: Path) -> int | None:
    """How many parameters a checkpoint has, by the header of its arrays."""
    from safetensors import SafetensorError, safe_open

    from jaxlm import files

    with suppress(OSError, SafetensorError), files.reader(path), safe_open(path, "numpy") as arrays:
        names = [name for name in arrays.keys() if name.startswith("params.")]  # noqa: SIM118 (it is no mapping)
        return sum(math.prod(arrays.get_slice(name).get_shape()) for name in names)


def _seconds(run: Path) -> float | None:
    """Seconds that the run's epochs were trained; of an epoch that was trained twice the last time."""
    from jaxlm.files import read_bytes

    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        rows = [json.loads(line) for line in read_bytes(run / "timing.jsonl", MOST_TIMING).splitlines()]
        return sum({int(row["epoch"]): float(row["seconds"]) for row in rows}.values())


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield f"{found['run']} (preset {found['preset']}: {_text(found['kinds'])})"
    step = max((row["step"] for row in found["checkpoints"]), default=0)
    seconds = "" if found["seconds"] is None else f", {found['seconds']:,.1f} s"
    yield f"  {'unknown' if found['parameters'] is None else format(found['parameters'], ',')} parameters"
    yield f"  {step:,} windows trained{seconds}"
    kinds = dict.fromkeys(row["kind"] for row in found["results"])
    results = {
        f"perplexity of each {kind}": [_result(r) for r in found["results"] if r["kind"] == kind] for kind in kinds
    }
    checkpoints = [
        {"step": row["step"], "epoch": row["epoch"], "valid": row["valid_perplexity"], "": " ".join(row["labels"])}
        for row in found["checkpoints"]
    ]
    for title, lines in (
        *((title, _table(rows)) for title, rows in results.items()),
        ("checkpoints", _table(checkpoints)),
        (
            "corpus",
            _columns(
                (_words(name), _text(value)) for name, value in found["corpus"].items() if value not in ([], None)
            ),
        ),
        ("fields", _fields(found["config"], default=False)),
        ("fields at their defaults", _fields(found["config"], default=True)),
        ("problems", found["problems"]),
    ):
        lines = [*lines]
        yield ""
        yield title if lines else f"{title}: none"
        yield from (f"  {line}" for line in lines)


def _fields(rows: Iterable[Mapping[str, Any]], default: bool) -> Iterator[str]:
    return _columns(
        (row["field"], setting_text(row["value"]), row["unit"]) for row in rows if row["default"] == default
    )


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the metrics, its perplexities as they are printed elsewhere."""
    return {
        name.removesuffix("_perplexity"): perplexity_text(value)
        if re.search("perplexity|floor", name) and isinstance(value, float)
        else value
        for name, value in row.items()
        if name not in ("kind", "preset", "corpus")
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of names and a line for each row."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    return _columns(
        [[*map(_words, names)], *([_text(row.get(name)) for name in names] for row in rows)] if rows else [], ">"
    )


def _columns(rows: Iterable[Sequence[str]], side: str = "<") -> Iterator[str]:
    """Lines whose columns are as wide as they must be, of at most 40 characters before the last."""
    rows = [*rows]
    widths = [min(max(map(len, column)), 40) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{side}{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    """A value in a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
