"""A run directory: who holds it, what it says of its run, how a run begins in it and how it goes on.

    RUN/  config.json  vocab.json  run.json  metrics.jsonl  timing.jsonl  tensorboard/  curve.png  checkpoints/
"""

import fcntl
import json
import os
import platform
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm import checkpoint
from jaxlm.checkpoint import Checkpoint
from jaxlm.config import Config, differences
from jaxlm.data.corpora import SPLITS, Corpus
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError

# These do not change what is trained. (The corpus is compared by its hash, wherever it was found.)
MAY_CHANGE = {"train.epochs", "train.windows_per_call", "train.checkpoint_every", "data.corpus"}


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Holds a run directory; RunDirError, naming the holder, while another process does.

    The kernel's own lock on an open file: it ends with its process, so none is ever stale.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunDirError(f"{run_dir} is in use by {file.read().strip() or 'another process'}: "
                              f"wait for it, or choose another --run-dir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def begin(run_dir: Path, config: Config, corpus: Corpus) -> None:
    """Writes what the run is into an empty directory. Raises RunDirError where there is something else."""
    if other := sorted(path.name for path in run_dir.iterdir() if path.name != ".lock"):
        raise RunDirError(f"{run_dir} is not empty (it holds {', '.join(other[:4])}): "
                          f"resume the run in it with --resume, or choose another --run-dir")
    checkpoint.write_text(run_dir / "vocab.json", corpus.vocab.to_json())
    checkpoint.write_text(run_dir / "run.json", json.dumps(_metadata(corpus), indent=1) + "\n")
    checkpoint.write_text(run_dir / "config.json", config.to_json())  # last: it makes the directory a run's


def saved_config(run_dir: Path) -> Config:
    """The config of the run in a directory. Raises RunDirError where there is no run."""
    path = run_dir / "config.json"
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except (OSError, JaxlmError, UnicodeDecodeError) as error:
        raise RunDirError(f"{run_dir} holds no run that can be resumed: {path.name}: {error}") from None


def newest_checkpoint(run_dir: Path, config: Config, corpus: Corpus) -> tuple[Checkpoint | None, list[str]]:
    """What a resumed run goes on from (None: the beginning), and what the user should be told.

    Raises RunDirError where the run there has another config or corpus, CheckpointError where none is intact.
    """
    saved = saved_config(run_dir)
    changed = [line for line in differences(saved, config) if line.split(":")[0] not in MAY_CHANGE]
    if changed:
        raise RunDirError(f"{run_dir} holds a run with another config ({'; '.join(changed)}): "
                          f"resume it with its own, or choose another --run-dir")
    found, problems = checkpoint.newest_intact(run_dir)
    if found is None:
        if problems:
            raise CheckpointError(f"no checkpoint of {run_dir} is intact: {'; '.join(problems)}")
        return None, [f"{run_dir} has no checkpoint yet: starting from the beginning"]
    if found.manifest.corpus["sha256"] != corpus.sha256:
        raise RunDirError(f"{run_dir} was trained on the corpus {found.manifest.corpus['name']} (sha256 "
                          f"{found.manifest.corpus['sha256']}), and this is {corpus.name} ({corpus.sha256})")
    notes = [f"{problem}; going on from the newest intact one" for problem in problems]
    if found.manifest.versions != checkpoint.library_versions():
        notes.append(f"this checkpoint was written with {found.manifest.versions}, "
                     f"and goes on with {checkpoint.library_versions()}")
    return found, notes


def _metadata(corpus: Corpus) -> dict[str, Any]:
    """What is needed to run it again, besides the config."""
    return {
        "command": shlex.join(sys.argv),
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "vocab_sha256": corpus.vocab.sha256,
                   "description": corpus.description, "notes": list(corpus.notes),
                   "tokens": {split: len(getattr(corpus, split)) for split in SPLITS}},
        "versions": {"python": platform.python_version(), **checkpoint.library_versions()},
        "platform": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count(),
                     "devices": [str(device) for device in jax.devices()]},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
