"""Summed nats and counts over a stream of tokens; whoever prints divides them, once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxlm.base.errors import DataError
from jaxlm.config.protocols import Plain
from jaxlm.data.windows import batch, num_windows
from jaxlm.distributed.mesh import put_rows
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring.reading import ModelReader, OneStream
from jaxlm.scoring.token_scores import NATS_ALONE, Network, Reader, Tokens

PREDICTIONS_PER_WINDOW = 2048
# Bounds how much of a large split lies in memory at once.
PREDICTIONS_PER_CALL = 1 << 22
# Tokens that a reader of one row is given at a time.
BLOCK = 1 << 16


def eval_step(
    model: Recurrent,
    params: Params,
    inputs: Array,
    targets: Array,
    carry: Carry,
) -> tuple[Array, Carry]:
    """Evaluates one window, in float32 and without noise.

    Args:
        model: The model section of a config.
        params: Its parameters.
        inputs: Ids that are read, int32 [T, B].
        targets: Ids to predict, int32 [T, B].
        carry: The carry of the window before, or `zero_carry`.

    Returns:
        The nats of each target [T, B], and the new carry.
    """
    tokens = Tokens(inputs, targets, jnp.ones(inputs.shape, bool))
    return _plain_reader(model, params).nats_of_all(carry, tokens)


def stream_nats(
    model: Recurrent,
    params: Params,
    ids: np.ndarray,
    batch_size: int = 1,
    bptt_length: int = 1,
    mesh: Mesh | None = None,
    members: bool = False,
) -> tuple[Any, int]:
    """The nats of a stream by a model's own probabilities, without dropout.

    Args:
        model: The model section of a config; of `members`, with an axis M.
        params: Its parameters, where `place` puts them; of `members`, with an axis M.
        ids: The stream [N], int32.
        batch_size: As `windowed_nats` takes it.
        bptt_length: As `windowed_nats` takes it.
        mesh: As `windowed_nats` takes it.
        members: As `windowed_nats` takes it.

    Returns:
        Summed nats, of `members` [M], and the number of predictions.

    Raises:
        DataError: There is nothing to predict.
    """
    reader = _plain_reader(model, params)
    return windowed_nats(reader, ids, batch_size, bptt_length, mesh, members)


def _plain_reader(model: Recurrent, params: Params) -> ModelReader:
    return ModelReader(Network(model, params), Plain())


def windowed_nats(
    reader: Reader,
    ids: np.ndarray,
    batch_size: int = 1,
    bptt_length: int = 1,
    mesh: Mesh | None = None,
    members: bool = False,
) -> tuple[Any, int]:
    """The nats of a stream that is cut into rows, the state passed on from window to window.

    Args:
        reader: A reader whose segments may have any length.
        ids: The stream [N], int32.
        batch_size: Rows B that the stream is cut into.
        bptt_length: Each row predicts whole windows of T tokens only, as TensorFlow's validation
            does. With 1 every token but the first of a row is predicted: 82,429 of Penn Treebank's
            test split at B = 1.
        mesh: Devices that share the rows and the vocabulary; None: one device.
        members: Whether the arrays of the reader have an axis M of models side by side.

    Returns:
        Summed nats, of `members` [M], and the number of predictions.

    Raises:
        DataError: There is nothing to predict.
    """
    predictions = num_windows(len(ids) // batch_size, bptt_length) * bptt_length
    if predictions < 1:
        rows = f"batch_size {batch_size} x ({bptt_length} + 1)"
        least = f"{batch_size * (bptt_length + 1):,}, {rows}"
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least {least}")
    length = min(predictions, max(1, PREDICTIONS_PER_WINDOW // batch_size))
    windows = -(-predictions // length)
    calls = -(-windows * length * batch_size // PREDICTIONS_PER_CALL)
    height = -(-windows // calls) * length
    state = None
    sums = []
    for start in range(0, predictions, height):
        stop = min(start + height, predictions)

        def padded_rows(rows: slice, start: int = start, stop: int = stop) -> np.ndarray:
            tokens = batch(ids, batch_size, rows, start, stop + 1)
            return np.pad(tokens, ((0, height + 1 - len(tokens)), (0, 0)))

        tokens = put_rows(mesh, (height + 1, batch_size), padded_rows)
        count = np.int32(stop - start)
        state, nats = _nats_per_window(reader, tokens, count, state, length=length, members=members)
        sums.append(np.asarray(nats, np.float64))
    nats = np.concatenate(sums, -1).sum(-1)
    if not members:
        nats = float(nats)
    return nats, predictions * batch_size


def reader_nats(reader: Reader, ids: np.ndarray) -> np.ndarray:
    """The nats of a stream that is read as one row by any reader, in constant memory.

    Args:
        reader: The protocol and its model.
        ids: The stream [N], N >= 2.

    Returns:
        Summed nats of every token but the first, a scalar; of a `GridReader` [G1, G2, ...].
    """
    scoring = OneStream(reader, NATS_ALONE)
    total = np.zeros(())
    for start in range(0, len(ids) - 1, BLOCK):
        block = batch(ids, 1, start=start, stop=start + BLOCK + 1)[:, 0]
        total = total + scoring([block]).nats.sum(0, dtype=float)
    return total


@partial(jax.jit, static_argnames=("length", "members"))
def _nats_per_window(
    reader,
    tokens,
    predictions,
    state,
    *,
    length,
    members,
):
    """The state, and the summed nats of each window of `length` rows of tokens [W * length + 1, B].

    The first `predictions` rows count. Without a state it begins with the first.
    """

    def read(reader, state):
        def step(state, start):
            rows = lax.dynamic_slice_in_dim(tokens, start, length + 1)
            inputs, targets = rows[:-1], rows[1:]
            counted = (start + jnp.arange(length) < predictions)[:, None]
            counted = jnp.broadcast_to(counted, inputs.shape)
            nats, state = reader.nats_of_all(state, Tokens(inputs, targets, counted))
            return state, jnp.where(counted, nats, 0).sum()

        if state is None:
            state = reader.start_all(tokens.shape[1])
        return lax.scan(step, state, jnp.arange(0, tokens.shape[0] - 1, length))

    if members:
        read = jax.vmap(read)
    return read(reader, state)
