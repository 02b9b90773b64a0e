"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp


def draw_mask(key: jax.Array, keep: jax.Array | float, shape: tuple[int, int, int]) -> jax.Array:
    """Which units are kept.

    Each row draws from a key of its own, folded with the row's index: devices that share a batch each draw their rows.

    Args:
        key: of the window and place.
        keep: the probability that a unit is kept.
        shape: (T, B, D).

    Returns:
        bool [T, B, D], true where a unit is kept.
    """
    T, B, D = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    return jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)


def apply_mask(x: jax.Array, kept: jax.Array | None, keep: jax.Array | float | None) -> jax.Array:
    """Applies a mask.

    Args:
        x: [T, B, D].
        kept: which units are kept, broadcast to x; None: no dropout.
        keep: the probability with which they were kept.

    Returns:
        x / keep where kept, else 0; x itself without a mask.
    """
    return x if kept is None or keep is None else jnp.where(kept, x / keep, 0).astype(x.dtype)
