"""Train a run again from what its directory holds, and compare every byte that it promises."""

import math
import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxlm.base.errors import JaxlmError
from jaxlm.config.config import Config, different
from jaxlm.data.corpus import Corpus
from jaxlm.runs import checkpoint, directory, state_arrays
from jaxlm.runs.checkpoint import Checkpoint, Manifest
from jaxlm.runs.metrics import read_metrics, read_prefix
from jaxlm.runs.trainer import train
from jaxlm.runs.training_corpus import with_corpus


@dataclass(frozen=True)
class Reproduction:
    """How a run and its repetition differ. Expected: not at all, on one machine with one thread."""

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
    """Trains the run of a directory anew, up to its last checkpoint.

    XLA's flags are compared and not set, since a stranger may have written them.

    Args:
        run_dir: The run's directory.
        again: The new run's directory (default: RUN-again, beside it).
        data_dir: Where to look for Penn Treebank first.
        quiet: Print nothing.

    Returns:
        What differs.

    Raises:
        JaxlmError: The run cannot be trained again: its parameters were given, its corpus has
            changed, or its last checkpoint or its metrics are damaged.
    """
    run_dir = Path(run_dir)
    again = Path(again or f"{os.path.abspath(run_dir)}-again")
    record = directory.saved_record(run_dir)
    saved = checkpoint.load(run_dir, part=state_arrays.nothing)
    if not directory.drew_params(run_dir):
        raise JaxlmError(
            f"{run_dir} did not begin from its seed alone: parameters were given, and only their "
            "owner can train it again"
        )
    config, corpus = _same_corpus(saved, run_dir, data_dir)
    read_prefix(run_dir, saved.manifest.metrics)  # raises where the metrics are damaged
    windows = [row for row in read_metrics(run_dir) if row["kind"] == "window"]
    if not all(math.isfinite(row["cost"]) and math.isfinite(row["grad_norm"]) for row in windows):
        config = config.replace(on_nonfinite="skip")  # as before it was told to stop
    devices = (1, 1)
    match record["sessions"][0].get("devices"):
        case [int(rows), int(words)]:
            devices = (rows, words)
    result = train(
        config,
        corpus,
        again,
        steps=saved.manifest.step,
        quiet=quiet,
        devices=devices[0],
        model_devices=devices[1],
    )
    this_session = _flat(directory.session(devices))
    surroundings: list[str] = []
    for session in record["sessions"]:
        for sentence in different(_flat(session), this_session):
            if sentence not in surroundings:
                surroundings.append(sentence)
    results = []
    if result.stopped_by is None:
        results = _differences(run_dir, saved.manifest, again)
    return Reproduction(again, results, surroundings, result.stopped_by)


def _same_corpus(
    saved: Checkpoint,
    run_dir: Path,
    data_dir: str | Path | None,
) -> tuple[Config, Corpus]:
    """The run's config and corpus. Raises JaxlmError where the corpus is another one now."""
    # The vocabulary has the pieces of a tokenizer's file, which is not needed again.
    vocab = saved.vocab if saved.config.data.tokenizer_file else None
    config, corpus = with_corpus(saved.config, None, data_dir, vocab)
    changed = different(saved.manifest.corpus, corpus.identity)
    if changed:
        raise JaxlmError(
            f"{run_dir} was trained on another corpus than is found here ({'; '.join(changed)}): "
            "put its text back, or name Penn Treebank's folder with --data-dir"
        )
    return config, corpus


def _differences(
    run_dir: Path,
    old: Manifest,
    again: Path,
) -> list[str]:
    """A sentence for each result of a run's last checkpoint that differs from its repetition's."""
    new = checkpoint.load(again, part=state_arrays.nothing).manifest
    sentences = []
    if old.metrics != new.metrics:
        lines, new_lines = (
            read_prefix(folder, manifest.metrics).decode(errors="replace").splitlines()
            for folder, manifest in ((run_dir, old), (again, new))
        )
        pairs = zip_longest(lines, new_lines, fillvalue="(no line)")
        for number, (line, new_line) in enumerate(pairs, 1):
            if line != new_line:
                sentences.append(
                    f"metrics.jsonl differs first in line {number}: {line} -> {new_line}"
                )
                break
    for name in (checkpoint.STATE, "vocab.json"):
        if old.files[name] != new.files[name]:
            sentences.append(f"{name} of the last checkpoint differs")
    tests = _tests(run_dir)
    new_tests = _tests(again)[: len(tests)]  # a sweep's member is tested once
    # As texts: nan, as per word of a text without words, is not equal to nan.
    if str(tests) != str(new_tests):
        sentences.append(f"the test's results differ: {tests} -> {new_tests}")
    return sentences


def _tests(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run_dir) if row["kind"] == "test"]


def _flat(session: dict[str, Any]) -> dict[str, str]:
    """A session's versions, platform, devices and flags by name; its command is left out."""
    flat = {}
    for name in ("versions", "platform"):
        table = session.get(name)
        if isinstance(table, dict):
            flat.update({key: str(value) for key, value in table.items()})
    flat["spread over"] = str(session.get("devices", [1, 1]))
    flat["xla_flags"] = str(session.get("xla_flags"))
    return flat
