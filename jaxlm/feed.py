"""The tokens that each call trains on: a whole epoch on the device, or slabs of it, read ahead from a file."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import TrainConfig
from jaxlm.data.batching import rows

Take = Callable[[int, int], tuple[jax.Array, int]]


@contextmanager
def feed(ids: np.ndarray, counts: TrainConfig, columns: slice = slice(None),
         put: Callable[[np.ndarray], jax.Array] = jnp.asarray) -> Iterator[Take]:
    """Yields `take(index, then)`: tokens with an epoch's windows from `index` on, and the window that they begin with.

    Of ids [N] in memory the tokens are all of [N // B, B], put on the device once. Of a memory-mapped file they are
    [windows_per_call * T + 1, B], padded at the epoch's end, so that nothing compiles anew; while one slab is in use
    a thread reads that from window `then` on and puts it on the device. `columns` are the batch's columns to read,
    and `put` brings them to the device: a process among many reads its own alone. Raises DataError.
    """
    T, B = counts.bptt_length, counts.batch_size
    length, height = len(ids) // B, counts.windows_per_call * T + 1
    if not isinstance(ids, np.memmap):
        whole = put(rows(ids, B, 0, length, columns))
        yield lambda index, then: (whole, 0)
        return

    def slab(index: int) -> jax.Array:
        found = rows(ids, B, index * T, min(index * T + height, length), columns)
        return put(np.pad(found, ((0, height - len(found)), (0, 0))))

    ahead: dict[int, Future[jax.Array]] = {}
    with ThreadPoolExecutor(1, "feed") as reader:

        def take(index: int, then: int) -> tuple[jax.Array, int]:
            found = ahead.pop(index, None) or reader.submit(slab, index)
            ahead.clear()
            ahead[then] = reader.submit(slab, then)
            return found.result(), index

        yield take
