"""The matrix product in mixed precision, which the other ops share."""

from typing import Any

import jax
import jax.numpy as jnp


def product(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """a @ b, multiplied in one dtype and summed in float32 or wider.

    Args:
      a: [..., M, K].
      b: [K, N].
      dtype: both are rounded to it.

    Returns:
      [..., M, N], in float32 or wider.
    """
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.promote_types(dtype, jnp.float32))
