"""The activations of a cell's gates."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-x)) by one tanh: twice as fast as by exp on CPUs, and equal within a rounding of 1."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def activated(z: Float[Array, "*shape"], gates: int, candidate: int) -> Float[Array, "*shape"]:
    """The sigmoids of all gates of z [..., gates * H], and the tanh of the part `candidate`, by one tanh over z.

    XLA does not vectorise an operation that reads the gates one beside the other and takes a tanh of each: that is
    three times as slow as the rest of a cell.
    """
    is_candidate = jnp.arange(z.shape[-1]) // (z.shape[-1] // gates) == candidate
    tanh = jnp.tanh(jnp.where(is_candidate, z, 0.5 * z))
    return jnp.where(is_candidate, tanh, 0.5 * tanh + 0.5)
