"""What a cell does to each vector of units: the activations of its gates, and normalisation."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Values = Float[Array, "*shape"]
Vectors = Float[Array, "*rows H"]


def sigmoid(x: Values) -> Values:
    """1 / (1 + exp(-x)) by one tanh, on CPUs twice as fast as by exp; equal up to rounding."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def activated(
    z: Values,
    gates: int,
    candidate: int,
) -> Values:
    """Applies a cell's activations by one tanh over all gates.

    XLA does not vectorise an operation that reads gates which lie beside each other and takes a
    tanh of each: it takes three times as long as the rest of a cell.

    Args:
        z: The gates before their activations, [..., gates * H].
        gates: How many gates there are.
        candidate: The place of the gate that gets a tanh.

    Returns:
        The tanh of the candidate, the sigmoids of all others.
    """
    is_candidate = jnp.arange(z.shape[-1]) // (z.shape[-1] // gates) == candidate
    tanh = jnp.tanh(jnp.where(is_candidate, z, 0.5 * z))
    return jnp.where(is_candidate, tanh, 0.5 * tanh + 0.5)


def gelu(x: Values) -> Values:
    """x times the standard normal distribution function of x (arXiv:1606.08415).

    By erf, which CPUs compute faster than the erfc of `jax.nn.gelu`.
    """
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


def rms_norm(x: Vectors, epsilon: float = 1e-5) -> Vectors:
    """Divides vectors by the root of their mean square (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        x: The vectors.
        epsilon: Added to the mean square.

    Returns:
        The normalised vectors.
    """
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def layer_norm(x: Vectors) -> Vectors:
    """Vectors with mean 0 and variance 1 (Ba et al. 2016, arXiv:1607.06450)."""
    return rms_norm(x - x.mean(-1, keepdims=True))


def unit_norm(x: Vectors) -> Vectors:
    """Vectors over their length; a vector of zeros stays zero."""
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
