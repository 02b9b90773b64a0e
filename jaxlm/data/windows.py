"""Windows: the stream of ids as `[N // B, B]`, and the rows of it that each step reads.

Which rows a step reads is a function of the step alone, so that no iterator has a state to save.
"""

import mmap
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.base.errors import DataError

MOST_WINDOWS = 2**31 - 1  # of a run: the step counts them in int32
DRAWN_AT_ONCE = 4096  # lengths; another number draws others


class Windows(NamedTuple):
    """Where the windows of one call lie; each field is an array with one value per window.

    Attributes:
        row: The row, of the tokens at hand, where the window's inputs begin.
        epoch: The epoch, from 0.
        first: Whether the window is the first of its epoch.
        total: The windows of all epochs.
        length: With random lengths, the steps that count; None: all steps.
        rate: With random lengths, the factor on the learning rate.
        offsets: With rolled rows, the token that each row of the batch begins with [W, B].
    """

    row: Any
    epoch: Any
    first: Any
    total: Any
    length: Any = None
    rate: Any = None
    offsets: Any = None


@dataclass(frozen=True)
class RandomLengths:
    """Window lengths from a normal distribution around T or, sometimes, T / 2.

    This is AWD-LSTM's schedule (Merity et al. 2018, arXiv:1708.02182).

    Attributes:
        nominal: T, the length that the learning rate is meant for.
        short_probability: The probability that a length is drawn around T / 2.
        deviation: The standard deviation of the lengths.
        shortest: Shorter draws become this long.
        longest: Longer draws become this long, and all windows are padded to it.
        seed: The epoch is folded into it, so that an epoch's lengths follow from its number alone.
        as_published: An epoch ends as in the published code, which drops a last window of one
            prediction, and computes the rate of a last window that is cut short from the length
            that was drawn.
    """

    nominal: int
    short_probability: float
    deviation: float
    shortest: int
    longest: int
    seed: int
    as_published: bool = False

    def draw(self, rows: int, epoch: int) -> np.ndarray:
        """Draws the lengths of an epoch's windows.

        Args:
            rows: The tokens of a row of the batch.
            epoch: The epoch, from 0.

        Returns:
            Lengths `[W]` whose sum is at least `rows`.
        """
        rng = np.random.default_rng([self.seed, epoch])
        drawn = []
        covered = 0
        while covered < rows:
            is_short = rng.random(DRAWN_AT_ONCE) < self.short_probability
            base = np.where(is_short, self.nominal / 2, self.nominal)
            # AWD-LSTM's int(). AWD-LSTM clips the short lengths only, MoS the long ones too.
            lengths = np.trunc(rng.normal(base, self.deviation))
            drawn.append(np.clip(lengths, self.shortest, self.longest).astype(np.int64))
            covered += int(drawn[-1].sum())
        return np.concatenate(drawn)


class _Epoch(NamedTuple):
    """The windows of an epoch; each field is `[W]`."""

    rows: np.ndarray  # where each begins
    lengths: np.ndarray | None = None  # None: all are T
    rates: np.ndarray | None = None  # the factor on the learning rate; None: 1


@lru_cache(maxsize=4)
def _random_epoch(
    random: RandomLengths,
    rows: int,
    epoch: int,
) -> _Epoch:
    """The windows of an epoch whose lengths are random, in rows of `rows` tokens."""
    drawn = random.draw(rows, epoch)
    starts = np.concatenate([[0], np.cumsum(drawn)])
    last = rows - 1  # the token that is only ever a target
    count = int(np.searchsorted(starts, last - random.as_published))
    starts = starts[:count]
    drawn = drawn[:count]
    lengths = np.minimum(drawn, last - starts)
    rated = drawn if random.as_published else lengths
    return _Epoch(starts, lengths, rated / random.nominal)


@dataclass(frozen=True)
class WindowPlan:
    """Which rows of `[N // B, B]` each step reads, as a function of the step alone.

    >>> plan = WindowPlan(rows=45, length=20, epochs=3)
    >>> plan.per_epoch, plan.total, plan.locate(3)  # step 3 is window 1 of epoch 1
    (2, 6, (1, 1))

    Attributes:
        rows: N // B, the tokens in each row of the batch.
        length: T, the steps of a window; of random lengths the longest.
        epochs: How many epochs are trained.
        random: The distribution of lengths; None if all are T.
        rolled: The rows B of the batch, if each begins at another token in each epoch; 0: none
            does.
        seed: Of the rolled rows.
    """

    rows: int
    length: int
    epochs: int
    random: RandomLengths | None = None
    rolled: int = 0
    seed: int = 0

    def offsets(self, epoch: int) -> np.ndarray:
        """Draws the token that each row begins with in an epoch `[rolled]`.

        The row ends with the tokens before it: partial shuffle (Press 2019, arXiv:1903.04167).

        Args:
            epoch: The epoch, from 0.
        """
        rng = np.random.default_rng([self.seed, epoch])
        return rng.integers(self.rows, size=self.rolled).astype(np.int32)

    def _epoch(self, epoch: int) -> _Epoch:
        """The windows of an epoch."""
        if self.random is None:
            return _Epoch(np.arange(self.per_epoch) * self.length)
        return _random_epoch(self.random, self.rows, epoch)

    @cached_property
    def _edges(self) -> np.ndarray:
        """The first step of each epoch, then the number of all steps `[epochs + 1]`."""
        counts = [self.windows_in(epoch) for epoch in range(self.epochs)]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def windows_in(self, epoch: int) -> int:
        """Returns how many windows an epoch has."""
        return len(self._epoch(epoch).rows)

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
        """Returns the epoch of a step, and the window's number within it, both from 0."""
        if self.random is None:
            return divmod(step, self.per_epoch)
        epoch = int(np.searchsorted(self._edges, step, side="right")) - 1
        return epoch, step - int(self._edges[epoch])

    def row(self, index: int, epoch: int = 0) -> int:
        """Returns the row where a window begins.

        Args:
            index: The window's number within its epoch.
            epoch: The epoch, from 0.
        """
        return int(self._epoch(epoch).rows[index])

    def rows_read(self, step: int) -> int:
        """Returns how many rows the windows before a step have read, summed over epochs."""
        if self.random is None:
            return step * self.length
        epoch, index = self.locate(step)
        return epoch * (self.rows - 1) + self.row(index, epoch)

    def windows(
        self,
        step: int,
        count: int,
        size: int,
        first_row: int = 0,
    ) -> Windows:
        """Returns where the windows from a step on lie, all of one epoch.

        Args:
            step: The first window.
            count: How many windows.
            size: The length of the arrays; entries behind `count` are padding.
            first_row: The row of the epoch with which the tokens at hand begin.
        """
        epoch, index = self.locate(step)
        windows = self._epoch(epoch)
        offsets = None
        if self.rolled:
            offsets = np.tile(self.offsets(epoch), (size, 1))

        def padded(column, dtype):
            if column is None:
                return None
            return np.pad(column[index : index + count].astype(dtype), (0, size - count))

        return Windows(
            row=padded(windows.rows - first_row, np.int32),
            epoch=np.full(size, epoch, np.int32),
            first=np.arange(index, index + size) == 0,
            total=np.full(size, self.total, np.int32),
            length=padded(windows.lengths, np.int32),
            rate=padded(windows.rates, np.float32),
            offsets=offsets,
        )


def batch(
    ids: np.ndarray,
    batch_size: int,
    rows: slice = slice(None),
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """Cuts ids into the rows of a batch, time-major, and drops the rest.

    A memory-mapped file is read by calls instead of through its map: pages of the map would stay in
    memory, and a file that was cut short would end the process.

    Args:
        ids: The ids of a split `[N]`.
        batch_size: B, the number of rows, of N // B ids each.
        rows: Which rows of the batch to return.
        start: The first id of each row.
        stop: The id behind the last one of each row; None for the end.

    Returns:
        The ids, int32 `[stop - start, rows]`.

    Raises:
        DataError: The file cannot be read any more.
    """
    length = len(ids) // batch_size
    wanted = range(batch_size)[rows]
    stop = length if stop is None else min(stop, length)
    pieces = np.empty((len(wanted), stop - start), ids.dtype)
    places = [row * length + start for row in wanted]
    if isinstance(ids, np.memmap) and isinstance(ids.base, mmap.mmap):  # not a view of a map
        offsets = [ids.offset + place * ids.itemsize for place in places]
        _read(Path(str(ids.filename)), pieces, offsets)
    else:
        for piece, place in zip(pieces, places, strict=True):
            piece[:] = ids[place : place + stop - start]
    return np.ascontiguousarray(pieces.T, np.int32)


def num_windows(length: int, bptt_length: int) -> int:
    """Returns how many windows an epoch has.

    Args:
        length: The tokens of a row; the last one is only ever a target.
        bptt_length: T, the steps of a window.
    """
    return (length - 1) // bptt_length


def check_fits(
    split: str,
    tokens: int,
    batch_size: int,
    bptt_length: int,
    epochs: int = 0,
) -> None:
    """Checks that a split has a window, and all epochs no more windows than a run can count.

    Args:
        split: The split's name.
        tokens: How many tokens it has.
        batch_size: B, the rows of the batch.
        bptt_length: T, the steps of a window.
        epochs: How many epochs are trained.

    Raises:
        DataError: There are too few windows, or too many.
    """
    windows = num_windows(tokens // batch_size, bptt_length)
    if windows * epochs > MOST_WINDOWS:
        raise DataError(
            f"{epochs:,} epochs of {windows:,} windows exceed the {MOST_WINDOWS:,} that a run "
            "counts: lower epochs"
        )
    if windows < 1:
        raise DataError(
            f"the {split} split has {tokens:,} tokens, fewer than one window of batch_size "
            f"{batch_size} x (bptt_length {bptt_length} + 1) = {batch_size * (bptt_length + 1):,}: "
            "lower batch_size or bptt_length, or use more text"
        )


def _read(
    path: Path,
    rows: np.ndarray,
    offsets: list[int],
) -> None:
    """Fills each row from its offset in a file. Raises DataError where there are fewer bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            sizes = [
                os.preadv(file.fileno(), [row], offset)
                for row, offset in zip(rows, offsets, strict=True)
            ]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read any more: {error.strerror or error}; fix that, then resume"
        ) from None
    if sizes != [row.nbytes for row in rows]:
        raise DataError(
            f"{path} became shorter while it was in use: prepare its text again, then resume"
        )
