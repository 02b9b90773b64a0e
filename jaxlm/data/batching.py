"""ids -> [N // B, B], and which window a step reads: a batch is a function of the step."""

from typing import TypeVar

import numpy as np

from jaxlm.errors import DataError

Integer = TypeVar("Integer")


def batch(ids: np.ndarray, batch_size: int, rows: slice = slice(None)) -> np.ndarray:
    """The stream [N] cut into B rows of N // B, time-major: [N // B, B]; what is left over is dropped.

    With `rows` only those of the B are read, and come back.
    """
    length = len(ids) // batch_size
    return np.ascontiguousarray(ids[:length * batch_size].reshape(batch_size, length)[rows].T)


def num_windows(length: int, bptt_length: int) -> int:
    """Windows in an epoch over rows of `length` tokens; the last token of all is only ever a target."""
    return (length - 1) // bptt_length


def locate(step: Integer, windows: int) -> tuple[Integer, Integer]:
    """(epoch, window within it) of a step, all from 0; works on traced integers too."""
    return step // windows, step % windows  # type: ignore[operator]


def check_fits(split: str, tokens: int, batch_size: int, bptt_length: int) -> None:
    """Raises DataError where a split has no whole window."""
    if num_windows(tokens // batch_size, bptt_length) < 1:
        raise DataError(
            f"the {split} split has {tokens:,} tokens, fewer than one window of batch_size {batch_size} x "
            f"(bptt_length {bptt_length} + 1) = {batch_size * (bptt_length + 1):,}: "
            f"lower batch_size or bptt_length, or use more text")
