"""Threefry's bits in one pass: the numbers of JAX's default keys, sooner compiled and sooner drawn.

On CPUs JAX lowers Threefry-2x32 (Salmon et al. 2011, doi:10.1145/2063384.2063405) to a loop over groups of rounds,
each of which reads and writes whole arrays. Written out, all rounds are one elementwise expression, which XLA fuses
into one loop, together with what is made of the bits: for parameters, not for masks, which several loops would each
draw anew.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_ONE = 0x3F800000  # the bits of float32 1, whose exponent is that of all numbers in [1, 2)


# As JAX's own, one program even by itself: op by op the range's product and sum would be rounded one after the other.
@partial(jax.jit, static_argnames=("shape", "minval", "maxval"), inline=True)
def uniform(key: jax.Array, shape: tuple[int, ...], minval: float = 0.0, maxval: float = 1.0) -> jax.Array:
    """The numbers of `jax.random.uniform`, float32 in [minval, maxval), drawn in one pass.

    Args:
      key: one key. What keys of another kind draw, or 64 bits, or 2^32 numbers and more, is left to JAX.
      shape: of the result.
      minval, maxval: the range.
    """
    by_position = getattr(jax.config, "jax_threefry_partitionable", True)
    if (
        jax.random.key_impl(key) != "threefry2x32"
        or not by_position
        or math.prod(shape) >= 2**32
        or jax.dtypes.canonicalize_dtype(float) != jnp.float32
    ):
        return jax.random.uniform(key, shape, minval=minval, maxval=maxval)
    mantissas = _bits(jax.random.key_data(key), shape) >> 9
    numbers = lax.bitcast_convert_type(mantissas | jnp.uint32(_ONE), jnp.float32) - 1.0
    return jnp.maximum(minval, numbers * (maxval - minval) + minval)


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random bits, uint32 [*shape]. key: uint32 [2]."""
    axes = (
        lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
        for axis in range(len(shape))
    )
    position = sum(axes, jnp.zeros(shape, jnp.uint32))
    # 20 rounds of the counter (0, position); a part of the key is added before them and after each four.
    schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY)
    a, b = jnp.broadcast_to(schedule[0], shape), position + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:  # by the primitives: jnp's operators take twice as long to trace
            a = lax.add(a, b)
            turned = lax.bitwise_or(
                lax.shift_left(b, np.uint32(rotation)), lax.shift_right_logical(b, np.uint32(32 - rotation))
            )
            b = lax.bitwise_xor(a, turned)
        a, b = a + schedule[(group + 1) % 3], b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a ^ b
