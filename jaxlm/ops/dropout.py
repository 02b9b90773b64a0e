"""Dropout: masks from explicit keys (Srivastava et al. 2014; on non-recurrent connections only, arXiv:1409.2329)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar


def draw_mask(
    key: PRNGKeyArray, keep: Scalar | float, shape: tuple[int, int, int]
) -> Bool[Array, "T B D"]:
    """Which units are kept, each with the probability `keep`; the shape is (T, B, D).

    Each row draws from a key of its own, folded with the row's index: devices that share a batch each draw their rows.
    """
    T, B, D = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    return jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)


def apply_mask(
    x: Float[Array, "*shape"], kept: Bool[Array, "..."] | None, keep: Scalar | float | None
) -> Float[Array, "*shape"]:
    """x / keep where `kept`, broadcast to x, is true, else 0; x itself where `kept` or `keep` is None."""
    if kept is None or keep is None:
        return x
    return jnp.where(kept, x / keep, 0).astype(x.dtype)
