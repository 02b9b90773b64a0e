"""The Mogrifier LSTM over time, as a `recurrence` (Melis et al. 2020, arXiv:1909.01792).

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width. Before the gates of an LSTM see
them, the input x and the state h gate each other in turns: rounds 0, 2, ... change x and rounds 1,
3, ... change h, each by the other's current value:

    x = 2 sigmoid(h Q + q) * x        h = 2 sigmoid(x R + r) * h

Then i, j, f, o = [x, h] W + b, and with a free, a capped (min(i, 1 - f)) or a coupled (1 - f) input
gate

    c' = c * sigmoid(f) + sigmoid(i) * tanh(j)        h' = tanh(c') * sigmoid(o)

The weights of a layer are a tree: `kernel` [E + H, 4H] and `bias` [4H], gates in the order i, j, f,
o (coupled: 3H, and j, f, o); `rounds`, a list with `bias` [out] and either `full` [in, out] or
`left` [in, rank] and `right` [rank, out] of each round; and with layer normalisation
(arXiv:1607.06450) `norms`: `input` and `state` [4H], `cell`, `cell_bias` [H].
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from jaxlm.ops.activations import activated, layer_norm, sigmoid
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import LinearMap, Matrices, recurrence
from jaxlm.ops.scans import Hidden, Inputs, Length, Units

Weights = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Limits:
    """What bounds a layer's state; None is absent.

    Attributes:
        cell_clip: Bounds the c that is carried on; a step's output reads c unclipped.
        state: A factor on h before anything else reads it, the same at all steps.
        update: A factor on tanh(j), the same at all steps.
        length: How many steps count.
    """

    cell_clip: Scalar | float | None = None
    state: Hidden | None = None
    update: Hidden | Scalar | float | None = None
    length: Length = None


def mogrifier(
    x: Inputs,
    weights: Weights,
    state: LSTMState,
    input_gate: str = "free",
    limits: Limits = Limits(),
) -> tuple[Units, LSTMState]:
    """Runs one Mogrifier LSTM layer over time.

    Without rounds the input's part of the gates is computed for all steps at once. With x in
    bfloat16 the products multiply bfloat16 and sum in float32, and the outputs are bfloat16; the
    carry keeps the parameters' dtype.

    Args:
        x: The inputs.
        weights: The tree of weights.
        state: The carry before the first step.
        input_gate: free, capped or coupled.
        limits: What bounds the state.

    Returns:
        The outputs, and the new carry.
    """
    matrices, others = _split_matrices(weights, x.shape[-1])
    dtype = x.dtype
    limits = jax.tree.map(jnp.asarray, limits)
    if not others["rounds"]:
        x = _from_input(lambda name, a: product(a, matrices[name], dtype), x, others)
        matrices = {"state": matrices["state"]}
    y, final = recurrence(
        partial(_cell, input_gate), x, matrices, (others, limits), state, limits.length, dtype
    )
    return y.astype(dtype), final


def _cell(
    input_gate,
    linear,
    state,
    x,
    rest,
):
    """One step: the new carry and the output.

    Without rounds, x is what `_from_input` returned [B, 4H].
    """
    others, limits = rest
    norms = others["norms"]
    h = state.h
    if limits.state is not None:
        h = h * limits.state
    x, h = after_rounds(linear, x, h, others["rounds"])
    if others["rounds"]:
        x = _from_input(linear, x, others)
    z = linear("state", h)
    if norms is not None:
        z = layer_norm(z) * norms["state"]
    z = x + z
    if input_gate == "coupled":
        update, f, o = jnp.split(activated(z, 3, 0), 3, -1)
    else:
        i, update, f, o = jnp.split(activated(z, 4, 1), 4, -1)
    if limits.update is not None:
        update = update * limits.update
    if input_gate == "coupled":
        i = 1 - f
    c = state.c * f
    if input_gate == "capped":
        i = jnp.minimum(i, 1 - f)
    c = c + i * update
    c_read = c
    if norms is not None:
        c_read = layer_norm(c) * norms["cell"] + norms["cell_bias"]
    h = jnp.tanh(c_read) * o
    if limits.cell_clip is not None:
        c = jnp.clip(c, -limits.cell_clip, limits.cell_clip)
    return LSTMState(c, h), h


def after_rounds(
    linear: LinearMap,
    x: Float[Array, "B E"],
    h: Hidden,
    rounds: list[Weights],
) -> tuple[Float[Array, "B E"], Hidden]:
    """Input and state, after they have gated each other in turns.

    Args:
        linear: Multiplies by a matrix of `split_rounds`.
        x: The input.
        h: The state.
        rounds: The biases of `split_rounds`.

    Returns:
        The gated input and state.
    """
    for place, biases in enumerate(rounds):
        scores = x if place % 2 else h
        if "full" in biases:
            scores = linear(f"{place} full", scores) + biases["full"]
        else:
            scores = linear(f"{place} left", scores)
            scores = linear(f"{place} right", scores) + biases["right"]
        gate = 2 * sigmoid(scores)
        if place % 2:
            h = h * gate
        else:
            x = x * gate
    return x, h


def split_rounds(rounds: list[Weights]) -> tuple[Matrices, list[Weights]]:
    """The matrices of rounds by name, and their biases.

    The bias of a round has the name of the matrix whose product it is added to.

    Args:
        rounds: Of each round `bias`, and `full`, or `left` and `right`.
    """
    matrices = {}
    biases = []
    for place, weights_of_round in enumerate(rounds):
        for name, matrix in weights_of_round.items():
            if name != "bias":
                matrices[f"{place} {name}"] = matrix
        last = "full" if "full" in weights_of_round else "right"
        biases.append({last: weights_of_round["bias"]})
    return matrices, biases


def _from_input(
    linear: LinearMap,
    x: Array,
    others: Weights,
) -> Array:
    """What the input x [*rows, E] adds to the gates, and their bias."""
    z = linear("input", x)
    if others["norms"] is not None:
        z = layer_norm(z) * others["norms"]["input"]
    return z + others["bias"]


def _split_matrices(weights: Weights, inputs: int) -> tuple[Matrices, Weights]:
    """The matrices by name, and all other weights."""
    of_input, of_state = jnp.split(weights["kernel"], [inputs])
    of_rounds, rounds = split_rounds(weights["rounds"])
    matrices = {"input": of_input, "state": of_state, **of_rounds}
    return matrices, {"bias": weights["bias"], "rounds": rounds, "norms": weights.get("norms")}
