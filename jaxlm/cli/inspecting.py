"""`jaxlm info`: what a run's directory holds, as a table or as JSON."""

import argparse
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxlm.cli.ending import FAILED
from jaxlm.cli.verbs import RUN, argument, check_run, verb
from jaxlm.config.config import KINDS, Config
from jaxlm.config.fields import setting_text
from jaxlm.errors import JaxlmError
from jaxlm.report.units import perplexity_text
from jaxlm.terminal import printable, say

_PERPLEXITY = re.compile("perplexity|floor")


@verb(
    "show a run's results, config, corpus, checkpoints and problems",
    RUN,
    argument("--json", action="store_true", help="print JSON"),
    uses_jax=False,
)
def info(args: argparse.Namespace) -> int:
    found = contents(args.run)
    if args.json:
        # DEL is the one control character that JSON leaves as it is.
        say(json.dumps(_finite(found), indent=1, allow_nan=False).replace("\x7f", "\\u007f"))
    else:
        for line in _lines(found):
            say(printable(line))
    return FAILED if found["problems"] else 0


def contents(run: Path) -> dict[str, Any]:
    """What is in a run's directory.

    Args:
        run: the directory.

    Returns:
        run, preset, kinds, config (a list of section, field, value and unit), corpus, checkpoints, results and
        problems: a sentence for each file that is damaged. Perplexities may be infinite.

    Raises:
        RunDirError: there is no run.
    """
    check_run(run)

    from jaxlm.runs import directory
    from jaxlm.runs.metrics import read_metrics

    config = directory.saved_config(run)
    problems = directory.problems(run)
    try:
        corpus: Mapping[str, Any] = directory.saved_record(run)["corpus"]
    except JaxlmError as error:
        corpus = {}
        problems.append(str(error))
    try:
        results = [row for row in read_metrics(run) if row["kind"] != "window"]
    except JaxlmError as error:
        results = []
        problems.append(str(error))
    return {
        "run": str(run),
        "preset": config.preset,
        "kinds": config.kinds,
        "config": _fields(config),
        "corpus": corpus,
        "checkpoints": _checkpoints(run),
        "results": results,
        "problems": list(dict.fromkeys(problems)),
    }


def _fields(config: Config) -> list[dict[str, Any]]:
    return [
        {"section": section, "field": name, "value": value, "unit": spec.unit}
        for section, name, spec, value in config.every_field()
    ]


def _checkpoints(run: Path) -> list[dict[str, Any]]:
    from jaxlm.runs import checkpoint

    found = checkpoint.manifests(run)
    best = checkpoint.best_step(found)
    return [
        {
            "step": step,
            "epoch": manifest.epoch,
            "valid_perplexity": manifest.valid_perplexity,
            "corpus": manifest.corpus.get("name"),
            "labels": [label for label, at in (("last", max(found)), ("best", best)) if at == step],
        }
        for step, manifest in found.items()
    ]


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The table."""
    yield f"{found['run']} (preset {found['preset']})"
    width = max(len(row["field"]) for row in found["config"])
    wide = min(20, max(len(setting_text(row["value"])) for row in found["config"]))
    section = None
    for row in found["config"]:
        if row["section"] != section:
            section = row["section"]
            yield ""
            yield f"{section} {found['kinds'][section]}" if section in KINDS else section
        yield f"  {row['field']:<{width}}  {setting_text(row['value']):<{wide}}  {row['unit']}".rstrip()
    for title, lines in (
        ("corpus", _corpus(found["corpus"])),
        ("checkpoints", _checkpoint_table(found["checkpoints"])),
        ("results", _results(found["results"])),
        ("problems", found["problems"]),
    ):
        lines = [*lines]
        yield ""
        yield title if lines else f"{title}: none"
        yield from (f"  {line}" for line in lines)


def _corpus(corpus: Mapping[str, Any]) -> Iterator[str]:
    values = {_words(name): _text(value) for name, value in corpus.items() if value not in ([], None)}
    width = max(map(len, values), default=0)
    room = shutil.get_terminal_size().columns - width - 4 if sys.stdout and sys.stdout.isatty() else 10**6
    for name, value in values.items():
        for start, line in zip_longest([name], textwrap.wrap(value, max(room, 40)), fillvalue=""):
            yield f"{start:<{width}}  {line}"


def _checkpoint_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return _table(
        [
            {
                "step": row["step"],
                "epoch": row["epoch"],
                "valid perplexity": row["valid_perplexity"],
                "": " ".join(row["labels"]),
            }
            for row in rows
        ]
    )


def _results(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for kind in dict.fromkeys(row["kind"] for row in rows):
        yield f"perplexity of each {kind}"
        for line in _table(
            [
                {
                    name.removesuffix("_perplexity"): _result(name, value)
                    for name, value in row.items()
                    if name not in ("kind", "preset", "corpus")
                }
                for row in rows
                if row["kind"] == kind
            ]
        ):
            yield f"  {line}"


def _result(name: str, value: Any) -> Any:
    return perplexity_text(value) if _PERPLEXITY.search(name) and isinstance(value, float) else value


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of names and a line for each row, in columns that are as wide as they must be."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    cells = [[_words(name) for name in names], *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells if rows else ():
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    """A value in the table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """The same, with "inf", "-inf" and "nan" for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
