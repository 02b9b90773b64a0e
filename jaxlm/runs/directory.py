"""A run directory: what it holds of its run, how a run begins in it and how it is resumed.

    RUN/  config.json  run.json  metrics.jsonl  timing.jsonl  curve.png  checkpoints/

`config.json` is written last: from then on the directory holds a run, and is resumed; before, one begins in it. The
vocabulary is in each checkpoint. JAX is loaded only where a run begins or is resumed.
"""

import json
import os
import platform
import re
import shlex
import sys
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxlm.config.config import Config, conflicts
from jaxlm.data.corpus import Corpus
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.files import MAX_VOCAB_BYTES, Folder, explained
from jaxlm.hashed_json import from_hashed_json, strict_json, to_hashed_json
from jaxlm.runs import checkpoint
from jaxlm.runs.checkpoint import Checkpoint, library_versions
from jaxlm.runs.lock import ELSEWHERE, holder
from jaxlm.runs.metrics import NAME as METRICS
from jaxlm.runs.metrics import read_metrics, read_prefix
from jaxlm.terminal import without_password

CONFIG = "config.json"
RECORD = "run.json"
MOST_BYTES = 1 << 20  # of config.json and run.json
DRAWN = "drawn from the seed"  # the origin of a run's parameters, in run.json


def check(run: str | Path | Folder, resume: bool) -> None:
    """Raises RunDirError where there is no run to resume, or where a new run cannot begin: the place is not empty."""
    where = Path(run)
    names = []
    what = f"{where} cannot be used"
    with (
        explained(RunDirError, what, ELSEWHERE),
        suppress(FileNotFoundError),
        Folder.open(run) as folder,
    ):
        names = folder.names()
    if resume and CONFIG not in names:
        remedy = "check the path, or train one there, without --resume"
        raise RunDirError(f"{where} holds no run ({CONFIG} is not there): {remedy}")
    # Files that a process leaves which was killed before config.json was written do not count.
    other = [name for name in names if not re.fullmatch(r"\.lock|\.partial-.*|run\.json", name)]
    if other and not resume:
        remedy = "resume the run in it with --resume, or choose another --run-dir"
        raise RunDirError(f"{where} is not empty (it holds {', '.join(other[:4])}): {remedy}")


def begin(
    run: Folder,
    config: Config,
    corpus: Corpus,
    given_params: bool = False,
    devices: tuple[int, int] = (1, 1),
) -> None:
    """Writes a new run's config and surroundings into an empty directory, which the caller holds (`lock.lock`).

    Args:
        devices: how many the rows, and how many the words, are spread over.
    Raises:
        RunDirError: the directory is not empty or cannot be written, or no checkpoint could hold the vocabulary.
    """
    check(run, resume=False)
    size = len(corpus.vocab.to_json())
    if size > MAX_VOCAB_BYTES:  # (which is ASCII)
        most = f"one of at most {MAX_VOCAB_BYTES:,} is read: take a smaller vocab_size, or a higher min_count"
        raise RunDirError(
            f"the vocabulary of {corpus.name} takes {size:,} bytes in a checkpoint, and {most}"
        )
    with explained(RunDirError, f"no run can begin in {run.path}", ELSEWHERE):
        record = {"corpus": _described(corpus), "params": "given" if given_params else DRAWN}
        _write(run, record, config, devices)


def _write(run: Folder, record: dict[str, Any], config: Config, devices: tuple[int, int]) -> None:
    """Writes run.json, with what trains now, and then config.json, sealed: at first the only copy of the config."""
    from jaxlm.runs.precision import known

    sessions = [*record.get("sessions", []), session(devices)]
    record = {**record, "rates": known(config), "sessions": sessions}
    while len(text := json.dumps(record, indent=1) + "\n") > MOST_BYTES and len(sessions) > 2:
        del sessions[1]  # (`reproduce` needs the first)
    run.write(RECORD, text.encode())
    run.write(CONFIG, to_hashed_json(json.loads(config.to_json())).encode())


def saved_config(run: str | Path | Folder) -> Config:
    """The config of the run in a directory, from its last checkpoint where its own file is damaged.

    Raises RunDirError where there is no run.
    """
    check(run, resume=True)
    try:
        with Folder.open(run) as folder:
            return _read_config(folder)
    except RunDirError as error:
        found, _ = checkpoint.newest_intact(run)
        if found is None:
            raise RunDirError(f"{Path(run)} holds no run that can be resumed: {error}") from None
        return found.config


def with_saved_dtype(config: Config, run: str | Path | Folder) -> Config:
    """The config with the dtype that the run in a directory has taken, in place of `auto`. Raises RunDirError."""
    if config.model.compute_dtype != "auto":
        return config
    return config.replace(compute_dtype=saved_config(run).model.compute_dtype)


def _read_config(run: Folder) -> Config:
    with explained(RunDirError, f"{run.path / CONFIG} cannot be read"):
        text = run.read(CONFIG, MOST_BYTES)
        from_hashed_json(
            text
        )  # before its first checkpoint a changed digit would train another run
        return Config.from_json(text.decode())


def saved_record(run: str | Path | Folder) -> dict[str, Any]:
    """The contents of `run.json`. Raises RunDirError where it is missing or damaged."""
    with explained(RunDirError, f"{Path(run) / RECORD} cannot be read"), Folder.open(run) as folder:
        record = strict_json(folder.read(RECORD, MOST_BYTES))
        match record:
            case {"corpus": dict(), "sessions": [_, *_] as sessions} if all(
                isinstance(one, dict) for one in sessions
            ):
                return record
        raise ValueError("it has no corpus and no sessions, as jaxlm writes them")


def drew_params(run: str | Path | Folder) -> bool:
    """Whether a run is known to have drawn its parameters from its seed; of a lost `run.json` it is not."""
    with suppress(RunDirError):
        return saved_record(run).get("params") == DRAWN
    return False


def resume(
    run: Folder,
    config: Config,
    corpus: Corpus,
    given_params: bool = False,
    devices: tuple[int, int] = (1, 1),
) -> tuple[Checkpoint | None, list[str]]:
    """Finds the checkpoint from which a run is resumed, and records the new session.

    Args:
        run: the directory, which the caller holds (`lock.lock`).
        config: the run's, with the fields changed that may change (`MAY_CHANGE`).
        corpus, given_params, devices: as in `begin`.
    Returns:
        The newest intact checkpoint (None: the run starts from the beginning), and notes for the user.
    Raises:
        RunDirError: the run there has another config or corpus (each difference is named), had not saved the parameters
            that it was given, or cannot be written.
        CheckpointError: there are checkpoints, and none is intact.
    """
    what = f"{run.path} cannot be resumed"
    with (
        explained(RunDirError, what, ELSEWHERE),
        suppress(FileNotFoundError),
        run.folder(checkpoint.FOLDER) as inner,
    ):
        inner.clean()
    found, problems = checkpoint.newest_intact(run)
    if found is None and problems:
        raise CheckpointError(f"no checkpoint of {run.path} is intact: {'; '.join(problems)}")
    record = {"corpus": _described(corpus), "params": "unknown"}
    with suppress(RunDirError):
        record = saved_record(run)
    changed = conflicts(found.config if found else saved_config(run), config)
    began = (
        found.manifest.corpus
        if found
        else {name: record["corpus"].get(name) for name in named(corpus)}
    )
    changed += [f"corpus {line}" for line in different(began, named(corpus))]
    if found:
        read_prefix(run, found.manifest.metrics)
        midway = found.manifest.step > 0 and found.manifest.valid_perplexity is None
        if config.train.epochs < (begun := found.manifest.epoch + midway):
            changed.append(f"train.epochs: {begun} are begun -> {config.train.epochs}")
        if found.vocab != corpus.vocab:
            pairs = enumerate(zip_longest(found.vocab.words, corpus.vocab.words))
            first = next(
                (f"; word {at} is {[was]} -> {[now]}" for at, (was, now) in pairs if was != now), ""
            )
            changed.append(f"vocabulary: {len(found.vocab)} -> {len(corpus.vocab)} words{first}")
    if changed:
        remedy = "resume it with its own, or choose another --run-dir"
        raise RunDirError(
            f"{run.path} holds a run with another config or corpus ({'; '.join(changed)}): {remedy}"
        )
    with explained(RunDirError, what, ELSEWHERE):
        if found is None and record.get("params") == "given" and not given_params:
            why = "began from given parameters, and was stopped before it saved them"
            raise RunDirError(f"{run.path} {why}: remove it, and begin again with --init")
        if found is None and given_params:
            record["params"] = "given"
        _write(run, record, config, devices)
        if found:
            checkpoint.set_aside_later(run, found.manifest.step)
    if found is None:
        return None, [f"{run.path} has no checkpoint yet: starting from the beginning"]
    newest = f"resuming from the newest intact checkpoint, {found.manifest.step}"
    notes = [f"{problem}; {newest}" for problem in problems]
    saved = found.manifest.versions
    now = library_versions()
    both = saved.keys() & now.keys()  # nothing depends on a library that is used no longer
    changed = [line for line in different(saved, now) if line.split(":")[0] in both]
    if changed:
        notes.append(
            f"the checkpoint was written under other library versions ({', '.join(changed)}): the results may differ"
        )
    return found, notes


def problems(run: str | Path | Folder) -> list[str]:
    """A sentence for each damaged file of a run; of a checkpoint only the manifest is read, not the arrays.

    Raises OSError where there is no directory.
    """
    with Folder.open(run) as folder:
        found = [f"{line} does not belong in a run's directory" for line in folder.strange()]
        for read in (_read_config, saved_record, _check_metrics):
            try:
                read(folder)
            except JaxlmError as error:
                found.append(str(error))
        with suppress(CheckpointError):  # (`strange` has named it)
            checkpoint.manifests(folder, found)
    return found


def _check_metrics(run: Folder) -> None:
    """Raises JaxlmError where a run's metrics lack lines that its newest checkpoint sealed, or end within a line."""
    read_metrics(run)  # raises where a line is damaged
    saved = checkpoint.manifests(run)
    if saved:
        read_prefix(run, saved[max(saved)].metrics)
    with explained(RunDirError, f"{run.path} cannot be read"), run.reader(METRICS) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut = file.read(1) not in (b"", b"\n") and not holder(run)
    if cut:  # (a process that lives or was killed leaves an unfinished line)
        raise JaxlmError(
            f"{run.path / METRICS} ends within a line: it was cut, or the disk was full; train --resume restores it"
        )


def named(corpus: Corpus) -> dict[str, str]:
    """The name and hashes that identify a corpus."""
    return {"name": corpus.name, "sha256": corpus.sha256, "vocab_sha256": corpus.vocab.sha256}


def session(devices: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """The command, versions, machine and flags of this process, and its devices for the rows and for the words."""
    import jax

    machine = {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {
        "command": shlex.join(map(without_password, sys.argv)),
        "devices": list(devices),
        "versions": {"python": platform.python_version(), **library_versions()},
        "platform": {**machine, "devices": [device.device_kind for device in jax.devices()]},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: old -> new` of each value that differs."""
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in old | new
        if old.get(name) != new.get(name)
    ]


def _described(corpus: Corpus) -> dict[str, Any]:
    tokens = {split: len(getattr(corpus, split)) for split in ("train", "valid", "test")}
    return {
        **named(corpus),
        "description": corpus.description,
        "notes": list(corpus.notes),
        "tokens": tokens,
    }
