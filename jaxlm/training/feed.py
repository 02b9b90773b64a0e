"""The tokens that each call trains on: a whole epoch on the device, or slabs of it, read ahead from a file."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np

from jaxlm.config.config import TrainConfig
from jaxlm.data.windows import batch
from jaxlm.distributed import mesh as parallel

Take = Callable[[int, int], tuple[jax.Array, int]]
Put = Callable[[tuple[int, int], Callable[[slice], np.ndarray]], jax.Array]
ONE_DEVICE: Put = partial(parallel.put_rows, None)


@contextmanager
def feed(ids: np.ndarray, counts: TrainConfig, put: Put = ONE_DEVICE) -> Iterator[Take]:
    """Yields `take(index, then)`: tokens with an epoch's windows from `index` on, and the window that they begin with.

    Of ids [N] in memory the tokens are all of [N // B, B], put on the device once. Of a memory-mapped file they are
    [windows_per_call * T + 1, B], padded at the epoch's end, so that nothing compiles anew; while one slab is in use
    a thread reads that from window `then` on and puts it on the device. `put(shape, read)` brings tokens there, and
    asks `read` for the rows of the batch that it needs: a process among many for its own. Raises DataError.
    """
    T, B = counts.bptt_length, counts.batch_size
    if not isinstance(ids, np.memmap):
        whole = put((len(ids) // B, B), lambda rows: batch(ids, B, rows))
        yield lambda index, then: (whole, 0)
        return

    height = counts.windows_per_call * T + 1

    def slab(index: int) -> jax.Array:
        def read(rows: slice) -> np.ndarray:
            found = batch(ids, B, rows, index * T, index * T + height)
            return np.pad(found, ((0, height - len(found)), (0, 0)))

        return put((height, B), read)

    ahead: dict[int, Future[jax.Array]] = {}
    with ThreadPoolExecutor(1, "feed") as reader:

        def take(index: int, then: int) -> tuple[jax.Array, int]:
            found = ahead.pop(index, None) or reader.submit(slab, index)
            ahead.clear()
            ahead[then] = reader.submit(slab, then)
            return found.result(), index

        yield take
