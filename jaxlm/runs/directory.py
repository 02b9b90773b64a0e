"""A run directory: who holds it, what it says of its run, how a run begins in it and how it goes on.

    RUN/  config.json  vocab.json  run.json  metrics.jsonl  timing.jsonl  tensorboard/  curve.png  checkpoints/

`config.json` is written last: from then on the directory holds a run, and is resumed; before, one begins in it.
"""

import fcntl
import json
import os
import platform
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.config import Config, conflicts
from jaxlm.data.corpora import SPLITS, Corpus
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.runs import checkpoint
from jaxlm.runs.checkpoint import Checkpoint
from jaxlm.runs.manifest import library_versions
from jaxlm.urls import without_password

BEAT, SILENCE = 5.0, 30.0  # seconds: how often a holder shows that it lives, and how long another host waits for it
MOST_BYTES = 1 << 20  # of config.json and run.json


@contextmanager
def lock(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Holds a run directory; RunDirError, naming the holder, while another process does.

    It is the kernel's own lock on an open file and ends with its process, so a dead holder is never in the way;
    NFS carries it to other hosts. Some file systems do not: so the file also names its holder, who touches it
    every `BEAT` seconds. A free lock that still names another host is watched for `SILENCE` seconds, and taken
    over only if nobody touches it. Yields a check that raises RunDirError once the directory is no longer ours.
    """
    path = run_dir / ".lock"

    def still_ours() -> None:
        try:
            ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except OSError:
            ours = False
        if not ours:
            raise RunDirError(f"{run_dir} was removed or replaced while this run was in it: nothing can be saved")

    with _readable_errors(f"{run_dir} cannot be used"):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below)
    with file:
        with _readable_errors(f"{run_dir} cannot be locked"):
            _take(file, path)
        still_ours()
        done = threading.Event()
        beating = threading.Thread(target=_beat, args=(file.fileno(), done), daemon=True)
        beating.start()
        try:
            yield still_ours
        finally:
            done.set()
            beating.join()
            file.truncate(0)  # let go of, and not left by a dead process


def _take(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    file.seek(0)
    holder = file.read(200).decode(errors="replace").strip()
    host = socket.gethostname()
    if free and holder and not holder.endswith(f" on {host}"):
        print(f"{path.parent} was left by {holder}: waiting up to {SILENCE:g} s to see whether that is dead",
              file=sys.stderr)
        free = not _touched(path)
    if not free:
        raise RunDirError(f"{path.parent} is in use by {holder or 'another process'}: wait for it, or choose another "
                          f"--run-dir")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {host}\n".encode())


def _beat(descriptor: int, done: threading.Event) -> None:
    while not done.wait(BEAT):
        os.utime(descriptor)


def _touched(path: Path) -> bool:
    """Whether a holder shows itself while we watch; the file is opened anew, so that NFS asks its server."""

    def touched_at() -> int:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns

    first, end = touched_at(), time.monotonic() + SILENCE
    while touched_at() == first:
        if time.monotonic() > end:
            return False
        time.sleep(min(BEAT, SILENCE) / 5)
    return True


def check(run_dir: Path, resume: bool) -> None:
    """Raises RunDirError where there is no run to resume, or something else than a new run's place."""
    if resume and not (run_dir / "config.json").exists():
        raise RunDirError(f"{run_dir} holds no run that can be resumed (config.json is not there): "
                          f"begin one without --resume, or check the path")
    with _readable_errors(f"{run_dir} cannot be used"):
        names = [] if resume or not run_dir.exists() else sorted(path.name for path in run_dir.iterdir())
    # What a process leaves that was killed before there was a run is no other thing.
    if other := [name for name in names if not re.fullmatch(r"\.lock|\.partial-.*|vocab\.json|run\.json", name)]:
        raise RunDirError(f"{run_dir} is not empty (it holds {', '.join(other[:4])}): "
                          f"resume the run in it with --resume, or choose another --run-dir")


def begin(run_dir: Path, config: Config, corpus: Corpus, given_params: bool = False,
          devices: tuple[int, int] = (1, 1)) -> None:
    """Writes what the run is into a directory that holds none. Raises RunDirError where there is something else."""
    check(run_dir, resume=False)
    with _readable_errors(f"no run can begin in {run_dir}"):
        checkpoint.write_bytes(run_dir / "vocab.json", corpus.vocab.to_json().encode())
        record = {"corpus": _described(corpus), "params": "given" if given_params else "drawn from the seed",
                  "sessions": [session(devices)]}
        checkpoint.write_bytes(run_dir / "run.json", _json(record))
        checkpoint.write_bytes(run_dir / "config.json", config.to_json().encode())


def saved_config(run_dir: Path) -> Config:
    """The config of the run in a directory, from its last checkpoint where its own file is damaged.

    Raises RunDirError where there is no run.
    """
    check(run_dir, resume=True)
    try:
        return Config.from_json(_bounded(run_dir / "config.json"))
    except (OSError, JaxlmError, UnicodeDecodeError) as error:
        found, _ = checkpoint.newest_intact(run_dir)
        if found is None:
            raise RunDirError(f"{run_dir} holds no run that can be resumed: config.json: {error}") from None
        return found.config


def saved_record(run_dir: Path) -> dict[str, Any]:
    """What `run.json` says. Raises RunDirError where it says nothing."""
    try:
        record = json.loads(_bounded(run_dir / "run.json"))
        if not (isinstance(record, dict) and isinstance(record["sessions"], list) and record["sessions"]
                and all(isinstance(one, dict) for one in (record["corpus"], *record["sessions"]))):
            raise ValueError("it is not what jaxlm writes")
        return record
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise RunDirError(f"{run_dir / 'run.json'} cannot be read: {error}") from None


def go_on(run_dir: Path, config: Config, corpus: Corpus, devices: tuple[int, int] = (1, 1)
          ) -> tuple[Checkpoint | None, int, list[str]]:
    """What a resumed run goes on from (None: the beginning), the bytes of its metrics, and notes for the user.

    Puts the run's metrics and config back to what that checkpoint saved. Raises RunDirError where the run there
    has another config or corpus, with each difference; CheckpointError where there are checkpoints, none intact.
    """
    checkpoint.clean(run_dir)
    found, problems = checkpoint.newest_intact(run_dir)
    if found is None and problems:
        raise CheckpointError(f"no checkpoint of {run_dir} is intact: {'; '.join(problems)}")
    changed = conflicts(found.config if found else saved_config(run_dir), config)
    if found:
        now = named(corpus)
        changed += [f"corpus {name}: {was} -> {now.get(name)}" for name, was in found.manifest.corpus.items()
                    if was != now.get(name)]
        if found.vocab != corpus.vocab:
            changed.append(f"vocabulary: {_first_difference(found.vocab.words, corpus.vocab.words)}")
    if changed:
        raise RunDirError(f"{run_dir} holds a run with another config or corpus ({'; '.join(changed)}): "
                          f"resume it with its own, or choose another --run-dir")
    notes = [f"{problem}; going on from the newest intact checkpoint" for problem in problems]
    if found is None:
        notes.append(f"{run_dir} has no checkpoint yet: starting from the beginning")
    elif found.manifest.versions != library_versions():
        older = ", ".join(different(found.manifest.versions, library_versions()))
        notes.append(f"the checkpoint was written under other library versions ({older}): the numbers may differ")
    with _readable_errors(f"{run_dir} cannot be resumed"):
        metrics = (found.path / "metrics.jsonl").read_bytes() if found else b""
        checkpoint.write_bytes(run_dir / "metrics.jsonl", metrics)
        checkpoint.write_bytes(run_dir / "config.json", config.to_json().encode())
        try:
            record = saved_record(run_dir)
        except RunDirError:
            record = {"corpus": _described(corpus), "params": "unknown", "sessions": []}
        record["sessions"].append(session(devices))
        checkpoint.write_bytes(run_dir / "run.json", _json(record))
    return found, len(metrics), notes


def named(corpus: Corpus) -> dict[str, str]:
    """What tells a corpus from any other."""
    return {"name": corpus.name, "sha256": corpus.sha256, "vocab_sha256": corpus.vocab.sha256}


def session(devices: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """What this process's numbers depend on, besides config and corpus; and the command that started it.

    `devices` are those that the rows and those that the words are spread over.
    """
    return {
        "command": shlex.join(map(without_password, sys.argv)),
        "devices": list(devices),
        "versions": {"python": platform.python_version(), **library_versions()},
        "platform": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count(),
                     "devices": [device.device_kind for device in jax.devices()]},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: old -> new` of each value that differs."""
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)]


def _described(corpus: Corpus) -> dict[str, Any]:
    return {**named(corpus), "description": corpus.description, "notes": list(corpus.notes),
            "tokens": {split: len(getattr(corpus, split)) for split in SPLITS}}


def _first_difference(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    both = min(len(old), len(new))
    at = next((i for i in range(both) if old[i] != new[i]), both)
    return f"{len(old)} -> {len(new)} words; word {at} is {list(old[at:at + 1])} -> {list(new[at:at + 1])}"


def _bounded(path: Path) -> str:
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise JaxlmError(f"{path} has more than {MOST_BYTES:,} bytes: it is not a run's")
    return data.decode()


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


@contextmanager
def _readable_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{what}: {error.strerror or error}; mend that, or choose another --run-dir") from None
