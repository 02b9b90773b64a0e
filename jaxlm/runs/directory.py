"""A run directory: what it holds of its run, how a run begins in it and how it is resumed.

    RUN/  config.json  run.json  metrics.jsonl  timing.jsonl  curve.png  checkpoints/

`config.json` is written last: from then on the directory holds a run, and is resumed; before, one
begins in it. The vocabulary is in each checkpoint.
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax

from jaxlm.base.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.hashed_json import from_hashed_json, strict_json, to_hashed_json
from jaxlm.base.terminal import without_password
from jaxlm.config.config import Config, conflicts, different
from jaxlm.data.corpus import Corpus
from jaxlm.runs import checkpoint, state_arrays
from jaxlm.runs.checkpoint import Checkpoint, library_versions
from jaxlm.runs.lock import ELSEWHERE, holder
from jaxlm.runs.metrics import NAME as METRICS
from jaxlm.runs.metrics import RunDir, read_metrics, read_prefix

CONFIG = "config.json"
RECORD = "run.json"
MOST_BYTES = 1 << 20  # of config.json and run.json
DRAWN = "drawn from the seed"  # the origin of a run's parameters, in run.json


@dataclass(frozen=True)
class Setup:
    """How a process trains a run, for the record in `run.json`."""

    given_params: bool = False  # in place of parameters drawn from the seed
    devices: tuple[int, int] = (1, 1)  # that the rows, and that the words, are spread over
    rates: Mapping[str, float] | None = None  # {dtype: 1e9 operations a second}, where measured


def check_vacant(run: RunDir) -> None:
    """Checks that a run can begin in a directory.

    Args:
        run: The directory, which may be missing.

    Raises:
        RunDirError: The directory is not empty.
    """
    leftover = re.compile(r"\.lock|\.partial-.*|run\.json")  # of a process killed before it began
    names = [name for name in _names(run) if not leftover.fullmatch(name)]
    if names:
        remedy = "resume the run in it with --resume, or choose another --run-dir"
        raise RunDirError(f"{Path(run)} is not empty (it holds {', '.join(names[:4])}): {remedy}")


def _names(run: RunDir) -> list[str]:
    """What a directory holds; nothing where it is missing. Raises RunDirError."""
    with (
        explained(RunDirError, f"{Path(run)} cannot be used", ELSEWHERE),
        suppress(FileNotFoundError),
        Folder.open(run) as folder,
    ):
        return folder.names()
    return []


def begin(
    run: Folder,
    config: Config,
    corpus: Corpus,
    setup: Setup = Setup(),
) -> None:
    """Writes a new run's config and surroundings into an empty directory.

    Args:
        run: The directory, which the caller holds (`lock.lock`).
        config: What is trained.
        corpus: What it is trained on.
        setup: How this process trains it.

    Raises:
        RunDirError: The directory is not empty or cannot be written.
        DataError: No checkpoint could hold the vocabulary.
    """
    check_vacant(run)
    corpus.vocab.to_bytes()  # raises now, and not at the first checkpoint
    params = "given" if setup.given_params else DRAWN
    with explained(RunDirError, f"no run can begin in {run.path}", ELSEWHERE):
        _write(run, {"corpus": _described(corpus), "params": params}, config, setup)


def _write(
    run: Folder,
    record: dict[str, Any],
    config: Config,
    setup: Setup,
) -> None:
    """Writes run.json, with a new session; then config.json, at first the only copy."""
    settings = json.loads(config.to_json())
    sessions = [*record.get("sessions", []), session(setup.devices)]
    record = {**record, "rates": setup.rates or record.get("rates"), "sessions": sessions}
    text = json.dumps(record, indent=1)
    while len(text) >= MOST_BYTES and len(sessions) > 2:
        del sessions[1]  # `reproduce` needs the first
        text = json.dumps(record, indent=1)
    run.write(RECORD, f"{text}\n".encode())
    run.write(CONFIG, to_hashed_json(settings).encode())


def saved_config(run: RunDir) -> Config:
    """The config of the run in a directory, from its last checkpoint where its own file is damaged.

    Raises:
        RunDirError: There is no run.
    """
    where = Path(run)
    if CONFIG not in _names(run):
        remedy = "check the path, or train one there, without --resume"
        raise RunDirError(f"{where} holds no run ({CONFIG} is not there): {remedy}")
    try:
        with Folder.open(run) as folder:
            return _read_config(folder)
    except RunDirError as error:
        saved, _ = checkpoint.newest_intact(run, state_arrays.nothing)
        if saved is None:
            raise RunDirError(f"{where} holds no run that can be resumed: {error}") from None
        return saved.config


def _read_config(run: Folder) -> Config:
    with explained(RunDirError, f"{run.path / CONFIG} cannot be read"):
        text = run.read(CONFIG, MOST_BYTES)
        # Before its first checkpoint a changed digit would train another run.
        from_hashed_json(text)
        return Config.from_json(text.decode())


def saved_record(run: RunDir) -> dict[str, Any]:
    """The contents of `run.json`.

    Raises:
        RunDirError: It is missing or damaged.
    """
    with explained(RunDirError, f"{Path(run) / RECORD} cannot be read"), Folder.open(run) as folder:
        record = strict_json(folder.read(RECORD, MOST_BYTES))
        match record:
            case {"corpus": dict(), "sessions": [_, *_] as sessions}:
                if all(isinstance(session, dict) for session in sessions):
                    return record
        raise ValueError("it has no corpus and no sessions, as jaxlm writes them")


def drew_params(run: RunDir) -> bool:
    """Whether `run.json` says that the run's first parameters were drawn from its seed."""
    with suppress(RunDirError):
        return saved_record(run).get("params") == DRAWN
    return False


def enter(
    run: Folder,
    config: Config,
    corpus: Corpus,
    setup: Setup,
    resumed: bool,
) -> tuple[Checkpoint | None, list[str]]:
    """Begins a run in a directory, or resumes the one there.

    Args:
        run: The directory, which the caller holds (`lock.lock`).
        config: What is trained.
        corpus: What it is trained on.
        setup: How this process trains it.
        resumed: Whether there is a run to resume.

    Returns:
        As `resume`.

    Raises:
        JaxlmError: As `begin` and `resume`.
    """
    if resumed:
        return resume(run, config, corpus, setup)
    begin(run, config, corpus, setup)
    return None, []


def resume(
    run: Folder,
    config: Config,
    corpus: Corpus,
    setup: Setup = Setup(),
) -> tuple[Checkpoint | None, list[str]]:
    """Finds the checkpoint from which a run is resumed, and records the new session.

    Args:
        run: The directory, which the caller holds (`lock.lock`).
        config: The run's, with the fields changed that may change (`MAY_CHANGE`).
        corpus: What it is trained on.
        setup: How this process trains it.

    Returns:
        The newest intact checkpoint (None: the run starts from the beginning), and notes for the
        user.

    Raises:
        RunDirError: The run there has another config or corpus (each difference is named), had not
            saved the parameters that it was given, or cannot be written.
        CheckpointError: There are checkpoints, and none is intact.
    """
    problem = f"{run.path} cannot be resumed"
    with (
        explained(RunDirError, problem, ELSEWHERE),
        suppress(FileNotFoundError),
        run.folder(checkpoint.FOLDER) as checkpoints,
    ):
        checkpoints.clean()
    saved, problems = checkpoint.newest_intact(run)
    if saved is None and problems:
        raise CheckpointError(f"no checkpoint of {run.path} is intact: {'; '.join(problems)}")
    notes = []
    try:
        record = saved_record(run)
    except RunDirError as error:
        record = {"corpus": _described(corpus), "params": "unknown"}
        notes.append(f"{error}; a new one is written, and what it said of earlier sessions is lost")
    if saved is None:
        saved_settings = saved_config(run)
        trained_on = record["corpus"]
        notes.append(f"{run.path} has no checkpoint yet: starting from the beginning")
    else:
        read_prefix(run, saved.manifest.metrics)
        saved_settings = saved.config
        trained_on = saved.manifest.corpus
        newest = f"resuming from the newest intact checkpoint, {saved.manifest.step}"
        notes += [f"{problem}; {newest}" for problem in problems]
        newer = different(saved.manifest.versions, library_versions())
        if newer:
            notes.append(
                f"the checkpoint was written under other library versions ({', '.join(newer)}): "
                "the results may differ"
            )
    identity = corpus.identity
    saved_identity = {name: trained_on.get(name) for name in identity}
    changed = conflicts(saved_settings, config)
    changed += [f"corpus {line}" for line in different(saved_identity, identity)]
    if saved:
        changed += _changes_since(saved, config, corpus)
    if changed:
        remedy = "resume it with its own, or choose another --run-dir"
        differences = "; ".join(changed)
        raise RunDirError(
            f"{run.path} holds a run with another config or corpus ({differences}): {remedy}"
        )
    if saved is None:
        if record.get("params") == "given" and not setup.given_params:
            why = "began from given parameters, and was stopped before it saved them"
            raise RunDirError(f"{run.path} {why}: remove it, and begin again with --init")
        if setup.given_params:
            record["params"] = "given"
    with explained(RunDirError, problem, ELSEWHERE):
        _write(run, record, config, setup)
        if saved:
            checkpoint.set_aside_later(run, saved.manifest.step)
    return saved, notes


def _changes_since(
    saved: Checkpoint,
    config: Config,
    corpus: Corpus,
) -> list[str]:
    """What contradicts a checkpoint: fewer epochs than are begun, and another vocabulary."""
    changed = []
    manifest = saved.manifest
    within_epoch = manifest.step > 0 and manifest.valid_perplexity is None
    epochs_begun = manifest.epoch + within_epoch
    if config.train.epochs < epochs_begun:
        changed.append(f"train.epochs: {epochs_begun} are begun -> {config.train.epochs}")
    if saved.vocab != corpus.vocab:
        line = f"vocabulary: {len(saved.vocab)} -> {len(corpus.vocab)} words"
        pairs = zip_longest(saved.vocab.words, corpus.vocab.words)
        for place, (old, new) in enumerate(pairs):
            if old != new:
                line += f"; word {place} is {[old]} -> {[new]}"
                break
        changed.append(line)
    return changed


def problems(run: RunDir) -> list[str]:
    """A sentence for each damaged file of a run; of a checkpoint only the manifest is read.

    Raises:
        OSError: There is no directory.
    """
    with Folder.open(run) as folder:
        irregular = folder.irregular_entries()
        sentences = [f"{path} does not belong in a run's directory" for path in irregular]
        for read in (_read_config, saved_record, _check_metrics):
            try:
                read(folder)
            except JaxlmError as error:
                sentences.append(str(error))
        with suppress(CheckpointError):  # of a link, which is among the irregular entries
            checkpoint.manifests(folder, sentences)
    return sentences


def _check_metrics(run: Folder) -> None:
    """Raises JaxlmError where metrics lack lines of the newest checkpoint, or end within one."""
    read_metrics(run)  # raises where a line is damaged
    saved = checkpoint.manifests(run)
    if saved:
        read_prefix(run, saved[max(saved)].metrics)
    with explained(RunDirError, f"{run.path} cannot be read"), run.reader(METRICS) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        # A process that lives, or that was killed, leaves an unfinished line.
        cut = file.read(1) not in (b"", b"\n") and not holder(run)
    if cut:
        raise JaxlmError(
            f"{run.path / METRICS} ends within a line: it was cut, or the disk was full; "
            "train --resume restores it"
        )


def session(devices: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """The command, versions, machine and flags of this process.

    Args:
        devices: How many the rows, and how many the words, are spread over.
    """
    machine = {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {
        "command": shlex.join(map(without_password, sys.argv)),
        "devices": list(devices),
        "versions": {"python": platform.python_version(), **library_versions()},
        "platform": {**machine, "devices": [device.device_kind for device in jax.devices()]},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _described(corpus: Corpus) -> dict[str, Any]:
    """What `run.json` says of a corpus."""
    tokens = {split: len(getattr(corpus, split)) for split in ("train", "valid", "test")}
    return {
        **corpus.identity,
        "description": corpus.description,
        "notes": list(corpus.notes),
        "tokens": tokens,
    }
