"""The RLSTM over time, as a `recurrence` (Melis 2022, arXiv:2211.01848).

The forget gate sees what would be written, the output gate what was written:

    i = sigmoid(x W_i + h U_i + b_i)        j = tanh(x W_j + h U_j + b_j)
    f = sigmoid((i * j) W_f + h U_f + b_f)  c' = f * c + min(i, 1 - f) * j
    o = sigmoid(c' W_o + b_o)               h' = o * tanh(c')

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width. The weights of a layer are a tree:
`kernel` [E, 2H] (i, j), `recurrent_kernel` [H, 3H] (i, j, f), `update_kernel` [H, H] (f),
`cell_kernel` [H, H] (o), `bias` [4H] (i, j, f, o), and the Mogrifier's `rounds`.
"""

from typing import Any

import jax.numpy as jnp

from jaxlm.ops.activations import sigmoid
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.mogrifier import after_rounds, split_rounds
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import Matrices, recurrence
from jaxlm.ops.scans import Hidden, Inputs, Length, Units

Weights = dict[str, Any]
Scale = Hidden | float


def rlstm(
    x: Inputs,
    weights: Weights,
    state: LSTMState,
    state_scale: Scale = 1.0,
    length: Length = None,
) -> tuple[Units, LSTMState]:
    """Runs one RLSTM layer over time.

    Without rounds the input's products are computed for all steps at once.

    Args:
        x: The inputs.
        weights: The tree of weights.
        state: The carry before the first step.
        state_scale: A factor on h before anything else reads it, and on the c that the output gate
            reads: the same at all steps.
        length: How many steps count; None: all.

    Returns:
        The outputs, in x's dtype, and the new carry.
    """
    matrices, others = _split(weights)
    dtype = x.dtype
    if not others["rounds"]:
        x = product(x, matrices.pop("input"), dtype)
    scale = jnp.asarray(state_scale, state.h.dtype)
    y, final = recurrence(_cell, x, matrices, (others, scale), state, length, dtype)
    return y.astype(dtype), final


def _cell(
    linear,
    state,
    x,
    rest,
):
    """One step: the new carry and the output. Without rounds, x is its products [B, 2H]."""
    others, scale = rest
    of_i, of_j, of_f, of_o = jnp.split(others["bias"], 4)
    h = state.h * scale
    if others["rounds"]:
        x, h = after_rounds(linear, x, h, others["rounds"])
        x = linear("input", x)
    x_i, x_j = jnp.split(x, 2, -1)
    h_i, h_j, h_f = jnp.split(linear("state", h), 3, -1)
    i = sigmoid(x_i + h_i + of_i)
    j = jnp.tanh(x_j + h_j + of_j)
    f = sigmoid(linear("update", i * j) + h_f + of_f)
    c = f * state.c + jnp.minimum(i, 1 - f) * j
    o = sigmoid(linear("cell", c * scale) + of_o)
    h = o * jnp.tanh(c)
    return LSTMState(c, h), h


def _split(weights: Weights) -> tuple[Matrices, Weights]:
    """The matrices by name, and all other weights."""
    of_rounds, rounds = split_rounds(weights["rounds"])
    matrices = {
        "input": weights["kernel"],
        "state": weights["recurrent_kernel"],
        "update": weights["update_kernel"],
        "cell": weights["cell_kernel"],
        **of_rounds,
    }
    return matrices, {"bias": weights["bias"], "rounds": rounds}
