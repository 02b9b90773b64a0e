"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp


def draw_mask(key: jax.Array, keep: jax.Array | float, shape: tuple[int, int, int], first_row: jax.Array | int = 0
              ) -> jax.Array:
    """Which units are kept: true with probability `keep`, [T, B, D].

    Each row draws from a key of its own, folded with its number (the first is `first_row`): a row's mask is the same
    whichever rows are beside it, so that devices which share a batch draw what one alone would.
    """
    T, B, D = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + jnp.arange(B))
    return jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)


def apply_mask(x: jax.Array, kept: jax.Array | None, keep: jax.Array | float | None) -> jax.Array:
    """x [T, B, D], scaled by 1/keep where `kept` (broadcast to x) is true, else 0; x itself without a mask."""
    return x if kept is None or keep is None else jnp.where(kept, x / keep, 0).astype(x.dtype)
