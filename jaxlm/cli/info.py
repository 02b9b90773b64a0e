"""`jaxlm info`: what a run's directory holds, as tables or JSON."""

import argparse
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import setting_text
from jaxlm.base.files import Folder
from jaxlm.base.terminal import is_terminal, say, say_line
from jaxlm.base.units import measure_name, measured, perplexity_text
from jaxlm.cli.arguments import JSON, RUN, command, switch
from jaxlm.cli.ending import FAILED
from jaxlm.cli.opening import check_run, open_model
from jaxlm.cli.tables import json_text
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.metrics import read_metrics, read_timing

_Row = dict[str, Any]  # a row of a table: column -> value
_PERPLEXITY = "(?<!word)_perplexity$"  # of tokens, in a column's name


@command(RUN, JSON, switch("--all", "show the fields at their defaults too"))
def info(args: argparse.Namespace) -> int:
    """Shows a run's results, config, corpus, checkpoints and problems."""
    check_run(args.run)
    if is_ngram_folder(args.run):
        say_line(repr(open_model(args.run, "last")))
        return 0
    contents = contents_of_run(args.run)
    if args.json:
        say(json_text(contents, indent=1))
    else:
        width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else sys.maxsize
        for line in _lines(contents, width, defaults=args.all):
            say_line(line)
    return FAILED if contents["problems"] else 0


def contents_of_run(run: Path) -> dict[str, Any]:
    """Reads what a run's directory holds.

    Args:
        run: The directory.

    Returns:
        A tree for JSON. A problem is a sentence for each file that is damaged; what cannot be read
        is None. Perplexities may be infinite.

    Raises:
        RunDirError: There is no run.
    """
    config = directory.saved_config(run)
    timing = read_timing(run)
    manifests = checkpoint.manifests(run)
    corpus = {}
    results = []
    with suppress(JaxlmError):  # `problems` names it.
        corpus = directory.saved_record(run)["corpus"]
        results = [row for row in read_metrics(run) if row["kind"] in ("epoch", "test")]
    fields = []
    for section, name, spec, value in config.every_field():
        default = type(getattr(config, section)).__dataclass_fields__[name].default
        fields.append(
            {
                "section": section,
                "field": name,
                "value": value,
                "unit": spec.unit,
                "default": value == default,
            }
        )
    last = max(manifests, default=0)
    labelled = {"last": last, "best": checkpoint.best_step(manifests)}
    checkpoints = []
    for step, manifest in manifests.items():
        checkpoints.append(
            {
                "step": step,
                "epoch": manifest.epoch,
                "valid_perplexity": manifest.valid_perplexity,
                "corpus": manifest.corpus.get("name"),
                "labels": [label for label, at in labelled.items() if at == step],
            }
        )
    return {
        "run": str(run),
        "preset": config.preset,
        "title": config.title,
        "tokens": config.data.tokens,
        "kinds": config.kinds,
        "parameters": _parameters(run / checkpoint.FOLDER / f"{last:08d}" / checkpoint.STATE),
        "seconds": sum(row["seconds"] for row in timing.values()) if timing else None,
        "config": fields,
        "corpus": corpus,
        "checkpoints": checkpoints,
        "results": results,
        "problems": directory.problems(run),
    }


def _parameters(path: Path) -> int | None:
    """How many parameters a checkpoint has, by its arrays' header; None where it cannot be read."""
    with suppress(OSError, SafetensorError), Folder.open(path.parent, follow=False) as folder:
        folder.reader(path.name).close()  # It is a regular file, and no link.
        with safe_open(path, "numpy") as arrays:
            names = [name for name in arrays.keys() if name.startswith("params.")]  # noqa: SIM118 (no mapping)
            return sum(math.prod(arrays.get_slice(name).get_shape()) for name in names)
    return None


def _lines(
    contents: Mapping[str, Any],
    width: int,
    *,
    defaults: bool,
) -> Iterator[str]:
    """The tables, those that a user looks for first; no line is longer than `width`."""
    trained = (
        f"{max((row['step'] for row in contents['checkpoints']), default=0):,} windows trained"
    )
    if contents["seconds"] is not None:
        trained += f", {contents['seconds']:,.1f} s"
    parameters = "unknown"
    if contents["parameters"] is not None:
        parameters = f"{contents['parameters']:,}"
    head = f"{contents['run']} (preset {contents['title']}: {_text(contents['kinds'])})"
    yield from textwrap.wrap(head, width, subsequent_indent="  ", break_on_hyphens=False)
    yield f"  {parameters} parameters"
    yield f"  {trained}"
    for title, rows in _tables(contents).items():
        lines = [f"  {line}" for line in _table(rows, width - 2)]
        yield ""
        if title == "fields at their defaults" and lines and not defaults:
            yield f"{len(rows)} fields at their defaults (--all)"
        else:
            yield title if lines else f"{title}: none"
            yield from lines
    yield ""
    yield "problems" if contents["problems"] else "problems: none"
    for problem in contents["problems"]:
        yield f"  {problem}"


def _tables(contents: Mapping[str, Any]) -> dict[str, list[_Row]]:
    """The rows of each table, by its title; results in the measure of the run's tokens."""
    tokens = contents["tokens"]
    measure = measure_name(tokens)
    tables: dict[str, list[_Row]] = {}
    for result in contents["results"]:
        row = {name: result[name] for name in result if name not in ("kind", "preset", "corpus")}
        title = f"{measure} of each {result['kind']}"
        tables.setdefault(title, []).append(_in_measure(row, tokens))
    tables["checkpoints"] = [
        _in_measure({**row, "labels": " ".join(row["labels"])}, tokens)
        for row in contents["checkpoints"]
    ]
    tables["corpus"] = [
        {"part": name, "value": value}
        for name, value in contents["corpus"].items()
        if value not in ([], None)
    ]
    tables["fields"] = []
    tables["fields at their defaults"] = []
    for field in contents["config"]:
        row = {
            "field": field["field"],
            "value": setting_text(field["value"]),
            "unit": field["unit"],
        }
        tables["fields at their defaults" if field["default"] else "fields"].append(row)
    return tables


def _in_measure(row: _Row, tokens: str) -> _Row:
    """A row with its perplexities in the measure of the tokens, such as bits per character."""
    if measure_name(tokens) == "perplexity":
        return row
    shown = {}
    for name, value in row.items():
        if re.search(f"{_PERPLEXITY}|^floor_", name) and isinstance(value, int | float):
            value = measured(value, tokens)
        # The name loses its ending, by which `_text` would know a perplexity.
        shown[re.sub(_PERPLEXITY, "", name)] = value
    return shown


def _table(rows: Sequence[_Row], width: int) -> Iterator[str]:
    """A line of names and a line for each row, numbers to the right.

    Columns that do not fit into `width` follow below, after the first column again. A long text
    continues under itself.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column(name, rows) for name in names]
    while columns:
        first = columns.pop(0)
        fitting = [first]
        while columns:
            widths = [len(cells[0]) + 2 for cells in (*fitting, columns[0])]
            # At least two columns stand side by side.
            if len(fitting) > 1 and sum(widths) - 2 > width:
                break
            fitting.append(columns.pop(0))
        indent = " " * sum(len(cells[0]) + 2 for cells in fitting[:-1])
        for row in zip(*fitting, strict=True):
            line = "  ".join(row).rstrip()
            yield from textwrap.wrap(
                line, width, subsequent_indent=indent, break_on_hyphens=False
            ) or [line]
        if columns:
            columns.insert(0, first)


def _column(name: str, rows: Sequence[_Row]) -> list[str]:
    """A column's name and cells, padded to one width."""
    title = re.sub(_PERPLEXITY, "", name).replace("_", " ")
    cells = [title, *(_text(row.get(name), name) for row in rows)]
    width = min(max(map(len, cells)), 40)
    if any(isinstance(row.get(name), int | float) for row in rows):
        return [cell.rjust(width) for cell in cells]
    return [cell.ljust(width) for cell in cells]


def _text(value: Any, name: str = "") -> str:
    """A value in a table; `name` is its column's."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float) and re.search("perplexity|floor", name):
        return perplexity_text(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
