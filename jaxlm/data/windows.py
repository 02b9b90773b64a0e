"""ids -> [N // B, B], and which window a step reads: a batch is a function of the step."""

import mmap
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxlm.errors import DataError

Integer = TypeVar("Integer")


def batch(ids: np.ndarray, batch_size: int, rows: slice = slice(None), start: int = 0, stop: int | None = None
          ) -> np.ndarray:
    """The stream [N] cut into B rows of N // B, time-major: int32 [N // B, B]; what is left over is dropped.

    With `rows` only those of the B come back, and with `start` and `stop` only these steps of them. Of a
    memory-mapped file nothing else is read, and that from the file itself: the map's pages would stay in this
    process's memory, and a file that was cut short would end it. Raises DataError where such a file cannot be read.
    """
    length, wanted = len(ids) // batch_size, range(batch_size)[rows]
    stop = length if stop is None else min(stop, length)
    pieces = np.empty((len(wanted), stop - start), ids.dtype)
    places = [row * length + start for row in wanted]
    if isinstance(ids, np.memmap) and isinstance(ids.base, mmap.mmap):  # the whole map, and no view of it
        _read(Path(str(ids.filename)), pieces, [ids.offset + place * ids.itemsize for place in places])
    else:
        for piece, place in zip(pieces, places, strict=True):
            piece[:] = ids[place:place + stop - start]
    return np.ascontiguousarray(pieces.T, np.int32)


def num_windows(length: int, bptt_length: int) -> int:
    """Windows in an epoch over rows of `length` tokens; the last token of all is only ever a target."""
    return (length - 1) // bptt_length


def locate(step: Integer, windows: Any) -> tuple[Integer, Integer]:
    """(epoch, window within it) of a step, all from 0; works on traced integers too."""
    return step // windows, step % windows  # type: ignore[operator]


def check_fits(split: str, tokens: int, batch_size: int, bptt_length: int) -> None:
    """Raises DataError where a split has no whole window."""
    if num_windows(tokens // batch_size, bptt_length) < 1:
        raise DataError(
            f"the {split} split has {tokens:,} tokens, fewer than one window of batch_size {batch_size} x "
            f"(bptt_length {bptt_length} + 1) = {batch_size * (bptt_length + 1):,}: "
            f"lower batch_size or bptt_length, or use more text")


def _read(path: Path, pieces: np.ndarray, offsets: list[int]) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            whole = all(os.preadv(file.fileno(), [piece], at) == piece.nbytes
                        for piece, at in zip(pieces, offsets, strict=True))
    except OSError as error:
        raise DataError(f"{path} cannot be read any more: {error.strerror or error}; mend that, then resume") from None
    if not whole:
        raise DataError(f"{path} became shorter while it was in use: prepare its text again, then resume")
