"""`jaxlm info`: what a run's directory holds, as a table or as JSON."""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.cli.ending import FAILED
from jaxlm.cli.parsing import shown
from jaxlm.cli.verbs import RUN, argument, check_run, verb
from jaxlm.config.config import KINDS, Config
from jaxlm.errors import JaxlmError
from jaxlm.terminal import printable, say


@verb("what a run holds: its config, corpus, results, checkpoints and problems", RUN,
      argument("--json", action="store_true", help="print JSON"), uses_jax=False)
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

    from jaxlm.report.metrics import read_metrics
    from jaxlm.runs import directory

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
    return {"run": str(run), "preset": config.preset, "kinds": config.kinds, "config": _fields(config),
            "corpus": corpus, "checkpoints": _checkpoints(run), "results": results,
            "problems": list(dict.fromkeys(problems))}


def _fields(config: Config) -> list[dict[str, Any]]:
    return [{"section": section, "field": name, "value": value, "unit": spec.unit}
            for section, name, spec, value in config.every_field()]


def _checkpoints(run: Path) -> list[dict[str, Any]]:
    from jaxlm.runs import checkpoint

    found = checkpoint.manifests(run)
    best = checkpoint.best_step(found)
    return [{"step": step, "epoch": manifest.epoch, "valid_perplexity": manifest.valid_perplexity,
             "corpus": manifest.corpus.get("name"),
             "labels": [label for label, at in (("last", max(found)), ("best", best)) if at == step]}
            for step, manifest in found.items()]


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The table."""
    yield f"{found['run']} (preset {found['preset']})"
    width = max(len(row["field"]) for row in found["config"])
    wide = min(20, max(len(shown(row["value"])) for row in found["config"]))
    section = None
    for row in found["config"]:
        if row["section"] != section:
            section = row["section"]
            yield ""
            yield f"{section} {found['kinds'][section]}" if section in KINDS else section
        yield f"  {row['field']:<{width}}  {shown(row['value']):<{wide}}  {row['unit']}".rstrip()
    for title, rows in (("corpus", map(_pair, found["corpus"].items())), ("checkpoints", _rows(found["checkpoints"])),
                        ("results", _rows(found["results"])), ("problems", found["problems"])):
        lines = list(rows)
        yield ""
        yield title if lines else f"{title}: none"
        yield from (f"  {line}" for line in lines)


def _rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        pairs = {name: value for name, value in row.items()
                 if name not in ("kind", "labels", "preset") and value is not None}
        yield "  ".join([*filter(None, [row.get("kind")]), *map(_pair, pairs.items()), *row.get("labels", ())])


def _pair(pair: tuple[str, Any]) -> str:
    name, value = pair
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {one}" for key, one in value.items())
    elif isinstance(value, list):
        value = "; ".join(map(str, value)) or "none"
    return f"{name.replace('_', ' ')} {value:.6g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def _finite(value: Any) -> Any:
    """The same, with "inf", "-inf" and "nan" for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
