"""The matrix product of mixed precision that both ops are made of."""

from typing import Any

import jax
import jax.numpy as jnp


def product(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """a [..., M, K] and b [K, N], both rounded to `dtype` -> a @ b, summed and returned in float32 or what is wider."""
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.promote_types(dtype, jnp.float32))
