"""The matrix product in mixed precision, which the other ops share.

On a processor that multiplies bfloat16 by itself (AMX, AVX512_BF16), XLA's fast product takes a second factor of either
order, and a first factor only as it lies: a transpose of the first that XLA can fold into the product turns the whole
product into a slow float32 one. So a caller hands over a first factor that really lies transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def product(a: jax.Array, b: jax.Array, dtype: Any, transposed: bool = False) -> jax.Array:
    """a @ b, multiplied in one dtype and summed in float32 or wider.

    Args:
      a: [..., M, K].
      b: [K, N]; transposed, [N, K], of which nothing is transposed in memory.
      dtype: both are rounded to it.
      transposed: whether b lies transposed.

    Returns:
      [..., M, N], in float32 or wider.
    """
    return lax.dot_general(a.astype(dtype), b.astype(dtype), (((a.ndim - 1,), (int(transposed),)), ((), ())),
                           preferred_element_type=jnp.promote_types(dtype, jnp.float32))
