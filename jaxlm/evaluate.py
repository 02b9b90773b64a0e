"""Summed nats and counts over a stream of tokens; whoever prints divides them, once."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
                bptt_length: int = 1) -> tuple[float, int]:
    """(summed nats, predictions) over ids [N] cut into B rows, the carry passed on throughout, no dropout.

    With bptt_length T each row predicts whole windows of T only, as TensorFlow's validation does; with the
    default every token but the first of a row is predicted: 82,429 of Penn Treebank's test at B = 1.
    Raises DataError where there is nothing to predict.
    """
    tokens, predictions, length = _prepare(ids, batch_size, bptt_length)
    sums = _nats_per_window(params, hyper, tokens, jnp.int32(predictions), length=length)
    return float(np.asarray(sums, np.float64).sum()), predictions * batch_size


def members_nats(params: model.Params, hypers: Hyper, ids: np.ndarray, batch_size: int = 1,
                 bptt_length: int = 1) -> tuple[list[float], int]:
    """`stream_nats` of M members at once, whose params and hypers have an axis M: (each one's nats, predictions)."""
    tokens, predictions, length = _prepare(ids, batch_size, bptt_length)
    sums = _nats_per_member(params, hypers, tokens, jnp.int32(predictions), length=length)
    return np.asarray(sums, np.float64).sum(1).tolist(), predictions * batch_size


def _prepare(ids: np.ndarray, batch_size: int, bptt_length: int) -> tuple[jax.Array, int, int]:
    """Tokens [W * length + 1, B], padded; the predictions of each row; and the length of a window."""
    tokens = batch(ids, batch_size)
    predictions = num_windows(len(tokens), bptt_length) * bptt_length
    if predictions < 1:
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least "
                        f"{batch_size * (bptt_length + 1):,}, batch_size {batch_size} x ({bptt_length} + 1)")
    length = min(predictions, max(1, PREDICTIONS_PER_WINDOW // batch_size))
    windows = -(-predictions // length)
    tokens = np.pad(tokens[:predictions + 1], ((0, windows * length - predictions), (0, 0)))
    return jnp.asarray(tokens), predictions, length


@partial(jax.jit, static_argnames="length")
def _nats_per_window(params, hyper, tokens, predictions, *, length):
    """Summed nats of each window of `length` rows of tokens [W * length + 1, B], the first `predictions` counted."""

    def step(carry, start):
        rows = lax.dynamic_slice_in_dim(tokens, start, length + 1)
        nats, carry = eval_step(params, hyper, Window(rows[:-1], rows[1:]), carry)
        counted = start + jnp.arange(length) < predictions
        return carry, jnp.where(counted[:, None], nats, 0).sum()

    starts = jnp.arange(0, tokens.shape[0] - 1, length)
    return lax.scan(step, model.zero_carry(params, tokens.shape[1]), starts)[1]


@partial(jax.jit, static_argnames="length")
def _nats_per_member(params, hypers, tokens, predictions, *, length):
    one = partial(_nats_per_window, length=length)
    return jax.vmap(one, in_axes=(0, 0, None, None))(params, hypers, tokens, predictions)
