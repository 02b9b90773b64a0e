"""A run directory: what it holds of its run, how a run begins in it and how it is resumed.

    RUN/  config.json  run.json  metrics.jsonl  timing.jsonl  curve.png  checkpoints/

`config.json` is written last: from then on the directory holds a run, and is resumed; before, one begins in it. (The
vocabulary is in each checkpoint. Versions before 0.2 wrote it here too, where nothing read it.)
JAX is loaded only where a run begins or is resumed.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.config.config import Config, conflicts
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.files import Folder, held, reason, strict_json
from jaxlm.runs import listing
from jaxlm.runs.lock import holder, readable_errors
from jaxlm.runs.manifest import TEXTS, library_versions
from jaxlm.runs.metrics import read_metrics
from jaxlm.urls import without_password

if TYPE_CHECKING:
    from jaxlm.data.corpus import Corpus
    from jaxlm.runs.checkpoint import Checkpoint

MOST_BYTES = 1 << 20  # of config.json and run.json


def check(run: str | Path | Folder, resume: bool) -> None:
    """Raises RunDirError where there is no run to resume, or something else than a new run's place."""
    where = _path(run)
    names = []
    with readable_errors(f"{where} cannot be used"):
        if isinstance(run, Folder) or (os.path.lexists(where) and not (resume and not os.path.isdir(where))):
            with held(run) as folder:
                names = folder.names()
    if resume and "config.json" not in names:
        raise RunDirError(
            f"{where} holds no run that can be resumed (config.json is not there): "
            f"begin one without --resume, or check the path"
        )
    # What a process leaves that was killed before there was a run is no other thing.
    other = [name for name in names if not re.fullmatch(r"\.lock|\.partial-.*|vocab\.json|run\.json", name)]
    if other and not resume:
        raise RunDirError(
            f"{where} is not empty (it holds {', '.join(other[:4])}): "
            f"resume the run in it with --resume, or choose another --run-dir"
        )


def begin(
    run: Folder, config: Config, corpus: "Corpus", given_params: bool = False, devices: tuple[int, int] = (1, 1)
) -> None:
    """Writes what the run is into a directory that holds none.

    Args:
        run: the directory, which the caller holds (`lock.lock`).
        config: the run's.
        corpus: the run's.
        given_params: whether it begins from parameters that the caller gave.
        devices: those that the rows, and those that the words, are spread over.
    Raises:
        RunDirError: there is something else in it, or it cannot be written, or no checkpoint could hold the vocabulary.
    """
    check(run, resume=False)
    if (size := len(corpus.vocab.to_json())) > TEXTS["vocab.json"]:  # (which is ASCII)
        raise RunDirError(
            f"the vocabulary of {corpus.name} takes {size:,} bytes in a checkpoint, and one of at most "
            f"{TEXTS['vocab.json']:,} is read: take a smaller vocab_size, or a higher min_count"
        )
    text = config.to_json().encode()
    record = {
        "corpus": _described(corpus),
        "params": "given" if given_params else "drawn from the seed",
        "config_sha256": [_sha256(text)],
        "sessions": [session(devices)],
    }
    with readable_errors(f"no run can begin in {run.path}"):
        run.clean()
        run.write("run.json", _json(record))
        run.write("config.json", text)


def saved_config(run: str | Path | Folder) -> Config:
    """The config of the run in a directory, from its last checkpoint where its own file is damaged.

    Raises RunDirError where there is no run.
    """
    check(run, resume=True)
    try:
        with held(run) as folder:
            return Config.from_json(_config_text(folder).decode())
    except (OSError, JaxlmError, UnicodeDecodeError) as error:
        from jaxlm.runs import checkpoint  # (which loads JAX)

        found, _ = checkpoint.newest_intact(run)
        if found is None:
            raise RunDirError(f"{_path(run)} holds no run that can be resumed: config.json: {reason(error)}") from None
        return found.config


def _config_text(run: Folder) -> bytes:
    """The bytes of config.json, as run.json seals them where it does. Raises OSError, or RunDirError where they differ.

    (Until its first checkpoint a run has no other copy: a changed digit would train another run.)
    """
    text = run.read("config.json", MOST_BYTES)
    try:
        sealed = saved_record(run).get("config_sha256")
    except RunDirError:
        sealed = None
    if isinstance(sealed, list) and _sha256(text) not in sealed:
        raise RunDirError("it is not what was written (run.json has its sha256)")
    return text


def saved_record(run: str | Path | Folder) -> dict[str, Any]:
    """What `run.json` holds. Raises RunDirError where it is missing or damaged."""
    try:
        with held(run) as folder:
            record = strict_json(folder.read("run.json", MOST_BYTES))
        if not (
            isinstance(record, dict)
            and isinstance(record["sessions"], list)
            and record["sessions"]
            and all(isinstance(one, dict) for one in (record["corpus"], *record["sessions"]))
        ):
            raise ValueError("it is not what jaxlm writes")
        return record
    except KeyError as error:
        raise RunDirError(f"{_path(run) / 'run.json'} cannot be read: it has no {error}") from None
    except (OSError, ValueError) as error:
        raise RunDirError(f"{_path(run) / 'run.json'} cannot be read: {reason(error)}") from None


def resume(
    run: Folder, config: Config, corpus: "Corpus", devices: tuple[int, int] = (1, 1)
) -> "tuple[Checkpoint | None, int, list[str]]":
    """Puts the run's metrics and config back to what its newest intact checkpoint saved.

    Args:
        run: the directory, which the caller holds (`lock.lock`).
        config: the run's, with what may change (`MAY_CHANGE`) changed.
        corpus: the run's.
        devices: those that the rows, and those that the words, are spread over.
    Returns:
        That checkpoint (None: the run starts from the beginning), the bytes of its metrics, and notes for the user.
    Raises:
        RunDirError: the run there has another config or corpus (each difference is named), or cannot be written.
        CheckpointError: there are checkpoints, and none is intact.
    """
    from jaxlm.runs import checkpoint

    with readable_errors(f"{run.path} cannot be resumed"):
        checkpoint.clean(run)
    found, problems = checkpoint.newest_intact(run)
    if found is None and problems:
        raise CheckpointError(f"no checkpoint of {run.path} is intact: {'; '.join(problems)}")
    changed = conflicts(found.config if found else saved_config(run), config)
    if found:
        now = named(corpus)
        changed += [
            f"corpus {name}: {was} -> {now.get(name)}"
            for name, was in found.manifest.corpus.items()
            if was != now.get(name)
        ]
        if config.train.epochs < found.manifest.epoch:
            changed.append(f"train.epochs: {found.manifest.epoch} are trained -> {config.train.epochs}")
        if found.vocab != corpus.vocab:
            changed.append(f"vocabulary: {_first_difference(found.vocab.words, corpus.vocab.words)}")
    if changed:
        raise RunDirError(
            f"{run.path} holds a run with another config or corpus ({'; '.join(changed)}): "
            f"resume it with its own, or choose another --run-dir"
        )
    metrics = found.metrics if found else b""
    with readable_errors(f"{run.path} cannot be resumed"):
        run.write("metrics.jsonl", metrics)
        text, sealed = config.to_json().encode(), set[str]()
        with suppress(OSError, RunDirError):
            sealed = {_sha256(_config_text(run))}
        try:
            record = saved_record(run)
        except RunDirError:
            record = {"corpus": _described(corpus), "params": "unknown", "sessions": []}
        record["config_sha256"] = sorted({*sealed, _sha256(text)})  # either may be there after a kill
        record["sessions"].append(session(devices))
        run.write("run.json", _json(record))
        run.write("config.json", text)
    return found, len(metrics), _notes(run, found, problems)


def _notes(run: Folder, found: "Checkpoint | None", problems: list[str]) -> list[str]:
    notes = [f"{problem}; resuming from the newest intact checkpoint" for problem in problems]
    if found is None:
        return [*notes, f"{run.path} has no checkpoint yet: starting from the beginning"]
    now = library_versions()  # (of a library that is used no longer nothing depends)
    if changed := different(
        {name: was for name, was in found.manifest.versions.items() if name in now},
        {name: now[name] for name in found.manifest.versions if name in now},
    ):
        notes.append(
            f"the checkpoint was written under other library versions ({', '.join(changed)}): the results may differ"
        )
    return notes


def problems(run: str | Path | Folder) -> list[str]:
    """A sentence for each file of a run that is damaged; of a checkpoint only the manifest is read, not the arrays.

    Raises OSError where there is no directory.
    """
    found = []
    with held(run) as folder:
        found += [f"{line} does not belong in a run's directory" for line in folder.strange()]
        for read in (_read_config, saved_record, _check_metrics):
            try:
                read(folder)
            except JaxlmError as error:
                found.append(str(error))
            except OSError as error:
                found.append(f"{error.filename} cannot be read: {reason(error)}")
        with suppress(CheckpointError):  # (`strange` has named it)
            found += listing.damaged(folder)
    return found


def _check_metrics(run: Folder) -> None:
    """Raises JaxlmError where a run's metrics lack what its newest checkpoint has saved of them."""
    read_metrics(run)  # raises where a line is damaged
    metrics = run.read("metrics.jsonl", TEXTS["metrics.jsonl"])
    saved = listing.saved_metrics(run)
    if metrics[: len(saved)] != saved:
        lines, found = saved.splitlines(), metrics.splitlines()
        same = next((place for place, line in enumerate(lines) if found[place : place + 1] != [line]), len(lines))
        raise JaxlmError(
            f"{run.path / 'metrics.jsonl'} is damaged: the newest checkpoint has {len(lines):,} lines of "
            f"it, and here are the first {same:,} of them; train --resume restores them"
        )
    if metrics and not metrics.endswith(b"\n") and not holder(run):  # (a process that lives or was killed leaves one)
        raise JaxlmError(
            f"{run.path / 'metrics.jsonl'} ends within a line: it was cut, or the disk was full; train "
            f"--resume restores it"
        )


def _read_config(run: Folder) -> None:
    try:
        Config.from_json(_config_text(run).decode())
    except (OSError, ValueError) as error:
        raise RunDirError(f"{run.path / 'config.json'} cannot be read: {reason(error)}") from None


def _path(run: str | Path | Folder) -> Path:
    return run.path if isinstance(run, Folder) else Path(run)


def named(corpus: "Corpus") -> dict[str, str]:
    """What identifies a corpus."""
    return {"name": corpus.name, "sha256": corpus.sha256, "vocab_sha256": corpus.vocab.sha256}


def session(devices: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """What this process's results depend on, besides config and corpus; and the command that started it.

    `devices` are those that the rows and those that the words are spread over.
    """
    import jax

    return {
        "command": shlex.join(map(without_password, sys.argv)),
        "devices": list(devices),
        "versions": {"python": platform.python_version(), **library_versions()},
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: old -> new` of each value that differs."""
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _described(corpus: "Corpus") -> dict[str, Any]:
    from jaxlm.data.text import SPLITS  # (which loads NumPy: not for `jaxlm info`)

    return {
        **named(corpus),
        "description": corpus.description,
        "notes": list(corpus.notes),
        "tokens": {split: len(getattr(corpus, split)) for split in SPLITS},
    }


def _first_difference(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    both = min(len(old), len(new))
    at = next((i for i in range(both) if old[i] != new[i]), both)
    return f"{len(old)} -> {len(new)} words; word {at} is {list(old[at : at + 1])} -> {list(new[at : at + 1])}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
