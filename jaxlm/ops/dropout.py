"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp


def dropout(key: jax.Array, x: jax.Array, keep: jax.Array | float) -> jax.Array:
    """Keeps each value with probability `keep`, scaled by 1/keep, else 0; x of any shape, same shape out."""
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, jnp.zeros_like(x))
