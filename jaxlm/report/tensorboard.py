"""Scalars in TensorBoard's event files, written without protobuf.

A file is a sequence of records as TFRecord frames them (length, its checksum, data, its checksum), each an `Event`:

    Event    {double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
              SessionLog session_log = 7}
    Summary  {repeated Value value = 1}     Value {string tag = 1; float simple_value = 2}
    SessionLog {enum status = 1}

Sources: TensorFlow's event.proto, summary.proto and lib/io/record_writer.h.
"""

import struct
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np

from jaxlm.crc32c import crc32c, masked
from jaxlm.files import Folder, reason

_SESSION_START = 1


def record(data: bytes) -> bytes:
    """Data in a TFRecord frame."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def version_event(wall_time: float) -> bytes:
    """The `Event` that begins a file; wall_time in seconds since 1970."""
    return _event(wall_time, 0) + _bytes(3, b"brain.Event:2")


def start_event(wall_time: float, step: int) -> bytes:
    """The `Event` of a session's start: TensorBoard hides what earlier files hold from this step on."""
    return _event(wall_time, step) + _bytes(7, _integer(1, _SESSION_START))


def scalars_event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """The `Event` of a step's scalars, by tag; as float32, so that a value beyond its range is infinite."""
    with np.errstate(over="ignore"):
        numbers = np.array([*values.values()], "<f4").tobytes()
    summary = [
        _bytes(1, _bytes(1, tag.encode()) + b"\x15" + numbers[at : at + 4])
        for tag, at in zip(values, range(0, len(numbers), 4), strict=True)
    ]
    return _event(wall_time, step) + _bytes(5, b"".join(summary))


class TensorBoard:
    """An event file of its own in a run's `tensorboard` folder; a failure ends it with a warning, never the run.

    Args:
        run: the run directory.
        next_step: the first step that this process may log; what earlier ones logged from it on is hidden.
    """

    def __init__(self, run: Folder, next_step: int):
        self._file: BinaryIO | None = None
        try:
            stamp = time.time_ns()  # TensorBoard reads the files in the order of their names
            with run.folder("tensorboard", create=True) as folder:
                self._file = folder.append(f"events.out.tfevents.{stamp // 10**9:010}.{stamp}", buffering=0)
        except OSError as error:
            self._end(error)
        self._write([version_event(stamp / 1e9), start_event(stamp / 1e9, next_step)])

    def scalars(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Logs (step, values by tag) of any number of steps in one write."""
        if self._file:
            now = time.time()
            self._write([scalars_event(now, step, values) for step, values in rows])

    def close(self) -> None:
        """Closes the file; what is logged later is dropped."""
        file, self._file = self._file, None
        try:
            if file:
                file.close()
        except OSError as error:
            self._end(error)

    def _write(self, events: list[bytes]) -> None:
        data = memoryview(b"".join(map(record, events)))
        try:
            while self._file and data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file:
            file.close()
        warnings.warn(f"TensorBoard's log ends here, the run continues: {reason(error)}", RuntimeWarning, stacklevel=3)


def _event(wall_time: float, step: int) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + _integer(2, step)


def _bytes(field: int, data: bytes) -> bytes:
    """A field of protobuf's wire type 2: a length and so many bytes."""
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _integer(field: int, value: int) -> bytes:
    """A field of wire type 0."""
    return bytes([field << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    """A number >= 0 in groups of seven bits, the lowest first; the eighth bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _masked_crc(data: bytes) -> bytes:
    return struct.pack("<I", masked(crc32c(data)))
