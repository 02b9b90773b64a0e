"""Train a run again from what its directory holds, and compare every byte that it promises."""

import math
import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from jaxlm.errors import JaxlmError
from jaxlm.runs import checkpoint
from jaxlm.runs import directory as rundir
from jaxlm.runs.metrics import read_metrics, read_prefix
from jaxlm.runs.trainer import train, with_corpus


@dataclass(frozen=True)
class Reproduction:
    """How a run and its repetition differ: not at all on one machine, with equal versions and one thread."""

    run_dir: Path  # of the new run
    results: list[str]  # a sentence for each file and result that differs
    surroundings: list[str]  # versions, platform and flags that differ
    stopped_by: int | None = None  # the signal that ended it before there was anything to compare


def reproduce(
    run_dir: str | Path,
    again: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    quiet: bool = False,
) -> Reproduction:
    """Trains the run of a directory anew, up to its last checkpoint, into `again` (default: RUN-again).

    Args:
        data_dir: where its corpus is.
    Returns:
        What differs. (Flags of XLA are compared and not set: a stranger may have written them.)
    Raises:
        JaxlmError: the run cannot be trained again: its parameters were given, its corpus has changed, or its last
            checkpoint or its metrics are damaged.
    """
    run_dir = Path(run_dir)
    again = Path(again or f"{os.path.abspath(run_dir)}-again")  # (beside it, also of ".")
    record = rundir.saved_record(run_dir)
    found = checkpoint.load(run_dir)
    old = found.manifest
    config = found.config
    vocab = found.vocab if found.config.data.tokenizer_file else None
    del found  # its state would stay in memory while the run is trained again
    if record.get("params") != rundir.DRAWN:
        why = "parameters were given, and only their owner can train it again"
        raise JaxlmError(f"{run_dir} did not begin from its seed alone: {why}")
    config, corpus = with_corpus(
        config, None, data_dir, vocab
    )  # (a tokenizer's file is not needed again)
    changed = rundir.different(old.corpus, rundir.named(corpus))
    if changed:
        remedy = "put its text back, or name Penn Treebank's folder with --data-dir"
        raise JaxlmError(
            f"{run_dir} was trained on another corpus than is found here ({'; '.join(changed)}): {remedy}"
        )
    read_prefix(
        run_dir, old.metrics
    )  # raises before hours of training where the metrics are damaged
    windows = (row for row in read_metrics(run_dir) if row["kind"] == "window")
    if not all(math.isfinite(row["cost"]) and math.isfinite(row["grad_norm"]) for row in windows):
        config = config.replace(on_nonfinite="skip")  # (as the run did before it was told to stop)
    match record["sessions"][0].get("devices"):
        case [int(rows), int(words)]:
            pass
        case _:
            rows = words = 1
    result = train(
        config, corpus, again, steps=old.step, quiet=quiet, devices=rows, model_devices=words
    )
    now = _flat(rundir.session((rows, words)))
    lines = [
        line for session in record["sessions"] for line in rundir.different(_flat(session), now)
    ]
    surroundings = list(dict.fromkeys(lines))
    results = _differences(run_dir, old, again) if result.stopped_by is None else []
    return Reproduction(again, results, surroundings, result.stopped_by)


def _differences(run_dir: Path, old: checkpoint.Manifest, again: Path) -> list[str]:
    new = checkpoint.load(again).manifest
    files = old.files, new.files
    same = (checkpoint.STATE, "vocab.json")
    found = [
        f"{name} of the last checkpoint differs"
        for name in same
        if files[0][name] != files[1][name]
    ]
    if old.metrics != new.metrics:
        sealed = read_prefix(run_dir, old.metrics), read_prefix(again, new.metrics)
        lines = [data.decode(errors="replace").splitlines() for data in sealed]
        for number, (was, now) in enumerate(zip_longest(*lines, fillvalue="(no line)"), 1):
            if was != now:
                found.insert(0, f"metrics.jsonl differs first in line {number}: {was} -> {now}")
                break
    tests = [
        [row for row in read_metrics(folder) if row["kind"] == "test"]
        for folder in (run_dir, again)
    ]
    again_tested = tests[1][: len(tests[0])]  # (a sweep's member is tested once)
    if str(tests[0]) != str(
        again_tested
    ):  # (nan, as per word of a text without words, is not itself)
        found.append(f"the test's results differ: {tests[0]} -> {again_tested}")
    return found


def _flat(session: dict) -> dict[str, str]:
    """A session's versions, platform, devices and flags under one name each; its command aside."""
    tables = {name: session.get(name) for name in ("versions", "platform")}
    flat = {
        key: str(value)
        for table in tables.values()
        if isinstance(table, dict)
        for key, value in table.items()
    }
    return {
        **flat,
        "spread over": str(session.get("devices", [1, 1])),
        "xla_flags": str(session.get("xla_flags")),
    }
