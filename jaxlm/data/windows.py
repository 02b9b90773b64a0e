"""ids -> [N // B, B], and which window a step reads: a window is a function of the step."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.errors import DataError

MOST_WINDOWS = 2**31 - 1  # of a run: the step counts them in int32


class Windows(NamedTuple):
    """Where the windows of one call lie; each an array with one value per window."""

    row: Any  # of the tokens at hand, where the window's inputs begin
    epoch: Any  # from 0
    first: Any  # whether it is the first of its epoch
    total: Any  # windows of all epochs


@dataclass(frozen=True)
class WindowPlan:
    """Which rows of [N // B, B] each step reads, as a function of the step alone.

    Attributes:
      rows: N // B, the tokens in each row of the batch.
      length: steps T of a window.
      epochs: passes over the tokens.
    """

    rows: int
    length: int
    epochs: int

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch; the last token of all is only ever a target."""
        return num_windows(self.rows, self.length)

    @property
    def total(self) -> int:
        """Windows of all epochs."""
        return self.epochs * self.per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, window within it) of a step, all from 0."""
        return divmod(step, self.per_epoch)

    def row(self, index: int) -> int:
        """The row where a window of an epoch begins."""
        return index * self.length

    def windows(self, step: int, count: int, size: int, first_row: int = 0) -> Windows:
        """The `count` windows from a step on, all of one epoch.

        Args:
          step: the first window's.
          count: how many.
          size: the length of the arrays that come back, of which the first `count` entries are filled.
          first_row: the row of the epoch with which the tokens at hand begin.
        """
        epoch, index = self.locate(step)
        row = np.zeros(size, np.int32)
        row[:count] = [self.row(one) - first_row for one in range(index, index + count)]
        first = np.zeros(size, bool)
        first[:1] = index == 0
        return Windows(row, np.full(size, epoch, np.int32), first, np.full(size, self.total, np.int32))


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


def check_fits(split: str, tokens: int, batch_size: int, bptt_length: int, epochs: int = 0) -> None:
    """Raises DataError where a split has no whole window, or too many in all of its epochs."""
    if (windows := num_windows(tokens // batch_size, bptt_length)) * epochs > MOST_WINDOWS:
        raise DataError(f"{epochs:,} epochs of {windows:,} windows are more than the {MOST_WINDOWS:,} that a run "
                        f"counts: lower epochs")
    if windows < 1:
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
        raise DataError(f"{path} cannot be read any more: {error.strerror or error}; fix that, then resume") from None
    if not whole:
        raise DataError(f"{path} became shorter while it was in use: prepare its text again, then resume")
