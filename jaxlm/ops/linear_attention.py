"""Layers whose state is a matrix a head: gated linear attention and the gated delta rule.

    S_t = a_t S_(t-1) + k_t u_t^T        y_t = S_t^T q_t

with u = v (mLSTM, arXiv:2405.04517; HGRN2, arXiv:2404.07904) or, by the delta rule (Gated DeltaNet,
arXiv:2412.06464),

    u_t = beta_t (v_t - (a_t S_(t-1))^T k_t)

The steps of a chunk are computed by products of matrices, one chunk after the other. Letters: `T`
steps, `B` batch, `N` heads, `D` and `F` widths of keys and of values, `t` steps of a chunk.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxlm.ops.product import contraction
from jaxlm.ops.scans import Length, scan

Keys = Float[Array, "T B N D"]
Values = Float[Array, "T B N F"]
# log a, at most 0: of a head [T, B, N, 1], or of each key unit [T, B, N, D].
Decay = Float[Array, "T B N _"]
KeyValues = Float[Array, "B N D F"]
DecaySums = tuple[Float[Array, "B N _ _"], ...]  # of decays, by `_decay_sums`

# The most steps of a chunk, with a decay for each head and for each key unit.
CHUNK = 64
DIAGONAL_CHUNK = 16
DELTA_CHUNK = 32  # with the delta rule, whose inverse takes time that grows as their cube


def linear_attention_reference(
    q,
    k,
    v,
    log_decay,
    state,
    beta=None,
    length=None,
):
    """`linear_attention` written plainly: one step after the other.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: log a, at most 0.
        state: S before the first step.
        beta: The delta rule's share of each value that is written; None: u = v.
        length: How many steps count.

    Returns:
        The outputs y, and the new S.
    """

    def step(state, inputs):
        q, k, v, log_decay, beta = inputs
        state = jnp.exp(log_decay)[..., None] * state
        u = v if beta is None else beta * (v - jnp.einsum("bnd,bndf->bnf", k, state))
        state = state + k[..., None] * u[..., None, :]
        return state, jnp.einsum("bnd,bndf->bnf", q, state)

    state, y = scan(step, state, (q, k, v, log_decay, beta), length)
    return y, state


def linear_attention(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Decay,
    state: KeyValues,
    beta: Float[Array, "T B N 1"] | None = None,
    length: Length = None,
    dtype: Any = jnp.float32,
) -> tuple[Values, KeyValues]:
    """Runs a layer over time, chunk by chunk.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: log a, at most 0.
        state: S before the first step.
        beta: The delta rule's share of each value that is written; None: u = v.
        length: How many steps count.
        dtype: What products multiply in; they sum in float32 or wider.

    Returns:
        The outputs y, and the new S.
    """
    T = len(q)
    most_steps = CHUNK
    if log_decay.shape[-1] > 1:
        most_steps = DIAGONAL_CHUNK
    elif beta is not None:
        most_steps = min(max(q.shape[-1], DIAGONAL_CHUNK), DELTA_CHUNK)
    chunks = math.ceil(T / most_steps)
    steps = math.ceil(T / chunks)
    counts = (jnp.arange(T) < (T if length is None else length)).reshape(T, 1, 1, 1)

    def chunked(x):  # [T, B, N, _] -> [chunks, B, N, steps, _]
        x = jnp.pad(x, ((0, chunks * steps - T), *[(0, 0)] * 3))
        return jnp.moveaxis(x.reshape(chunks, steps, *x.shape[1:]), 1, 3)

    def run_chunk(state, inputs):  # S and inputs [B, N, steps, _] -> the new S, y [B, N, steps, F]
        q, k, u, log_decay, beta = inputs
        decay = _decay_sums(log_decay)
        if beta is not None:
            # u solves (1 + L) u = beta (v - ...), where L is what earlier steps of the chunk write.
            written = u - contraction("bntd,bndf->bntf", dtype, k * jnp.exp(sum(decay)), state)
            inverse = _inverse(beta * _scores(k, k, decay, dtype), dtype)
            u = contraction("bnts,bnsf->bntf", dtype, inverse, beta * written)
        y = contraction("bnts,bnsf->bntf", dtype, _scores(q, k, decay, dtype), u)
        y += contraction("bntd,bndf->bntf", dtype, q * jnp.exp(sum(decay)), state)
        last = tuple(term[:, :, -1:] for term in decay)
        added = contraction("bntd,bntf->bndf", dtype, k * jnp.exp(_log_decay(last, decay)), u)
        return jnp.exp(jnp.swapaxes(sum(last), 2, 3)) * state + added, y

    # A step that does not count neither decays nor writes.
    inputs = (q, jnp.where(counts, k, 0), v, jnp.where(counts, log_decay, 0), beta)
    state, y = lax.scan(run_chunk, state, jax.tree.map(chunked, inputs))
    return jnp.moveaxis(y, 3, 1).reshape(chunks * steps, *v.shape[1:])[:T], state


def _decay_sums(log_decay: Float[Array, "B N t _"]) -> DecaySums:
    """The sum of log a up to each step, as two terms to be added.

    The first term sums multiples of 1 / 1024, which float32 adds exactly; so the difference of two
    sums is accurate, however large the sums are.
    """
    coarse = lax.stop_gradient(jnp.round(log_decay * 1024) / 1024)
    fine = log_decay - coarse
    return jnp.cumsum(coarse, 2), jnp.cumsum(fine, 2)


def _log_decay(later: DecaySums, earlier: DecaySums) -> Float[Array, "..."]:
    """Log of the decay from earlier steps to later ones."""
    return (later[0] - earlier[0]) + (later[1] - earlier[1])


def _scores(
    q: Float[Array, "B N t D"],
    k: Float[Array, "B N t D"],
    decay: DecaySums,
    dtype: Any,
) -> Float[Array, "B N t t"]:
    """What step t reads of what step s writes: q_t . k_s, decayed from s to t; 0 where s > t."""
    steps = np.arange(q.shape[2])
    if decay[0].shape[-1] == 1:
        columns = tuple(jnp.swapaxes(term, 2, 3) for term in decay)
        log_kept = jnp.where(steps[:, None] >= steps, _log_decay(decay, columns), -jnp.inf)
        return contraction("bntd,bnsd->bnts", dtype, q, k) * jnp.exp(log_kept)
    scores = jnp.where(steps[:, None] == steps, (q * k).sum(-1)[..., None], 0)
    size = 1
    while size < len(steps):
        # The later half of each block of 2 * size steps reads the earlier half. The decay between
        # two steps is that to the earlier half's last step, `middle`, times that from there.
        middle = np.minimum(steps // (2 * size) * (2 * size) + size - 1, steps[-1])
        from_middle = _log_decay(decay, tuple(term[:, :, middle] for term in decay))
        is_later = (steps > middle)[:, None]
        kept = jnp.exp(jnp.where(is_later, from_middle, -from_middle))
        read = contraction("bntd,bnsd->bnts", dtype, q * kept, k * kept)
        scores += jnp.where(_across_halves(len(steps), size), read, 0)
        size *= 2
    return scores


def _inverse(lower: Float[Array, "B N t t"], dtype: Any) -> Float[Array, "B N t t"]:
    """The inverse of I + the part of `lower` below its diagonal, by blocks of growing size."""
    steps = lower.shape[-1]
    size = 1
    inverse = jnp.broadcast_to(jnp.eye(steps, dtype=lower.dtype), lower.shape)
    while size < steps:
        lower_block = jnp.where(_across_halves(steps, size), lower, 0)
        right = contraction("bnts,bnsr->bntr", dtype, lower_block, inverse)
        inverse -= contraction("bnts,bnsr->bntr", dtype, inverse, right)
        size *= 2
    return inverse


def _across_halves(steps: int, size: int) -> Bool[np.ndarray, "t t"]:
    """[t, s], true where t is in the later half of a block of 2 * size steps, s in the earlier."""
    half = np.arange(steps) // size
    return (half[:, None] == half + 1) & (half % 2 == 0)
