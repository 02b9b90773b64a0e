"""Where Optuna keeps a study: a journal file or a database. Every call into it goes through one guard."""

import fcntl
import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.files import Folder
from jaxlm.late import optuna
from jaxlm.terminal import scrubbed, without_password

BEAT = 60
SILENCE = 600  # seconds: how often a worker shows that it lives, and how long others wait for a silent one
MOST_LINE = 1 << 24  # bytes
_LINE = re.compile(rb'(\{.*),"crc32":"([0-9a-f]{8})"\}\n', re.DOTALL)


def opened(where: str) -> Any:
    """Optuna's storage at a journal's path, or at a database's URL, which directories may share.

    Raises JaxlmError if the storage cannot be used.
    """
    with database_errors(
        where, "expected the path of a journal file, or a database's URL as in sqlite:///study.db"
    ):
        if "://" not in where:
            return optuna.storages.JournalStorage(Journal(Path(where)))  # pyright: ignore[reportArgumentType]
        for left in reversed(range(5)):  # another worker may be creating the tables at this moment
            try:
                return optuna.storages.RDBStorage(
                    where, heartbeat_interval=BEAT, grace_period=SILENCE
                )
            except Exception as error:
                if not left or not re.search(
                    "already exists|unique|duplicate|locked", str(error), re.IGNORECASE
                ):
                    raise
            time.sleep(1)


@contextmanager
def database_errors(
    where: str, remedy: str = "what was trained is whole; fix that, then resume with --resume"
) -> Iterator[None]:
    """Turns an error of Optuna, of a database's driver or of a damaged file into one JaxlmError; hides warnings."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
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
        optuna.logging.set_verbosity(before)


class Journal:
    """A backend of Optuna's `JournalStorage` in a file: one JSON object a line, each with the CRC of its bytes.

    Optuna's own `JournalFileBackend` reads the file too. This one also finds a changed line (JaxlmError), cuts a line
    that a killed writer or a full disk left unfinished, and has the kernel's lock, which ends with its process. The
    file is made if it is missing, and is never opened through a link.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines = 0
        self._end = 0  # read so far, and where they end
        with Folder.open(path.parent) as folder, folder.append(path.name):
            folder.sync()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records that were not read yet, as Optuna asks for them; an unfinished line is left for the next call."""
        with Folder.open(self._path.parent) as folder, folder.reader(self._path.name) as file:
            if os.fstat(file.fileno()).st_size < self._end:
                raise JaxlmError(
                    f"{self._path} became shorter while it was in use: put the whole file back, then resume"
                )
            file.seek(self._end)
            while (line := file.readline(MOST_LINE)).endswith(b"\n") or len(line) == MOST_LINE:
                match = _LINE.fullmatch(line)
                if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
                    raise JaxlmError(
                        f"{self._path} line {self._lines + 1} is damaged, or is not a sweep's: put an intact copy of "
                        f"the file in its place, or begin another sweep (the runs that there are stay whole)"
                    )
                self._lines = self._lines + 1
                self._end = file.tell()
                yield json.loads(match[1] + b"}")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records durably, after cutting an unfinished last line."""
        bodies = [json.dumps(log, separators=(",", ":")).encode() for log in logs]
        left = b"".join(body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body) for body in bodies)
        with Folder.open(self._path.parent) as folder:
            if not folder.exists(self._path.name):
                raise FileNotFoundError(2, "it was removed while it was in use", str(self._path))
            with folder.append(self._path.name, buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file.fileno()).st_size
                if (
                    size and os.pread(file.fileno(), 1, size - 1) != b"\n"
                ):  # an unfinished last line
                    last = os.pread(file.fileno(), MOST_LINE, max(0, size - MOST_LINE))
                    os.ftruncate(file.fileno(), size - len(last) + last.rfind(b"\n") + 1)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
