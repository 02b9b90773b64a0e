"""The GRU layer: `kernel` [E, 3H], `recurrent_kernel` [H, 3H], `bias` [3H] and `recurrent_bias` [H]; gates r, z, n."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.config.models import GRU
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.ops.gru import gru


def _init(model: GRU, key: jax.Array, inputs: int, width: int) -> Params:
    from_input, from_state = jax.random.split(key)
    return {
        "kernel": uniform(model, from_input, inputs, 3 * width),
        "bias": jnp.zeros(3 * width),
        "recurrent_kernel": uniform(model, from_state, width, 3 * width),
        "recurrent_bias": jnp.zeros(width),
    }


def _apply(
    model: GRU, params: Params, x: jax.Array, h: jax.Array, length: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    return gru(x, **params, h=h, length=length)


def _state(batch_size: int, width: int, dtype: jnp.dtype) -> jax.Array:
    return jnp.zeros((batch_size, width), dtype)


def _change_recurrent(params: Params, width: int, change: Callable[[jax.Array], jax.Array]) -> Params:
    return {**params, "recurrent_kernel": change(params["recurrent_kernel"])}


CELL = Cell(_init, _state, _apply, gates=3, change_recurrent=_change_recurrent)
