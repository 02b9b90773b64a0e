"""The minGRU layer (Feng et al. 2024, arXiv:2410.01201): `kernel` [E, 2H] and `bias` [2H], in the order z, candidate.

    z, n = x W + b        h' = (1 - sigmoid(z)) * h + sigmoid(z) * n

No gate depends on h, so that the whole layer is one associative scan.
"""

import jax
import jax.numpy as jnp

from jaxlm.config.models import MinGRU
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.ops.bounded_scan import last_step
from jaxlm.ops.linear_recurrence import linear_recurrence
from jaxlm.ops.product import product


def _init(model: MinGRU, key: jax.Array, inputs: int, width: int) -> Params:
    return {"kernel": uniform(model, key, inputs, 2 * width), "bias": jnp.zeros(2 * width)}


def _apply(
    model: MinGRU, params: Params, x: jax.Array, h: jax.Array, length: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    gate, candidate = jnp.split(product(x, params["kernel"], x.dtype) + params["bias"], 2, -1)
    y = linear_recurrence(jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * candidate, h)
    return y.astype(x.dtype), last_step(y, length)


def _state(batch_size: int, width: int, dtype: jnp.dtype) -> jax.Array:
    return jnp.zeros((batch_size, width), dtype)


CELL = Cell(_init, _state, _apply, gates=2)
