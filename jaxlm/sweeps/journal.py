"""The journal file of Optuna's study: one JSON object a line, each with the CRC of its bytes.

Optuna's own reader reads it too. On top of Optuna's `JournalFileBackend` a changed line is found, a line that a killed
writer or a full disk left unfinished is cut before another follows, and the kernel's lock on the file ends with its
process.
"""

import fcntl
import json
import os
import re
import zlib
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import JaxlmError
from jaxlm.files import Folder

MOST_LINE = 1 << 24  # bytes
_LINE = re.compile(rb'(\{.*),"crc32":"([0-9a-f]{8})"\}\n', re.DOTALL)


class Journal:
    """A backend of Optuna's `JournalStorage` (`optuna.storages.journal.BaseJournalBackend`) in a file.

    The file is made if it is missing, and is never opened through a link. Every method raises OSError if the file
    cannot be used, and JaxlmError, with its name and the line, if it is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._number, self._offset = 0, 0  # lines read, and where the next begins
        with Folder.open(path.parent) as folder, folder.append(path.name):
            folder.sync()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The records from a number on. A line that is not complete yet is left for the next call."""
        if log_number_from < self._number:
            self._number, self._offset = 0, 0
        found = []
        with Folder.open(self._path.parent) as folder, folder.reader(self._path.name) as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                raise JaxlmError(
                    f"{self._path} became shorter while it was in use: put the whole file back, then resume"
                )
            file.seek(self._offset)
            for number in count(self._number):
                line = file.readline(MOST_LINE)
                if not line.endswith(b"\n") and len(line) < MOST_LINE:
                    return found
                record = self._record(line, number)
                if number >= log_number_from:
                    found.append(record)
                self._number, self._offset = number + 1, file.tell()
        return found

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records durably, all or none."""
        lines = b""
        for log in logs:
            body = json.dumps(log, separators=(",", ":")).encode()
            lines += body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body)
        with Folder.open(self._path.parent) as folder:
            if not folder.exists(self._path.name):
                raise FileNotFoundError(2, "it was removed while it was in use", str(self._path))
            with folder.append(self._path.name, buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = _cut(file)
                try:
                    left = memoryview(lines)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), end)
                    raise

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        match = _LINE.fullmatch(line)
        if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
            raise JaxlmError(
                f"{self._path} line {number + 1} is damaged, or is not a sweep's: put an intact copy of "
                f"the file in its place, or begin another sweep (the runs that there are stay whole)"
            )
        return json.loads(match[1] + b"}")


def _cut(file: BinaryIO) -> int:
    """Cuts an unfinished last line; returns the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        last = os.pread(file.fileno(), MOST_LINE, max(0, size - MOST_LINE))
        size = size - len(last) + last.rfind(b"\n") + 1
        os.ftruncate(file.fileno(), size)
    return size
