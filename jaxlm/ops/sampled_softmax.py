"""The softmax's loss and gradients from a part of the vocabulary, drawn anew for each window.

The target's logit is exact. Of the sum over all other words' exponentials only those of drawn words
are computed, each divided by the probability with which it is drawn: the estimate of the sum is
unbiased (Horvitz and Thompson 1952), that of its logarithm nearly so. The most frequent words are
always drawn (of 10,000 words if S is 37 or more); of the others, rarer words are drawn more rarely,
as in Jean et al. 2015 (arXiv:1412.2007) but without replacement. A word's frequency is told by its
rank: its place in `ranked`, or else its id. By false ranks the estimate varies more around the same
mean.
Letters: `T` steps, `B` batch, `H` width, `V` vocabulary, `S` words drawn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Scalar

from jaxlm.ops import softmax
from jaxlm.ops.devices import by_platform
from jaxlm.ops.product import product
from jaxlm.ops.softmax import (
    Bias,
    Features,
    Kernel,
    Row,
    Targets,
    chunking,
    gradients_from_odds,
    with_bias,
)

# A word's odds of being drawn fall with this power of its rank, as in word2vec (arXiv:1310.4546).
FLATNESS = 0.75
ABSENT = -1e30  # the logit of a drawn word that is the target: no probability, and no nan


class Drawn(NamedTuple):
    """Words drawn for one window.

    Attributes:
        ids: Their ids, all different.
        log_weights: The log of 1 / the probability with which each is drawn.
    """

    ids: Int[Array, " S"]
    log_weights: Float[Array, " S"]


def inclusion(vocabulary: int, count: int) -> Float[np.ndarray, "{vocabulary}"]:
    """The probability with which each word is drawn.

    Args:
        vocabulary: How many words there are.
        count: How many are drawn.

    Returns:
        Probabilities that add up to `count`, or 1 for each word.

    >>> inclusion(6, 3).round(2).tolist()
    [1.0, 0.61, 0.45, 0.36, 0.31, 0.27]
    """
    if count >= vocabulary:
        return np.ones(vocabulary)
    rank = np.arange(vocabulary)
    falling = (rank + 1.0) ** -FLATNESS
    rest = np.cumsum(falling[::-1])[::-1]
    certain = int(np.argmax((count - rank) * falling < rest))  # the first that need not be drawn
    return np.where(rank < certain, 1.0, (count - certain) * falling / rest[certain])


def draw_words(
    offset: Scalar,
    vocabulary: int,
    count: int,
    ranked: Int[Array, " V"] | None = None,
) -> Drawn:
    """Draws words by systematic sampling (Madow 1949): one offset decides them all.

    Args:
        offset: Uniform in [0, 1).
        vocabulary: How many words there are.
        count: How many are drawn.
        ranked: All ids, the most frequent word's first; None: they are in this order.

    Returns:
        The words drawn, `count` or all.
    """
    odds = inclusion(vocabulary, count)
    count = min(count, vocabulary)
    edges = np.cumsum(odds)[:-1]
    # Whole and fraction apart: a float32 of their sum would lose the fraction.
    past = jnp.asarray(edges, jnp.int32) + (jnp.asarray(edges % 1, jnp.float32) > offset)
    ranks = jnp.searchsorted(past, jnp.arange(count), side="right")
    log_weights = -jnp.log(jnp.asarray(odds, jnp.float32))[ranks]
    ids = ranks if ranked is None else ranked[ranks]
    return Drawn(ids.astype(jnp.int32), log_weights)


def summed_nats_reference(
    x,
    kernel,
    bias,
    targets,
    weights,
    drawn,
):
    """`summed_nats` written plainly, with all logits; differentiated by JAX.

    Args:
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.
        targets: The word of each row.
        weights: The weight of each row.
        drawn: The words drawn.

    Returns:
        The estimate.
    """
    logits = x @ kernel + bias
    stands_for = jnp.zeros(len(bias), bias.dtype).at[drawn.ids].set(jnp.exp(drawn.log_weights))
    is_target = jnp.arange(len(bias)) == targets[..., None]
    counts = jnp.where(is_target, 1, stands_for)
    log_p = logits - jax.nn.logsumexp(logits, -1, keepdims=True, b=counts)
    return -jnp.vdot(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0], weights)


def summed_nats(
    x: Features,
    kernel: Kernel,
    bias: Bias,
    targets: Targets,
    weights: Row,
    drawn: Drawn,
    exact: Scalar | bool = False,
) -> Scalar:
    """An estimate of `softmax.summed_nats`, with gradients for x, kernel and bias.

    Args:
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.
        targets: The word of each row.
        weights: The weight of each row.
        drawn: The words drawn.
        exact: Where true, all words count. It is traced: training goes from one to the other in
            one program.

    Returns:
        The loss.
    """
    return _summed_nats(x, kernel, bias, targets, weights, drawn, jnp.asarray(exact))


def _forward(
    x,
    kernel,
    bias,
    targets,
    weights,
    drawn,
    exact,
):
    arguments = (x, kernel, bias, targets, weights)
    nats, gradients = lax.cond(
        exact, lambda: softmax.nats_and_gradients(*arguments), lambda: _estimate(*arguments, drawn)
    )
    return nats, (*gradients, None, None)


_summed_nats = softmax.with_gradients(_forward)


def _estimate(
    x,
    kernel,
    bias,
    targets,
    weights,
    drawn,
):
    """The estimate and its gradients."""
    table = kernel.T  # a tied kernel is a transposed table: its rows are read where they lie
    drawn_kernel = table[drawn.ids].T
    drawn_bias = bias[drawn.ids] + drawn.log_weights
    rows = table[targets]
    narrow_rows = rows.astype(x.dtype)
    target_logits = jnp.einsum("...h,...h->...", x, narrow_rows, preferred_element_type=bias.dtype)
    target_logits = target_logits + bias[targets]
    nats, d_drawn_kernel, d_drawn_bias, dx, d_target_logits = by_platform(
        _chunks, x, drawn_kernel, drawn_bias, targets, weights, drawn.ids, target_logits
    )
    dx += d_target_logits[..., None] * rows
    dkernel = jnp.zeros_like(table).at[drawn.ids].add(d_drawn_kernel.T)
    dkernel = dkernel.at[targets].add(d_target_logits[..., None] * x.astype(table.dtype))
    dbias = jnp.zeros_like(bias).at[drawn.ids].add(d_drawn_bias).at[targets].add(d_target_logits)
    return nats, (dx.astype(x.dtype), dkernel.T, dbias, None, None)


def _chunks(
    on_cpu,
    x,
    drawn_kernel,
    drawn_bias,
    targets,
    weights,
    ids,
    target_logits,
):
    """The nats; their gradients for the drawn words' kernel and bias, x, and targets' logits."""
    narrow = drawn_kernel.astype(x.dtype)
    inputs, layer = with_bias(on_cpu, x, drawn_kernel, drawn_bias)
    cut, join = chunking(on_cpu, targets.shape, drawn_kernel.shape)
    inputs, targets, weights, target_logits = map(cut, (inputs, targets, weights, target_logits))

    def chunk(carry, rows):
        nats, dlayer = carry
        x, columns, targets, weights, target_logits = rows
        logits = jnp.where(ids == targets[..., None], ABSENT, product(x, layer, x.dtype))
        top = jnp.maximum(logits.max(-1), target_logits)
        odds = jnp.exp(logits - top[..., None])
        target_odds = jnp.exp(target_logits - top)
        total = odds.sum(-1) + target_odds
        nats += jnp.sum(weights * (top + jnp.log(total) - target_logits))
        dx, dchunk = gradients_from_odds(odds, weights / total, narrow, columns)
        return (nats, dlayer + dchunk), (dx, weights * (target_odds / total - 1))

    zero = (jnp.zeros((), drawn_bias.dtype), jnp.zeros(layer.shape, drawn_kernel.dtype))
    rows = inputs, jnp.moveaxis(inputs, -1, 1), targets, weights, target_logits
    (nats, dlayer), (dx, d_target_logits) = lax.scan(chunk, zero, rows)
    H = len(drawn_kernel)
    return nats, dlayer[:H], dlayer[H], join(dx), join(d_target_logits)
