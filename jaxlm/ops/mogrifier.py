"""The Mogrifier LSTM over time (Melis et al. 2020, arXiv:1909.01792): a plain reference, and a faster twin beside it.

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width. Before the gates of an LSTM see them, the input x and
the state h gate each other in turns: rounds 0, 2, ... change x and rounds 1, 3, ... h, each by what the other is then:

    x = 2 sigmoid(h Q + q) * x        h = 2 sigmoid(x R + r) * h

Then i, j, f, o = [x, h] W + b, and with a free, a capped (min(i, 1 - f)) or a coupled (1 - f) input gate

    c' = c * sigmoid(f) + sigmoid(i) * tanh(j)        h' = tanh(c') * sigmoid(o)

The weights of a layer are a tree: `kernel` [E + H, 4H] and `bias` [4H], gates in the order i, j, f, o (coupled: 3H, and
j, f, o); `rounds`, a list with `bias` [out] and either `full` [in, out] or `left` [in, rank] and `right` [rank, out] of
each round; and with layer normalisation (arXiv:1607.06450) `norms`: `input` and `state` [4H], `cell`, `cell_bias` [H].
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from jaxlm.ops.activations import activated, layer_norm, sigmoid
from jaxlm.ops.lstm import Inputs, LSTMState
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import LinearMap, Matrices, recurrence, recurrence_reference
from jaxlm.ops.scans import Length, Units

Weights = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Limits:
    """What a layer's state is held to, each absent where None."""

    cell_clip: Scalar | float | None = (
        None  # of the c that is carried on; a step's output reads c unclipped
    )
    state: Float[Array, "B H"] | None = (
        None  # a factor on h before anything else sees it, the same at all steps
    )
    update: Float[Array, "B H"] | Scalar | float | None = (
        None  # a factor on tanh(j), the same at all steps
    )
    length: Length = None


def mogrifier_reference(
    x: Inputs,
    weights: Weights,
    state: LSTMState,
    input_gate: str = "free",
    limits: Limits = Limits(),
) -> tuple[Units, LSTMState]:
    """`mogrifier` written plainly: a scan of the cell, differentiated by JAX."""
    matrices, others = _apart(weights, x.shape[-1])
    if not others["rounds"]:
        x = _from_input(lambda name, a: a @ matrices[name], x, others)
    return recurrence_reference(
        partial(_cell, input_gate), x, matrices, (others, limits), state, limits.length
    )


def mogrifier(
    x: Inputs,
    weights: Weights,
    state: LSTMState,
    input_gate: str = "free",
    limits: Limits = Limits(),
) -> tuple[Units, LSTMState]:
    """Runs one Mogrifier LSTM layer over time.

    Without rounds the input's part of the gates is computed for all steps at once. With x in bfloat16 the products
    multiply bfloat16 and sum in float32, and the outputs are bfloat16; the carry keeps the parameters' dtype. The input
    gate is free, capped or coupled.
    """
    matrices, others = _apart(weights, x.shape[-1])
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
    input_gate: str,
    linear: LinearMap,
    state: LSTMState,
    x: Float[Array, "B _"],
    rest: tuple[Weights, Limits],
) -> tuple[LSTMState, Float[Array, "B H"]]:
    """One step: the new carry and the output. x is [B, E]; without rounds its part of the gates [B, 4H]."""
    others, limits = rest
    h = state.h if limits.state is None else state.h * limits.state
    for place, bias in enumerate(others["rounds"]):  # x and h gate each other in turns
        scores = x if place % 2 else h
        for name in ("full",) if "full" in bias else ("left", "right"):
            scores = linear(f"{place} {name}", scores)
        gate = 2 * sigmoid(scores + bias["full" if "full" in bias else "right"])
        x, h = (x, h * gate) if place % 2 else (x * gate, h)
    if others["rounds"]:
        x = _from_input(linear, x, others)
    z = linear("state", h)
    norms = others["norms"]
    z = x + (z if norms is None else layer_norm(z) * norms["state"])
    gates, candidate = (3, 0) if input_gate == "coupled" else (4, 1)
    *i, update, f, o = jnp.split(activated(z, gates, candidate), gates, -1)
    update = update if limits.update is None else update * limits.update
    taken = 1 - f if input_gate == "coupled" else i[0]
    c = state.c * f + (jnp.minimum(taken, 1 - f) if input_gate == "capped" else taken) * update
    shown = c if norms is None else layer_norm(c) * norms["cell"] + norms["cell_bias"]
    h = jnp.tanh(shown) * o
    clip = limits.cell_clip
    return LSTMState(c if clip is None else jnp.clip(c, -clip, clip), h), h


def _from_input(
    linear: LinearMap, x: Float[Array, "*rows E"], others: Weights
) -> Float[Array, "*rows gates"]:
    """The input's part of the gates, with the bias."""
    z = linear("input", x)
    norms = others["norms"]
    return (z if norms is None else layer_norm(z) * norms["input"]) + others["bias"]


def _apart(weights: Weights, inputs: int) -> tuple[Matrices, Weights]:
    """The matrices by name, and all else; the bias of a round under the name of the matrix that it is added behind."""
    of_input, of_state = jnp.split(weights["kernel"], [inputs])
    matrices = {"input": of_input, "state": of_state}
    for place, one in enumerate(weights["rounds"]):
        matrices |= {f"{place} {part}": matrix for part, matrix in one.items() if part != "bias"}
    rounds = [{"full" if "full" in one else "right": one["bias"]} for one in weights["rounds"]]
    return matrices, {"bias": weights["bias"], "rounds": rounds, "norms": weights.get("norms")}
