"""The tokens that each call trains on: a whole epoch on the device, or slabs of it, read ahead from a file."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from jaxlm.config.settings import TrainConfig
from jaxlm.data.windows import batch
from jaxlm.distributed.mesh import put_rows

Take = Callable[[int, int], tuple[Integer[Array, "R B"], int]]


@contextmanager
def feed(ids: Integer[np.ndarray, " N"], counts: TrainConfig, mesh: Mesh | None = None) -> Iterator[Take]:
    """Yields `take(row, then)`: tokens from a row of [N // B, B] on or from before it, and the row they begin with.

    Of ids in memory the tokens are all of [N // B, B], put on the device once. Of a memory-mapped file they are
    [windows_per_call * T + 1, B] for the longest window's T, padded at the epoch's end, so that nothing compiles anew;
    while one slab is in use a thread reads that from row `then` on and puts it on the device.

    Devices of a mesh have the batch's rows that `put_rows` gives them, and a process reads no others. `take` raises
    DataError where the file cannot be read any more.
    """
    T, B = counts.longest, counts.batch_size
    if not isinstance(ids, np.memmap):
        whole = put_rows(mesh, (len(ids) // B, B), lambda rows: batch(ids, B, rows))
        yield lambda row, then: (whole, 0)
        return

    height = counts.windows_per_call * T + 1

    def slab(row: int) -> Integer[Array, "R B"]:
        def read(rows: slice) -> np.ndarray:
            found = batch(ids, B, rows, row, row + height)
            return np.pad(found, ((0, height - len(found)), (0, 0)))

        return put_rows(mesh, (height, B), read)

    ahead: dict[int, Future[Array]] = {}
    with ThreadPoolExecutor(1, "feed") as reader:

        def take(row: int, then: int) -> tuple[Integer[Array, "R B"], int]:
            found = ahead.pop(row, None) or reader.submit(slab, row)
            ahead.clear()
            ahead[then] = reader.submit(slab, then)
            return found.result(), row

        yield take
