"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp


def dropout(key: jax.Array, x: jax.Array, keep: jax.Array | float, first_row: jax.Array | int = 0) -> jax.Array:
    """Keeps each value with probability `keep`, scaled by 1/keep, else 0; x [T, B, D], same shape out.

    Each row draws from a key of its own, folded with its number (x's first is `first_row`): a row's mask is the same
    whichever rows are beside it, so that devices which share a batch draw what one alone would.
    """
    T, B, D = x.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + jnp.arange(B))
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)
    return jnp.where(kept, x / keep, 0).astype(x.dtype)
