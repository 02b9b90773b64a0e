"""Layers whose state is a matrix a head: gated linear attention and the gated delta rule, chunk by chunk.

    S_t = a_t S_(t-1) + k_t u_t^T        y_t = S_t^T q_t

with u = v (mLSTM, arXiv:2405.04517; HGRN2, arXiv:2404.07904) or, by the delta rule, u_t = beta_t (v_t - (a_t S_(t-1))^T
k_t) (Gated DeltaNet, arXiv:2412.06464). Within a chunk all steps are products of matrices; chunks follow each other.
Letters: `T` steps, `B` batch, `N` heads, `D` and `F` widths of keys and of values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.ops.product import contraction
from jaxlm.ops.scans import bounded_scan

CHUNK, DIAGONAL_CHUNK = 64, 16  # most steps of a chunk; with a decay for each key unit


def linear_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    beta: jax.Array | None = None,
    length: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """`linear_attention` written plainly: one step after the other."""

    def step(state, inputs):
        q, k, v, log_decay, beta = inputs
        state = jnp.exp(log_decay)[..., None] * state
        u = v if beta is None else beta * (v - jnp.einsum("bnd,bndf->bnf", k, state))
        state = state + k[..., None] * u[..., None, :]
        return state, jnp.einsum("bnd,bndf->bnf", q, state)

    state, y = bounded_scan(step, state, (q, k, v, log_decay, beta), length)
    return y, state


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    beta: jax.Array | None = None,
    length: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence of this module over time.

    Args:
        q, k: queries and keys [T, B, N, D].
        v: values [T, B, N, F].
        log_decay: log a, at most 0: of a head [T, B, N, 1], or of each key unit [T, B, N, D].
        state: the carry S [B, N, D, F].
        beta: [T, B, N, 1], how much of a value is written, by the delta rule; None: u = v.
        length: how many steps count, traced; the carry is that after them. None: all.
        dtype: what the products multiply in; they sum in float32 or wider.

    Returns:
        Outputs [T, B, N, F], and the new carry.
    """
    T = len(q)
    chunks = -(-T // (CHUNK if log_decay.shape[-1] == 1 else DIAGONAL_CHUNK))
    steps = -(-T // chunks)
    counts = (jnp.arange(T) < (T if length is None else length)).reshape(T, 1, 1, 1)

    def chunked(x: jax.Array) -> jax.Array:  # [chunks, B, N, steps, ...]
        x = jnp.pad(x, ((0, chunks * steps - T), *[(0, 0)] * 3))
        return jnp.moveaxis(x.reshape(chunks, steps, *x.shape[1:]), 1, 3)

    def run_chunk(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, u, log_decay, beta = inputs
        decay = jnp.cumsum(log_decay, 2)
        if beta is not None:  # (1 + L) u = beta (v - ...), where L is what earlier steps of the chunk have written
            written = u - contraction("bntd,bndf->bntf", dtype, k * jnp.exp(decay), state)
            inverse = _inverse(beta * _scores(k, k, decay, dtype), dtype)
            u = contraction("bnts,bnsf->bntf", dtype, inverse, beta * written)
        y = contraction("bnts,bnsf->bntf", dtype, _scores(q, k, decay, dtype), u)
        y += contraction("bntd,bndf->bntf", dtype, q * jnp.exp(decay), state)
        last = decay[:, :, -1:]
        added = contraction("bntd,bntf->bndf", dtype, k * jnp.exp(last - decay), u)
        return jnp.exp(jnp.swapaxes(last, 2, 3)) * state + added, y

    # A step that does not count neither decays nor writes.
    inputs = (q, jnp.where(counts, k, 0), v, jnp.where(counts, log_decay, 0), beta)
    state, y = lax.scan(run_chunk, state, jax.tree.map(chunked, inputs))
    return jnp.moveaxis(y, 3, 1).reshape(chunks * steps, *v.shape[1:])[:T], state


def _scores(q: jax.Array, k: jax.Array, decay: jax.Array, dtype: Any) -> jax.Array:
    """How much of what step s writes step t reads [B, N, t, s], given the summed logarithms of the decay."""
    steps = jnp.arange(q.shape[2])
    kept = jnp.where((steps[:, None] >= steps)[..., None], decay[:, :, :, None] - decay[:, :, None], -jnp.inf)
    if decay.shape[-1] == 1:
        return contraction("bntd,bnsd->bnts", dtype, q, k) * jnp.exp(kept[..., 0])
    return (q[:, :, :, None] * k[:, :, None] * jnp.exp(kept)).sum(-1)


def _inverse(lower: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of I + lower [B, N, t, s], where lower counts below its diagonal, by growing blocks."""
    steps, size = jnp.arange(lower.shape[-1]), 1
    inverse = jnp.broadcast_to(jnp.eye(len(steps), dtype=lower.dtype), lower.shape)
    while size < len(steps):
        block, half = steps // (2 * size), steps // size
        pairs = jnp.where((block[:, None] == block) & (half[:, None] > half), lower, 0)
        right = contraction("bnts,bnsr->bntr", dtype, pairs, inverse)
        inverse -= contraction("bnts,bnsr->bntr", dtype, inverse, right)
        size *= 2
    return inverse
