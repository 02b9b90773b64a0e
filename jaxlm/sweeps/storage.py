"""Where Optuna keeps a study: a journal file or a database. All calls into it have one guard."""

import fcntl
import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder
from jaxlm.base.terminal import scrubbed, without_password

BEAT = 60  # seconds between two signs of life of a worker
SILENCE = 600  # seconds after which the trials of a silent directory are lost
TRIES = 5  # to open a database whose tables another process creates
CREATING = re.compile("already exists|unique|duplicate|locked", re.IGNORECASE)  # what that raises
MOST_LINE = 1 << 24  # bytes
LINE = re.compile(rb'(\{.*),"crc32":"([0-9a-f]{8})"\}\n', re.DOTALL)


def import_optuna() -> Any:
    """Optuna, which is an extra, imported at its first use.

    Raises:
        JaxlmError: It is not installed, or cannot be imported.
    """
    try:
        return import_module("optuna")
    except ImportError as error:
        raise JaxlmError(
            f"a sweep needs optuna, which cannot be imported ({error}): pip install 'jaxlm[sweep]'"
        ) from None


def is_database(where: str) -> bool:
    """Whether a storage is a database's URL, which directories may share, and no journal's path."""
    return "://" in where


def open_storage(where: str) -> Any:
    """Opens Optuna's storage.

    Args:
        where: A journal's path, or a database's URL.

    Returns:
        Optuna's `JournalStorage` or `RDBStorage`.

    Raises:
        JaxlmError: The storage cannot be used.
    """
    expected = "expected the path of a journal file, or a database's URL as in sqlite:///study.db"
    with database_errors(where, expected):
        storages = import_optuna().storages
        if not is_database(where):
            return storages.JournalStorage(Journal(Path(where)))
        # No connection is kept: servers have a hundred for all, and may restart in between.
        no_pool = import_module("sqlalchemy.pool").NullPool
        for attempt in range(1, TRIES + 1):
            try:
                database = storages.RDBStorage(
                    where,
                    engine_kwargs={"poolclass": no_pool},
                    heartbeat_interval=BEAT,
                    grace_period=SILENCE,
                )
                return storages.get_storage(database)  # with Optuna's cache of finished trials
            except Exception as error:
                if attempt == TRIES or not CREATING.search(str(error)):
                    raise
            time.sleep(1)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def database_errors(
    where: str, remedy: str = "what was trained is whole; fix that, then resume with --resume"
) -> Iterator[None]:
    """Turns an error of Optuna, a driver or a damaged file into one JaxlmError; hides warnings.

    Args:
        where: The storage, which the error names without its password.
        remedy: What to do.
    """
    logging = import_optuna().logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, about experimental features
            yield
    except JaxlmError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # Optuna's own error names no reason
        cause = getattr(cause, "orig", None) or cause  # SQLAlchemy's quotes the whole statement
        text = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        reason = scrubbed(" ".join(text.split()), where)[:300]
        raise JaxlmError(
            f"the study in {without_password(where)} cannot be used ({reason}): {remedy}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)


class Journal:
    """A backend of Optuna's `JournalStorage` in a file: one JSON object a line, with its CRC.

    Optuna's own `JournalFileBackend` reads the file too, but after a torn line, as a killed process
    or a full disk leaves it, nobody can use the study again. This backend cuts such a line, finds a
    changed one by its CRC, holds the kernel's lock, which ends with its process, and never opens
    the file through a link.
    """

    def __init__(self, path: Path):
        """Makes the file where it is missing."""
        self._path = path
        self._lines = 0  # lines read so far
        self._end = 0  # where they end, in bytes
        with Folder.open(path.parent) as folder, folder.append(path.name):
            folder.sync()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Reads the records that were not read yet; an unfinished line is left for the next call.

        Args:
            log_number_from: Which record Optuna asks for: the first that was not read yet.

        Yields:
            The records.

        Raises:
            JaxlmError: A line is damaged, or the file became shorter.
        """
        with Folder.open(self._path.parent) as folder, folder.reader(self._path.name) as file:
            if os.fstat(file.fileno()).st_size < self._end:
                raise JaxlmError(
                    f"{self._path} became shorter while it was in use: put the whole file back, "
                    f"then resume"
                )
            file.seek(self._end)
            while True:
                line = file.readline(MOST_LINE)
                if not line.endswith(b"\n") and len(line) < MOST_LINE:
                    return
                match = LINE.fullmatch(line)
                if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
                    raise JaxlmError(
                        f"{self._path} line {self._lines + 1} is damaged, or is not a sweep's: put "
                        f"an intact copy of the file in its place, or begin another sweep (the "
                        f"runs that there are stay whole)"
                    )
                self._lines += 1
                self._end = file.tell()
                yield json.loads(match[1] + b"}")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records durably, after cutting an unfinished last line.

        Raises:
            OSError: The file was removed, or cannot be written.
        """
        lines = b""
        for log in logs:
            body = json.dumps(log, separators=(",", ":")).encode()
            lines += body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body)
        with Folder.open(self._path.parent) as folder:
            if not folder.exists(self._path.name):
                raise FileNotFoundError(2, "it was removed while it was in use", str(self._path))
            with folder.append(self._path.name) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _cut_unfinished_line(file.fileno())
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())


def _cut_unfinished_line(file: int) -> None:
    """Cuts off what stands behind the last end of a line, where a writer was killed."""
    size = os.fstat(file).st_size
    if size == 0 or os.pread(file, 1, size - 1) == b"\n":
        return
    start = max(0, size - MOST_LINE)
    tail = os.pread(file, MOST_LINE, start)
    os.ftruncate(file, start + tail.rfind(b"\n") + 1)
