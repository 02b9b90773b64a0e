"""Dropout by masks from explicit keys, on non-recurrent connections only.

Srivastava et al. 2014; Zaremba et al. 2014, arXiv:1409.2329.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

Mask = Bool[Array, "..."] | None  # true where something is kept; None: nothing is dropped
Kept = Bool[Array, "B H"] | None  # a mask that is the same at all steps


def draw_mask(
    key: PRNGKeyArray,
    keep: Scalar | float,
    shape: tuple[int, int, int],
) -> Bool[Array, "T B D"]:
    """Draws which units are kept.

    Each row of the batch draws from a key of its own, folded with the row's index, so that devices
    which share a batch draw their own rows.

    Args:
        key: The key of this mask.
        keep: The probability that a unit is kept.
        shape: (T, B, D).

    Returns:
        True where a unit is kept.
    """
    T, B, D = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    return jax.vmap(lambda key: jax.random.bernoulli(key, keep, (T, D)), out_axes=1)(keys)


def apply_mask(
    x: Float[Array, "*shape"],
    kept: Mask,
    keep: Scalar | float | None,
) -> Float[Array, "*shape"]:
    """Drops units.

    Args:
        x: The units.
        kept: Which are kept, broadcast to x; None drops nothing.
        keep: The probability with which they are kept; None drops nothing.

    Returns:
        x / keep where a unit is kept, else 0.
    """
    if kept is None or keep is None:
        return x
    return jnp.where(kept, x / keep, 0).astype(x.dtype)
