"""Normalisation of the last axis."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*rows H"], epsilon: float = 1e-5) -> Float[Array, "*rows H"]:
    """x over the root of its mean square (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def layer_norm(x: Float[Array, "*rows H"]) -> Float[Array, "*rows H"]:
    """x with mean 0 and variance 1 (Ba et al. 2016, arXiv:1607.06450)."""
    return rms_norm(x - x.mean(-1, keepdims=True))


def unit_norm(x: Float[Array, "*rows H"]) -> Float[Array, "*rows H"]:
    """x over its length; an x of zeros stays."""
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
