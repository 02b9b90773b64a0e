"""Summed nats and counts over a stream of tokens; whoever prints divides them, once."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxlm import parallel
from jaxlm.config import Hyper
from jaxlm.data.batching import batch, num_windows
from jaxlm.errors import DataError
from jaxlm.models import lstm as model
from jaxlm.step import Window, eval_step

PREDICTIONS_PER_WINDOW = 2048


def perplexity(nats: float, count: int) -> float:
    """exp(nats / count); inf where that overflows, nan where nats are nan."""
    return math.exp(min(nats / count, 700.0)) if count else math.nan


def stream_nats(params: model.Params, hyper: Hyper, ids: np.ndarray, batch_size: int = 1,
                bptt_length: int = 1, mesh: Mesh | None = None) -> tuple[float, int]:
    """(summed nats, predictions) over ids [N] cut into B rows, the carry passed on throughout, no dropout.

    With bptt_length T each row predicts whole windows of T only, as TensorFlow's validation does; with the
    default every token but the first of a row is predicted: 82,429 of Penn Treebank's test at B = 1.
    Raises DataError where there is nothing to predict.
    """
    predictions = num_windows(len(ids) // batch_size, bptt_length) * bptt_length
    if predictions < 1:
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least "
                        f"{batch_size * (bptt_length + 1):,}, batch_size {batch_size} x ({bptt_length} + 1)")
    length = min(predictions, max(1, PREDICTIONS_PER_WINDOW // batch_size))
    windows = -(-predictions // length)
    rows = parallel.padded_rows(mesh, batch_size)

    def read(part: slice) -> np.ndarray:
        tokens = batch(ids, batch_size, part)[:predictions + 1]
        missing = len(range(*part.indices(rows))) - tokens.shape[1]
        return np.pad(tokens, ((0, windows * length + 1 - len(tokens)), (0, missing)))

    tokens = parallel.put_rows(mesh, (windows * length + 1, rows), read)
    sums = _nats_per_window(params, hyper, tokens, jnp.int32(predictions), length=length, mesh=mesh,
                            batch_size=None if rows == batch_size else batch_size)
    return float(np.asarray(sums, np.float64).sum()), predictions * batch_size


@partial(jax.jit, static_argnames=("length", "batch_size", "mesh"))
def _nats_per_window(params, hyper, tokens, predictions, *, length, batch_size, mesh):
    """Summed nats of each window of `length` rows of tokens [W * length + 1, B], the first `predictions` counted.

    With a `batch_size` only so many of the rows are counted: the others make them divide over a mesh.
    """
    run = parallel.spread(mesh, partial(_sums, length=length, batch_size=batch_size),
                          (parallel.specs(params), parallel.ROWS, parallel.SAME, parallel.SAME), parallel.SAME)
    return run(params, tokens, hyper, predictions)


def _sums(params, tokens, hyper, predictions, *, length, batch_size):
    def step(carry, start):
        rows = lax.dynamic_slice_in_dim(tokens, start, length + 1)
        nats, carry = eval_step(params, hyper, Window(rows[:-1], rows[1:]), carry)
        counted = (start + jnp.arange(length) < predictions)[:, None]
        if batch_size is not None:
            counted &= parallel.first_row(B) + jnp.arange(B) < batch_size
        return carry, jnp.where(counted, nats, 0).sum()

    B = tokens.shape[1]
    starts = jnp.arange(0, tokens.shape[0] - 1, length)
    return parallel.sum_over_data(lax.scan(step, model.zero_carry(params, B), starts)[1])
