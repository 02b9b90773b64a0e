"""Layers whose state is a matrix a head: gated linear attention and the gated delta rule, chunk by chunk.

    S_t = a_t S_(t-1) + k_t u_t^T        y_t = S_t^T q_t

with u = v (mLSTM, arXiv:2405.04517; HGRN2, arXiv:2404.07904) or, by the delta rule, u_t = beta_t (v_t - (a_t S_(t-1))^T
k_t) (Gated DeltaNet, arXiv:2412.06464). Within a chunk all steps are products of matrices; chunks follow each other.
Letters: `T` steps, `B` batch, `N` heads, `D` and `F` widths of keys and of values.
"""

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
Decay = Float[
    Array, "T B N _"
]  # log a, at most 0: of a head [T, B, N, 1], or of each key unit [T, B, N, D]
KeyValues = Float[Array, "B N D F"]

CHUNK = 64
DIAGONAL_CHUNK = 16  # most steps of a chunk; with a decay for each key unit


def linear_attention_reference(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Decay,
    state: KeyValues,
    beta: Float[Array, "T B N 1"] | None = None,
    length: Length = None,
) -> tuple[Values, KeyValues]:
    """`linear_attention` written plainly: one step after the other."""

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
    """The outputs y and the new carry S; without beta, u = v. Products are in `dtype`, summed in float32 or wider."""
    T = len(q)
    chunks = -(-T // (CHUNK if log_decay.shape[-1] == 1 else DIAGONAL_CHUNK))
    steps = -(-T // chunks)
    counts = (jnp.arange(T) < (T if length is None else length)).reshape(T, 1, 1, 1)

    def chunked(x: Float[Array, "T B N _"]) -> Float[Array, "chunks B N steps _"]:
        x = jnp.pad(x, ((0, chunks * steps - T), *[(0, 0)] * 3))
        return jnp.moveaxis(x.reshape(chunks, steps, *x.shape[1:]), 1, 3)

    def run_chunk(
        state: KeyValues, inputs: tuple[Array, Array, Array, Array, Array | None]
    ) -> tuple[KeyValues, Float[Array, "B N steps F"]]:
        q, k, u, log_decay, beta = inputs
        decay = _summed(log_decay)
        if (
            beta is not None
        ):  # (1 + L) u = beta (v - ...), where L is what earlier steps of the chunk have written
            written = u - contraction("bntd,bndf->bntf", dtype, k * jnp.exp(sum(decay)), state)
            inverse = _inverse(beta * _scores(k, k, decay, dtype), dtype)
            u = contraction("bnts,bnsf->bntf", dtype, inverse, beta * written)
        y = contraction("bnts,bnsf->bntf", dtype, _scores(q, k, decay, dtype), u)
        y += contraction("bntd,bndf->bntf", dtype, q * jnp.exp(sum(decay)), state)
        last = [part[:, :, -1:] for part in decay]
        added = contraction("bntd,bntf->bndf", dtype, k * jnp.exp(_between(last, decay)), u)
        return jnp.exp(jnp.swapaxes(sum(last), 2, 3)) * state + added, y

    # A step that does not count neither decays nor writes.
    inputs = (q, jnp.where(counts, k, 0), v, jnp.where(counts, log_decay, 0), beta)
    state, y = lax.scan(run_chunk, state, jax.tree.map(chunked, inputs))
    return jnp.moveaxis(y, 3, 1).reshape(chunks * steps, *v.shape[1:])[:T], state


def _summed(log_decay: Float[Array, "B N t _"]) -> list[Float[Array, "B N t _"]]:
    """The sums of log a up to each step in two parts, of which the coarse one is exact: float32 would lose digits."""
    coarse = lax.stop_gradient(jnp.round(log_decay * 1024) / 1024)
    return [jnp.cumsum(part, 2) for part in (coarse, log_decay - coarse)]


def _between(
    later: list[Float[Array, "..."]], earlier: list[Float[Array, "..."]]
) -> Float[Array, "..."]:
    """The log of the decay from earlier steps to later ones, both as `_summed` gives them."""
    coarse, small = (a - b for a, b in zip(later, earlier, strict=True))
    return coarse + small


def _scores(
    q: Float[Array, "B N t D"],
    k: Float[Array, "B N t D"],
    decay: list[Float[Array, "B N t _"]],
    dtype: Any,
) -> Float[Array, "B N t t"]:
    """How much of what step s writes step t reads, given the summed logarithms of the decay."""
    steps = np.arange(q.shape[2])
    if decay[0].shape[-1] == 1:
        between = _between(decay, [jnp.swapaxes(part, 2, 3) for part in decay])
        kept = jnp.where(steps[:, None] >= steps, between, -jnp.inf)
        return contraction("bntd,bnsd->bnts", dtype, q, k) * jnp.exp(kept)
    scores = jnp.where(steps[:, None] == steps, (q * k).sum(-1)[..., None], 0)
    size = 1
    while size < len(
        steps
    ):  # the later half of each block reads the earlier one, over the last step of that
        middle = np.minimum(steps // (2 * size) * (2 * size) + size - 1, steps[-1])
        over = _between(decay, [part[:, :, middle] for part in decay])
        kept = jnp.exp(jnp.where((steps > middle)[:, None], over, -over))
        read = contraction("bntd,bnsd->bnts", dtype, q * kept, k * kept)
        scores += jnp.where(_across(len(steps), size), read, 0)
        size *= 2
    return scores


def _inverse(lower: Float[Array, "B N t t"], dtype: Any) -> Float[Array, "B N t t"]:
    """The inverse of I + lower, where lower counts below its diagonal, by growing blocks."""
    steps = lower.shape[-1]
    size = 1
    inverse = jnp.broadcast_to(jnp.eye(steps, dtype=lower.dtype), lower.shape)
    while size < steps:
        right = contraction(
            "bnts,bnsr->bntr", dtype, jnp.where(_across(steps, size), lower, 0), inverse
        )
        inverse -= contraction("bnts,bnsr->bntr", dtype, inverse, right)
        size *= 2
    return inverse


def _across(steps: int, size: int) -> Bool[np.ndarray, "t t"]:
    """The pairs of a step in the later half of a block of 2 * size steps and one in its earlier half."""
    half = np.arange(steps) // size
    return (half[:, None] == half + 1) & (half % 2 == 0)
