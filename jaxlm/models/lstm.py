"""The LSTM layer: `kernel` [E + H, 4H] and `bias` [4H], gates in the order i, j, f, o (TensorFlow's BasicLSTMCell)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.config.models import LSTM
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.ops.lstm import LSTMState, lstm, zero_state


def _init(model: LSTM, key: jax.Array, inputs: int, width: int) -> Params:
    return {"kernel": uniform(model, key, inputs + width, 4 * width), "bias": jnp.zeros(4 * width)}


def _apply(
    model: LSTM,
    params: Params,
    x: jax.Array,
    state: LSTMState,
    kept: jax.Array | None = None,
    length: jax.Array | None = None,
) -> tuple[jax.Array, LSTMState]:
    dropped = {} if kept is None else {"kept": kept, "keep": model.keep_state}
    return lstm(x, params["kernel"], params["bias"], state, model.forget_bias, length, **dropped)


def change_recurrent(params: Params, width: int, change: Callable[[jax.Array], jax.Array]) -> Params:
    """The parameters with `change` of the kernel's last rows, one a unit of h: `width`."""
    from_input, from_state = jnp.split(params["kernel"], [len(params["kernel"]) - width])
    return {**params, "kernel": jnp.concatenate([from_input, change(from_state)])}


CELL = Cell(_init, zero_state, _apply, gates=4, change_recurrent=change_recurrent)
