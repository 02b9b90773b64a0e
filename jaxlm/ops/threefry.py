"""Threefry's bits in one pass: the numbers of JAX's default keys, sooner compiled and sooner drawn.

On CPUs JAX lowers Threefry-2x32 (Salmon et al. 2011, doi:10.1145/2063384.2063405) to a loop over groups of rounds,
each of which reads and writes whole arrays. Written out, all rounds are one elementwise expression, which XLA fuses
into one loop, together with what is made of the bits: for parameters, not for masks, which several loops would each
draw anew.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl, threefry_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def in_one_pass(key: jax.Array) -> jax.Array:
    """The key, whose numbers, and those of all keys made from it, are drawn in one pass and stay the same.

    Args:
      key: one key or an array of keys; of another kind it is returned as it is.

    Returns:
      Keys for `jax.random.fold_in`, `split`, `uniform`, `bernoulli` and the like.
    """
    by_position = getattr(jax.config, "jax_threefry_partitionable", True)
    if jax.random.key_impl(key) != "threefry2x32" or not by_position:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_IN_ONE_PASS)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """JAX's bits [*shape] where they are 32 wide and 32 bits count them; others are left to JAX. key: uint32 [2]."""
    if bit_width != 32 or math.prod(shape) >= 2**32:
        return threefry_prng_impl.random_bits(key, bit_width, shape)
    axes = (lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1:]))
            for axis in range(len(shape)))
    position = sum(axes, jnp.zeros(shape, jnp.uint32))
    # 20 rounds of the counter (0, position); a part of the key is added before them and after each four.
    schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY)
    a, b = jnp.broadcast_to(schedule[0], shape), position + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << rotation | b >> (32 - rotation))
        a, b = a + schedule[(group + 1) % 3], b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a ^ b


_IN_ONE_PASS = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape, seed=threefry_prng_impl.seed, split=threefry_prng_impl.split,
    random_bits=_random_bits, fold_in=threefry_prng_impl.fold_in, name="threefry2x32 in one pass", tag="fry1")
