"""Matrix products in mixed precision, which the other ops share.

On a processor that multiplies bfloat16 by itself (AMX, AVX512_BF16), XLA's fast product takes a second factor of either
order, and a first factor only as it lies: a transpose of the first that XLA can fold into the product turns the whole
product into a slow float32 one. So a caller hands over a first factor that really lies transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def product(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """a @ b, multiplied in one dtype and summed in float32 or wider.

    Args:
      a: [..., M, K].
      b: [K, N].
      dtype: both are rounded to it.

    Returns:
      [..., M, N], in float32 or wider.
    """
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=_sum_dtype(dtype))


def product_transposed(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """a @ b.T, multiplied in one dtype and summed in float32 or wider; nothing is transposed in memory.

    Args:
      a: [..., M, K].
      b: [N, K].
      dtype: both are rounded to it.

    Returns:
      [..., M, N], in float32 or wider.
    """
    return lax.dot_general(a.astype(dtype), b.astype(dtype), (((a.ndim - 1,), (1,)), ((), ())),
                           preferred_element_type=_sum_dtype(dtype))


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
