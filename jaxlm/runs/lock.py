"""The lock of a run directory: one process at a time, on any host. A dead one does not block it."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jaxlm.base.errors import RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.terminal import printable, say_line

NAME = ".lock"
ELSEWHERE = "fix that, or choose another --run-dir"
BEAT = 5.0  # seconds between two signs of life of a holder
SILENCE = 30.0  # seconds that another host waits for one
_MOST_BYTES = 200  # of the lock's line


class InUse(RunDirError):
    """A run directory that another process holds."""


class Held(NamedTuple):
    """A run directory that this process alone writes in."""

    folder: Folder
    file: BinaryIO  # the lock
    line: bytes  # its content, which names this process

    def is_named(self) -> bool:
        """Whether the lock still names this process; another host may have taken it over."""
        return os.pread(self.file.fileno(), _MOST_BYTES, 0) == self.line

    def check(self) -> None:
        """Raises RunDirError once the directory was removed, replaced or taken over."""
        with suppress(OSError):
            at_its_path = os.lstat(self.folder.path / NAME)
            if os.path.samestat(os.fstat(self.file.fileno()), at_its_path) and self.is_named():
                return
        raise RunDirError(
            f"{self.folder.path} was removed or replaced, or taken over, while this run was in it: "
            "nothing can be saved"
        )


@contextmanager
def lock(run_dir: str | Path) -> Iterator[Held]:
    """Holds a run directory, made where it is missing, while no other process does.

    The lock is the kernel's, on an open file, and ends with its process; NFS carries it to other
    hosts. Some file systems do not. So the file also names its holder, who touches it every `BEAT`
    seconds: a free lock that names another host is watched for `SILENCE` seconds, and taken over
    only if nobody touches it.

    Args:
        run_dir: The directory; a link to one is followed, and nothing below it is.

    Yields:
        The directory, held by its descriptor, and a check that it is still this process's.

    Raises:
        InUse: Another process holds it, which is named.
        RunDirError: It cannot be used, or contains anything else than files and directories.
    """
    with ExitStack() as stack:
        with explained(RunDirError, f"{run_dir} cannot be used", ELSEWHERE):
            folder = stack.enter_context(Folder.open(run_dir, create=True))
            irregular = folder.irregular_entries()
            if irregular:
                raise RunDirError(
                    f"{run_dir} contains {', '.join(irregular[:4])}: only regular files and "
                    "directories belong in a run's directory; remove the rest, or choose another "
                    "--run-dir"
                )
            file = stack.enter_context(folder.append(NAME))
            line = _take(file, folder)
            folder.clean()
        held = Held(folder, file, line)
        held.check()
        done = threading.Event()
        beating = threading.Thread(target=_beat, args=(file.fileno(), done), daemon=True)
        beating.start()
        try:
            yield held
        finally:
            done.set()
            beating.join()
            with suppress(OSError):
                if held.is_named():
                    os.ftruncate(file.fileno(), 0)  # released, and not left by a dead process


_TAKE = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def excludes_others(path: Path) -> bool:
    """Whether the lock that this process holds on a file keeps a second process from it.

    NFS and Lustre may be mounted so that locks hold on one machine alone, or not at all. The second
    process is a bare Python, which takes some 10 ms.

    Args:
        path: The file.
    """
    second = [sys.executable, "-I", "-S", "-c", _TAKE, str(path)]
    return subprocess.run(second, stderr=subprocess.DEVNULL).returncode != 0


def no_locks_warning(folder: Path) -> str:
    """A sentence for the user where `excludes_others` is false."""
    return (
        f"the file system of {folder} keeps no process from another's lock: let one process at a "
        "time work there, or choose another --run-dir"
    )


def holder(folder: Folder) -> str:
    """The process that holds a run directory, or died while it did; empty where it was released.

    Raises:
        OSError: The lock cannot be read.
    """
    if folder.exists(NAME):
        return _printed(folder.read(NAME, _MOST_BYTES))
    return ""


def _take(file: BinaryIO, folder: Folder) -> bytes:
    """Takes the lock, and returns the line that it then has. Raises InUse."""
    free = False
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    left_by = _printed(os.pread(file.fileno(), _MOST_BYTES, 0))
    host = socket.gethostname()
    if free and left_by and not left_by.endswith(f" on {host}"):
        say_line(
            f"{folder.path} was left by {left_by}: waiting up to {SILENCE:g} s to see whether that "
            "process is dead",
            sys.stderr,
        )
        free = not _touched(folder)
    if not free:
        raise InUse(
            f"{folder.path} is in use by {left_by or 'another process'}: wait for it, or choose "
            "another --run-dir"
        )
    line = f"process {os.getpid()} on {host}\n".encode()
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), line)
    return line


def _printed(line: bytes) -> str:
    """The lock's line as text for a terminal."""
    return printable(line.decode(errors="replace").strip())


def _beat(descriptor: int, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):  # as of a file server that restarts: the next beat may succeed
            os.utime(descriptor)


def _touched(folder: Folder) -> bool:
    """Whether a holder touches the lock within `SILENCE`. NFS asks its server when it is opened."""
    times = set[int]()
    end = time.monotonic() + SILENCE
    while len(times) < 2:
        if time.monotonic() > end:
            return False
        time.sleep(min(BEAT, SILENCE) / 5)
        with folder.reader(NAME) as file:
            times.add(os.fstat(file.fileno()).st_mtime_ns)
    return True
