"""Causal attention over a window of the last steps, with rotary positions (arXiv:2104.09864).

    y_t = sum over s of softmax_s(q_t . k_s / sqrt(D)) v_s        t - W <= s <= t

where q and k are turned by their positions, so that their product depends on t - s alone. Positions
are counted from the first key at hand: a text may be of any length. Letters: `T` steps, `B` batch,
`N` heads, `D` units of a head, `W` steps before the own one that are read.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlm.ops.product import contraction
from jaxlm.ops.scans import Length

Heads = Float[Array, "T B N D"]
BASE = 10_000.0  # the longest period of a turn is this many steps, times 2 pi


class AttentionState(NamedTuple):
    """Keys and values of the last W steps, the oldest first, and how many of them there are."""

    keys: Float[Array, "B W N D"]
    values: Float[Array, "B W N D"]
    held: Float[Array, " B"]


def attention_reference(
    q: Heads,
    k: Heads,
    v: Heads,
    state: AttentionState,
    length: Length = None,
    dtype: Any = jnp.float32,
) -> tuple[Heads, AttentionState]:
    """`attention` written plainly: each step reads all keys, of which most are masked.

    Args:
        q: Queries.
        k: Keys, not turned.
        v: Values.
        state: What the steps before left.
        length: How many steps count.
        dtype: What products multiply in.

    Returns:
        The outputs, and the new state.
    """
    T = len(q)
    W = state.keys.shape[1]
    keys = jnp.concatenate([jnp.moveaxis(state.keys, 1, 0), k])
    values = jnp.concatenate([jnp.moveaxis(state.values, 1, 0), v])
    scores = jnp.einsum("tbnd,sbnd->tsbn", turned(q, np.arange(W, W + T)), turned(keys))
    t = jnp.arange(T)[:, None, None, None]
    s = jnp.arange(W + T)[None, :, None, None]
    read = (t <= s) & (s <= t + W) & (s >= W - state.held[:, None])
    shares = jax.nn.softmax(jnp.where(read, scores * q.shape[-1] ** -0.5, -jnp.inf), 1)
    return jnp.einsum("tsbn,sbnd->tbnd", shares, values), _after(keys, values, state, T, length)


def attention(
    q: Heads,
    k: Heads,
    v: Heads,
    state: AttentionState,
    length: Length = None,
    dtype: Any = jnp.float32,
) -> tuple[Heads, AttentionState]:
    """Runs a layer over time, in chunks of at most W steps, each of which reads the one before.

    Args:
        q: Queries.
        k: Keys, not turned.
        v: Values.
        state: What the steps before left.
        length: How many steps count.
        dtype: What products multiply in; they sum in float32 or wider.

    Returns:
        The outputs, and the new state.
    """
    T = len(q)
    W = state.keys.shape[1]
    steps = min(T, W)
    chunks = math.ceil(T / steps)

    def chunked(x):  # [T, B, N, D] -> [chunks, steps, B, N, D]
        x = jnp.pad(x, ((0, chunks * steps - T), *[(0, 0)] * 3))
        return x.reshape(chunks, steps, *x.shape[1:])

    def with_earlier(x, before):  # of each chunk also the W steps before it, [B, W, N, D] the first
        x = chunked(x)
        earlier = jnp.moveaxis(before, 1, 0)[None]
        if chunks > 1:
            earlier = jnp.concatenate([earlier, x[:-1]])
        return jnp.concatenate([earlier, x], 1)

    keys = turned(with_earlier(k, state.keys), axis=1)
    queries = turned(chunked(q) * q.shape[-1] ** -0.5, np.arange(W, W + steps), axis=1)
    scores = contraction("ctbnd,csbnd->cbnts", dtype, queries, keys)
    t = np.arange(steps)[:, None]
    s = np.arange(W + steps)
    # Of keys before the first chunk there may be fewer than W.
    missing = jnp.where(jnp.arange(chunks)[:, None] == 0, W - state.held, 0)
    read = ((t <= s) & (s <= t + W)) & (s >= missing[..., None, None, None])
    shares = jax.nn.softmax(jnp.where(read, scores, -jnp.inf))
    y = contraction("cbnts,csbnd->ctbnd", dtype, shares, with_earlier(v, state.values))
    keys = jnp.concatenate([jnp.moveaxis(state.keys, 1, 0), k])
    values = jnp.concatenate([jnp.moveaxis(state.values, 1, 0), v])
    y = y.reshape(chunks * steps, *v.shape[1:])[:T]
    return y, _after(keys, values, state, T, length)


def turned(
    x: Float[Array, "..."],
    positions: Int[np.ndarray, " T"] | None = None,
    axis: int = 0,
) -> Float[Array, "..."]:
    """Turns pairs of units, of the first and the second half of a head, by their positions.

    Of an odd number of units the last is not turned.

    Args:
        x: Queries or keys, [..., D].
        positions: Of the steps; None: 0, 1, ...
        axis: That of the steps.

    Returns:
        The turned vectors.
    """
    if positions is None:
        positions = np.arange(x.shape[axis])
    half = x.shape[-1] // 2
    angles = positions[:, None] * BASE ** (-np.arange(half) / half)
    shape = [1] * (x.ndim - axis - 2)
    cos, sin = (
        jnp.asarray(part.reshape(len(positions), *shape, half), x.dtype)
        for part in (np.cos(angles), np.sin(angles))
    )
    a, b, unpaired = jnp.split(x, [half, 2 * half], -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, unpaired], -1)


def _after(
    keys: Float[Array, "S B N D"],
    values: Float[Array, "S B N D"],
    state: AttentionState,
    T: int,
    length: Length,
) -> AttentionState:
    """The state after the steps that count, of the keys and values of all."""
    W = state.keys.shape[1]
    count = T if length is None else length
    last_keys, last_values = (
        jnp.moveaxis(lax.dynamic_slice_in_dim(part, count, W), 0, 1) for part in (keys, values)
    )
    held = jnp.minimum(state.held + count, W).astype(state.held.dtype)
    return AttentionState(last_keys, last_values, held)
