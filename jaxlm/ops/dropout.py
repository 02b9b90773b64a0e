"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp


def draw_mask(key: jax.Array, keep: jax.Array | float, shape: tuple[int, int, int]) -> jax.Array:
    """Which units are kept, each with the probability `keep`: bool of the shape (T, B, D).

    Each row draws from a key of its own, folded with the row's index: devices that share a batch each draw their rows.
    """
    T, B, D = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    return jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)


def apply_mask(x: jax.Array, kept: jax.Array | None, keep: jax.Array | float | None) -> jax.Array:
    """x / keep where `kept`, broadcast to x, is true, else 0; x itself where `kept` or `keep` is None."""
    return x if kept is None or keep is None else jnp.where(kept, x / keep, 0).astype(x.dtype)
