"""Temporary folders of runs that are not kept: gone at the end, or by the next process where theirs was killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlm.errors import RunDirError
from jaxlm.files import Folder, reason

PREFIX = "jaxlm-run-"
GRACE = 60.0  # seconds for which a folder is left alone: its process may be about to lock it


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder that is gone after the block; first removes those of this user whose processes are dead.

    The folder to use lies inside one that this process locks, so that a lock that is free is a dead process's.

    Raises:
        RunDirError: none can be made.
    """
    _clean()
    try:
        outer = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise RunDirError(
            f"no temporary folder can be made: {reason(error)}; give a run directory, or set TMPDIR"
        ) from None
    try:
        with Folder.open(outer) as held:
            fcntl.flock(held.fileno(), fcntl.LOCK_EX)
            inner = outer / "run"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _clean() -> None:
    """Removes the folders of dead processes. Whatever cannot be removed, or is another user's, stays."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if (
                    entry.name.startswith(PREFIX)
                    and entry.is_dir(follow_symlinks=False)
                    and status.st_uid == os.getuid()
                    and status.st_mtime < time.time() - GRACE
                ):
                    _remove_dead(Path(entry.path))


def _remove_dead(path: Path) -> None:
    with Folder.open(path) as held:
        if set(held.names()) <= {"run"}:  # else it is something else's
            fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if held.is_at(path):
                shutil.rmtree(path)
