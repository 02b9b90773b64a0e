"""Summed nats and counts over a stream of tokens; whoever prints divides them, once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxlm.data.windows import batch, num_windows
from jaxlm.distributed.mesh import put_rows
from jaxlm.errors import DataError
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import Network

PREDICTIONS_PER_WINDOW = 2048
PREDICTIONS_PER_CALL = 1 << 22  # so that no more of a large split lies in memory at once


def eval_step(
    model: Recurrent, params: Params, inputs: jax.Array, targets: jax.Array, carry: Carry
) -> tuple[jax.Array, Carry]:
    """Nats of each target and the new carry, in float32 and without noise.

    Inputs, targets and nats are [T, B]; the carry is that of the window before, or `zero_carry`.
    """
    network = Network(model, params)
    features, carry = network.features(inputs, carry)
    return network.token_nats(features, targets), carry


def stream_nats(
    model: Recurrent,
    params: Params,
    ids: np.ndarray,
    batch_size: int = 1,
    bptt_length: int = 1,
    mesh: Mesh | None = None,
    members: bool = False,
) -> tuple[Any, int]:
    """(summed nats, predictions) over ids [N] cut into B rows, the carry passed on throughout, no dropout.

    With bptt_length T each row predicts whole windows of T only, as TensorFlow's validation does; with the default
    every token but the first of a row is predicted: 82,429 of Penn Treebank's test at B = 1. The devices of a mesh
    share the rows and the vocabulary; parameters lie where `place` puts them. The model and the parameters of
    `members` have an axis M, and so have their nats. Raises DataError where there is nothing to predict.
    """
    predictions = num_windows(len(ids) // batch_size, bptt_length) * bptt_length
    if predictions < 1:
        least = f"{batch_size * (bptt_length + 1):,}, batch_size {batch_size} x ({bptt_length} + 1)"
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least {least}")
    length = min(predictions, max(1, PREDICTIONS_PER_WINDOW // batch_size))
    windows = -(-predictions // length)
    calls = -(-windows * length * batch_size // PREDICTIONS_PER_CALL)
    height = -(-windows // calls) * length
    carry = None
    sums = []
    for start in range(0, predictions, height):

        def read(part: slice, start: int = start) -> np.ndarray:
            tokens = batch(ids, batch_size, part, start, min(start + height, predictions) + 1)
            return np.pad(tokens, ((0, height + 1 - len(tokens)), (0, 0)))

        tokens = put_rows(mesh, (height + 1, batch_size), read)
        count = np.int32(min(predictions - start, height))
        carry, nats = _nats_per_window(
            model, params, tokens, count, carry, length=length, members=members
        )
        sums.append(np.asarray(nats, np.float64))
    nats = np.concatenate(sums, -1).sum(-1)
    return nats if members else float(nats), predictions * batch_size


@partial(jax.jit, static_argnames=("length", "members"))
def _nats_per_window(model, params, tokens, predictions, carry, *, length, members):
    """The carry, and summed nats of each window of `length` rows of tokens [W * length + 1, B], of which the first
    `predictions` count; without a carry, from zero.
    """

    def read(model, params, carry):
        def step(carry, start):
            rows = lax.dynamic_slice_in_dim(tokens, start, length + 1)
            nats, carry = eval_step(model, params, rows[:-1], rows[1:], carry)
            counted = (start + jnp.arange(length) < predictions)[:, None]
            return carry, jnp.where(counted, nats, 0).sum()

        starts = jnp.arange(0, tokens.shape[0] - 1, length)
        return lax.scan(
            step, Network(model, params).carry(tokens.shape[1]) if carry is None else carry, starts
        )

    return (jax.vmap(read) if members else read)(model, params, carry)
