"""Causal attention over a window of the last steps, with rotary positions (arXiv:2104.09864).

    y_t = sum over s of softmax_s(q_t . k_s / sqrt(D)) v_s        t - W <= s <= t

where q and k are turned by their positions, so that their product depends on t - s alone. Positions
are counted from the first key at hand: a text may be of any length. Letters: `T` steps, `B` batch,
`N` heads, `D` units of a head, `W` steps before its own that a step reads.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Scalar

from jaxlm.ops.product import contraction
from jaxlm.ops.scans import Length

Heads = Float[Array, "T B N D"]
BASE = 10_000.0  # the longest period of a turn is this many steps, times 2 pi


class AttentionState(NamedTuple):
    """Keys and values of the last W steps, the oldest first, and how many of them there are."""

    keys: Float[Array, "B N W D"]
    values: Float[Array, "B N W D"]
    held: Float[Array, " B"]


def attention_reference(
    q,
    k,
    v,
    state,
    length=None,
    dtype=jnp.float32,
):
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
    q, keys, values = _after_held(q, k, v, state)
    W = state.keys.shape[2]
    scores = jnp.einsum("bntd,bnsd->bnts", turned(q, W), turned(keys)) * q.shape[-1] ** -0.5
    t = jnp.arange(T)[:, None]
    s = jnp.arange(W + T)
    is_read = (t <= s) & (s <= t + W) & (s >= W - state.held[:, None, None, None])
    shares = jax.nn.softmax(jnp.where(is_read, scores, -jnp.inf))
    y = jnp.einsum("bnts,bnsd->tbnd", shares, values)
    return y, _state_after(keys, values, state, T if length is None else length)


def attention(
    q: Heads,
    k: Heads,
    v: Heads,
    state: AttentionState,
    length: Length = None,
    dtype: Any = jnp.float32,
) -> tuple[Heads, AttentionState]:
    """Runs a layer over time, in chunks of steps that read overlapping windows of keys.

    Short chunks read fewer keys that are then masked, long ones copy fewer keys: with sqrt(W D / 2)
    steps CPUs are fastest.

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
    q, keys, values = _after_held(q, k, v, state)
    B, N, W, D = state.keys.shape
    chunks = max(1, round(T / math.sqrt(W * D / 2)))
    steps = math.ceil(T / chunks)

    def chunked(x):  # [B, N, T, D] -> [B * N, chunks, steps, D]: two axes of a batch are fastest
        return _padded(x, chunks * steps).reshape(B * N, chunks, steps, D)

    def windows(x):  # [B, N, W + T, D] -> [B * N, chunks, W + steps, D]
        x = _padded(x, W + chunks * steps).reshape(B * N, -1, D)
        starts = range(0, chunks * steps, steps)
        return jnp.stack([x[:, start : start + W + steps] for start in starts], 1)

    queries = chunked(turned(q, W) * D**-0.5)
    scores = contraction("bctd,bcsd->bcts", dtype, queries, windows(turned(keys)))
    t = np.arange(steps)[:, None]
    s = np.arange(W + steps)
    # Fewer than W keys may be held of the steps before the first.
    missing = W - jnp.repeat(state.held, N)[:, None, None]
    is_held = np.arange(chunks)[:, None] * steps + s >= missing
    is_read = (t <= s) & (s <= t + W) & is_held[:, :, None]
    scores = jnp.where(is_read, scores, -jnp.inf)
    shares = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = contraction("bcts,bcsd->bctd", dtype, shares, windows(values))
    y = y / shares.sum(-1, keepdims=True)  # here, since y has fewer elements than the shares
    y = jnp.transpose(y.reshape(B, N, chunks * steps, D)[:, :, :T], (2, 0, 1, 3))
    return y, _state_after(keys, values, state, T if length is None else length)


def turned(x: Float[Array, "*rows S D"], first: int = 0) -> Float[Array, "*rows S D"]:
    """Turns pairs of units, of the first and the second half of a head, by their positions.

    Of an odd number of units the last is not turned.

    Args:
        x: Queries or keys.
        first: The position of the first step.

    Returns:
        The turned vectors.
    """
    *_, S, D = x.shape
    half = D // 2
    angles = np.zeros((S, D))
    angles[:, : 2 * half] = np.tile(BASE ** (-np.arange(half) / max(half, 1)), 2)
    angles *= np.arange(first, first + S)[:, None]
    signs = np.where(np.arange(D) < half, -1, 1)
    a, b, unpaired = jnp.split(x, [half, 2 * half], -1)
    swapped = jnp.concatenate([b, a, unpaired], -1)
    cos = jnp.asarray(np.cos(angles), x.dtype)
    sin = jnp.asarray(signs * np.sin(angles), x.dtype)
    return x * cos + swapped * sin


def _padded(x: Float[Array, "B N _ D"], size: int) -> Float[Array, "B N {size} D"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)))


def _after_held(
    q: Heads,
    k: Heads,
    v: Heads,
    state: AttentionState,
) -> tuple[Float[Array, "B N _ D"], ...]:
    """Puts keys and values behind those that the state holds, and the axes [B, N] first.

    CPUs multiply fastest if the axes of a product's batch come first.

    Returns:
        Queries [B, N, T, D]; keys and values [B, N, W + T, D].
    """
    q, k, v = (jnp.transpose(vectors, (1, 2, 0, 3)) for vectors in (q, k, v))
    keys = jnp.concatenate([state.keys, k], 2)
    return q, keys, jnp.concatenate([state.values, v], 2)


def _state_after(
    keys: Float[Array, "B N S D"],
    values: Float[Array, "B N S D"],
    state: AttentionState,
    count: Scalar | int,
) -> AttentionState:
    """The state after `count` steps, given the keys and values that `_after_held` returned."""
    W = state.keys.shape[2]
    last_keys = lax.dynamic_slice_in_dim(keys, count, W, 2)
    last_values = lax.dynamic_slice_in_dim(values, count, W, 2)
    held = jnp.minimum(state.held + count, W).astype(state.held.dtype)
    return AttentionState(last_keys, last_values, held)
