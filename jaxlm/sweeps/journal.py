"""A journal file for Optuna's study: one JSON object a line, each with the CRC of its bytes.

Optuna's own reader reads it too. Here a line that was changed is found, and a line that a killed writer or a full disk
left unfinished at the end is cut before another follows it. Writers take turns by the kernel's lock on the file.
"""

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import JaxlmError
from jaxlm.files import Folder

MOST_LINE = 1 << 24  # bytes
_BEGIN = b'{"op_code":'  # of every line
_LINE = re.compile(rb'(\{.*),"crc32":"([0-9a-f]{8})"\}\n', re.DOTALL)


class Journal:
    """Optuna's backend of a `JournalStorage` (`optuna.storages.journal.BaseJournalBackend`), in a file.

    The file is not opened through a link, and is made where it is missing. Every method raises OSError where it cannot
    be used, and JaxlmError, with its name and the line, where it is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._starts = [0]  # where each known line begins, and the next
        with self._locked(create=True):
            pass

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The records from a number on; a line that is not complete yet is left for the next call."""
        found = []
        with Folder.open(self._path.parent) as folder, folder.reader(self._path.name) as file:
            if os.fstat(file.fileno()).st_size < self._starts[-1]:
                raise JaxlmError(
                    f"{self._path} became shorter while it was in use: put the whole file back, then resume"
                )
            first = min(log_number_from, len(self._starts) - 1)
            file.seek(self._starts[first])
            for number in count(first):
                line = file.readline(MOST_LINE)
                if not line.endswith(b"\n") and len(line) < MOST_LINE:
                    break
                record = self._record(line, number)
                if number >= log_number_from:
                    found.append(record)
                if number + 1 == len(self._starts):
                    self._starts.append(file.tell())
        return found

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records durably, each wholly or not at all."""
        with self._locked() as (file, end):
            for log in logs:
                body = json.dumps(log, separators=(",", ":")).encode()
                line = body[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(body)
                try:
                    left = memoryview(line)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), end)
                    raise
                end += len(line)

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        match = _LINE.fullmatch(line)
        if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
            raise JaxlmError(
                f"{self._path} line {number + 1} is damaged, or is not a sweep's: put an intact copy of "
                f"the file in its place, or begin another sweep (the runs that there are stay whole)"
            )
        return json.loads(match[1] + b"}")

    @contextmanager
    def _locked(self, create: bool = False) -> Iterator[tuple[BinaryIO, int]]:
        """The file, held by its lock, and its end, after an unfinished last line was cut."""
        with Folder.open(self._path.parent) as folder:
            if not create and not folder.exists(self._path.name):
                raise FileNotFoundError(2, "it was removed while it was in use", str(self._path))
            with folder.append(self._path.name, buffering=0) as file:
                if create:
                    folder.sync()
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file, self._whole(file)

    def _whole(self, file: BinaryIO) -> int:
        """The bytes of the lines that have an end; an unfinished one after them is cut, if this is a journal."""
        size = end = os.fstat(file.fileno()).st_size
        while end:  # search backwards for the last line's end
            if end < size - MOST_LINE:
                raise JaxlmError(
                    f"{self._path} ends with {size - end:,} bytes that are no line of a sweep's journal: "
                    f"put an intact copy of the file in its place, or name another --storage"
                )
            start = max(0, end - (1 << 16))
            file.seek(start)
            place = (file.read(end - start) or b"").rfind(b"\n")
            end = start if place < 0 else start + place + 1
            if place >= 0:
                break
        begin = os.pread(file.fileno(), MOST_LINE if end and self._starts == [0] else len(_BEGIN), 0)
        if end and self._starts == [0]:
            self._record(begin[: begin.find(b"\n") + 1], 0)
        elif not end and not _BEGIN.startswith(begin.rstrip(b"\0")):
            raise JaxlmError(f"{self._path} is not a sweep's journal: name another --storage")
        if end < size:
            os.ftruncate(file.fileno(), end)
        return end
