"""Windows: the stream of ids as `[N // B, B]`, and the rows of it that a step reads, as a function of the step."""

import mmap
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.errors import DataError

MOST_WINDOWS = 2**31 - 1  # of a run: the step counts them in int32
DRAWN_AT_ONCE = 4096  # lengths; another number draws others


class Windows(NamedTuple):
    """Where the windows of one call lie; each field is an array with one value per window."""

    row: Any  # the row, of the tokens at hand, where the window's inputs begin
    epoch: Any  # the epoch, from 0
    first: Any  # whether the window is the first of its epoch
    total: Any  # the windows of all epochs
    length: Any = None  # random lengths: the steps that count; None: all steps
    rate: Any = None  # random lengths: the factor on the learning rate


@dataclass(frozen=True)
class RandomLengths:
    """Window lengths drawn from a normal distribution around T or, sometimes, T / 2 (AWD-LSTM, arXiv:1708.02182).

    With `as_published` an epoch ends as in the published code, which drops a last window of one prediction, and
    computes the rate of a last window that is cut short from the length that was drawn.
    """

    nominal: int  # T, the length that the learning rate is meant for
    short_probability: float  # that a length is drawn around T / 2
    deviation: float
    shortest: int  # shorter draws become this long
    longest: int  # longer draws become this long; all windows are padded to it
    seed: (
        int  # the epoch is folded into it, so that an epoch's lengths follow from its number alone
    )
    as_published: bool = False

    def draw(self, rows: int, epoch: int) -> np.ndarray:
        """The lengths `[W]` that are drawn for an epoch over rows of `rows` tokens; their sum is at least `rows`."""
        rng = np.random.default_rng([self.seed, epoch])
        parts = []
        covered = 0
        while covered < rows:
            base = np.where(
                rng.random(DRAWN_AT_ONCE) < self.short_probability, self.nominal / 2, self.nominal
            )
            drawn = np.trunc(
                rng.normal(base, self.deviation)
            )  # (AWD-LSTM's int(); it cuts off below, MoS above too)
            parts.append(np.clip(drawn, self.shortest, self.longest).astype(np.int64))
            covered += int(parts[-1].sum())
        return np.concatenate(parts)


@lru_cache(maxsize=4)
def _drawn(
    random: RandomLengths, rows: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows of an epoch: the rows where they begin, their lengths, their factors on the rate; each `[W]`."""
    drawn = random.draw(rows, epoch)
    starts = np.concatenate([[0], np.cumsum(drawn)])
    count = int(
        np.searchsorted(starts, rows - 1 - random.as_published)
    )  # the last token is only ever a target
    starts = starts[:count]
    drawn = drawn[:count]
    lengths = np.minimum(drawn, rows - 1 - starts)
    return starts, lengths, (drawn if random.as_published else lengths) / random.nominal


@dataclass(frozen=True)
class WindowPlan:
    """Which rows of `[N // B, B]` each step reads, as a function of the step alone.

    >>> plan = WindowPlan(rows=45, length=20, epochs=3)
    >>> plan.per_epoch, plan.total, plan.locate(3)  # step 3 is window 1 of epoch 1
    (2, 6, (1, 1))
    """

    rows: int  # N // B, the tokens in each row of the batch
    length: int  # T, the steps of a window; of random lengths the longest
    epochs: int
    random: RandomLengths | None = None  # None: all lengths are T

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """The windows of an epoch: their first rows; if random, their lengths and factors on the rate; each `[W]`."""
        if self.random is None:
            return np.arange(self.per_epoch) * self.length, None, None
        return _drawn(self.random, self.rows, epoch)

    @cached_property
    def _edges(self) -> np.ndarray:
        """Random lengths: the step at which each epoch begins, then the number of all steps `[epochs + 1]`."""
        counts = [self.windows_in(epoch) for epoch in range(self.epochs)]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def windows_in(self, epoch: int) -> int:
        """Windows in an epoch."""
        return len(self._epoch(epoch)[0])

    @property
    def per_epoch(self) -> int:
        """Windows in each epoch, if all windows have the same length."""
        assert self.random is None
        return num_windows(self.rows, self.length)

    @property
    def total(self) -> int:
        """Windows of all epochs."""
        if self.random is None:
            return self.epochs * self.per_epoch
        return int(self._edges[-1])

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the window's number within the epoch; both from 0."""
        if self.random is None:
            return divmod(step, self.per_epoch)
        epoch = int(np.searchsorted(self._edges, step, side="right")) - 1
        return epoch, step - int(self._edges[epoch])

    def row(self, index: int, epoch: int = 0) -> int:
        """The row where a window of an epoch begins."""
        if index:
            return int(self._epoch(epoch)[0][index])
        return 0

    def rows_read(self, step: int) -> int:
        """The rows that the windows before a step read, each epoch's anew."""
        if self.random is None:
            return step * self.length
        epoch, index = self.locate(step)
        return epoch * (self.rows - 1) + self.row(index, epoch)

    def windows(self, step: int, count: int, size: int, first_row: int = 0) -> Windows:
        """The `count` windows from a step on, all of one epoch, in arrays of `size`: the other entries are padding.

        The tokens at hand begin with `first_row` of the epoch.
        """
        epoch, index = self.locate(step)
        row, length, rate = self._epoch(epoch)

        def filled(column: np.ndarray | None, dtype: type) -> np.ndarray | None:
            if column is None:
                return None
            return np.pad(column[index : index + count].astype(dtype), (0, size - count))

        return Windows(
            row=filled(row - first_row, np.int32),
            epoch=np.full(size, epoch, np.int32),
            first=np.arange(index, index + size) == 0,
            total=np.full(size, self.total, np.int32),
            length=filled(length, np.int32),
            rate=filled(rate, np.float32),
        )


def batch(
    ids: np.ndarray,
    batch_size: int,
    rows: slice = slice(None),
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """Cuts ids `[N]` into B rows of N // B, time-major, and drops the rest; returns int32 `[stop - start, rows]`.

    A memory-mapped file is read by calls instead of through its map: pages of the map would stay in memory, and a
    file that was cut short would end the process. Raises DataError where it cannot be read.
    """
    length = len(ids) // batch_size
    wanted = range(batch_size)[rows]
    stop = length if stop is None else min(stop, length)
    pieces = np.empty((len(wanted), stop - start), ids.dtype)
    places = [row * length + start for row in wanted]
    if isinstance(ids, np.memmap) and isinstance(
        ids.base, mmap.mmap
    ):  # the whole map, and no view of it
        _read(
            Path(str(ids.filename)), pieces, [ids.offset + place * ids.itemsize for place in places]
        )
    else:
        for piece, place in zip(pieces, places, strict=True):
            piece[:] = ids[place : place + stop - start]
    return np.ascontiguousarray(pieces.T, np.int32)


def num_windows(length: int, bptt_length: int) -> int:
    """Windows in an epoch over rows of `length` tokens; the last token is only ever a target."""
    return (length - 1) // bptt_length


def check_fits(split: str, tokens: int, batch_size: int, bptt_length: int, epochs: int = 0) -> None:
    """Raises DataError if a split has no whole window, or more windows in all epochs than a run can count."""
    windows = num_windows(tokens // batch_size, bptt_length)
    if windows * epochs > MOST_WINDOWS:
        raise DataError(
            f"{epochs:,} epochs of {windows:,} windows exceed the {MOST_WINDOWS:,} that a run counts: lower epochs"
        )
    if windows < 1:
        least = f"batch_size {batch_size} x (bptt_length {bptt_length} + 1) = {batch_size * (bptt_length + 1):,}"
        remedy = "lower batch_size or bptt_length, or use more text"
        raise DataError(
            f"the {split} split has {tokens:,} tokens, fewer than one window of {least}: {remedy}"
        )


def _read(path: Path, rows: np.ndarray, places: list[int]) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            whole = all(
                os.preadv(file.fileno(), [row], at) == row.nbytes
                for row, at in zip(rows, places, strict=True)
            )
    except OSError as error:
        raise DataError(
            f"{path} cannot be read any more: {error.strerror or error}; fix that, then resume"
        ) from None
    if not whole:
        raise DataError(
            f"{path} became shorter while it was in use: prepare its text again, then resume"
        )
