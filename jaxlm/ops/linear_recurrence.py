"""h_t = a_t * h_(t-1) + b_t for all t at once: a plain reference, and the same as an associative scan.

The recurrence of minGRU (Feng et al. 2024, arXiv:2410.01201) and of every layer whose gates do not depend on h.
"""

import jax
import jax.numpy as jnp
from jax import lax


def linear_recurrence_reference(a: jax.Array, b: jax.Array, h: jax.Array) -> jax.Array:
    """`linear_recurrence` written plainly: one step after the other."""

    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, h, (a, b))[1]


def linear_recurrence(a: jax.Array, b: jax.Array, h: jax.Array) -> jax.Array:
    """Every h_t, in about log2(T) parallel steps.

    Args:
        a, b: [T, B, H].
        h: the carry [B, H].

    Returns:
        [T, B, H].

    >>> half, one = jnp.full((3, 1, 1), 0.5), jnp.ones((3, 1, 1))
    >>> linear_recurrence(half, one, jnp.zeros((1, 1))).ravel().tolist()
    [1.0, 1.5, 1.75]
    """

    def combine(earlier, later):
        return earlier[0] * later[0], earlier[1] * later[0] + later[1]

    first = b[:1] + a[:1] * h
    return lax.associative_scan(combine, (a, jnp.concatenate([first, b[1:]])))[1]
