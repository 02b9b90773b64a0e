"""What a step minimises on one window, and its gradient: of the whole batch, or of small ones.

Letters: `T` steps, `B` batch, `H` hidden width, `V` vocabulary, `E` embedding width, `S` small
batches.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from jaxlm.config.recipe import Recipe
from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.ops.embedding import Rows, add_rows
from jaxlm.optimizers.optimizer import Optimizer

# The cost, the new carry, and the gradient of what is minimised.
Gradient = tuple[Scalar, Carry, Params]


class Part(NamedTuple):
    """The rows that one gradient is computed of."""

    inputs: Int[Array, "T B"]
    targets: Int[Array, "T B"]
    carry: Carry  # before the window
    key: PRNGKeyArray | None  # of the noise; None: nothing is random, or the noise is given
    noise: Noise | None  # in place of what the key draws


def gradient(
    recipe: Recipe,
    params: Params,
    part: Part,
    small_batch: int,
    length: Scalar | None,
    exact: Scalar | bool,
    ranked: Int[Array, " V"] | None = None,
) -> Gradient:
    """The gradient of what a recipe minimises on one window.

    Args:
        recipe: Model and optimiser.
        params: The parameters.
        part: The whole batch. With small batches, noise that is given has a leading axis S.
        small_batch: The rows that one gradient is computed of; 0: all.
        length: How many of the T steps count; None: all.
        exact: Traced: the softmax sums all words, whatever words the noise has drawn.
        ranked: All ids, the most frequent word's first; None: they are in this order.

    Returns:
        The cost (nats, summed over T and averaged over B), the carry after the window, and the
        gradient. The embedding's gradient is `Rows`, one row for each token read, where the
        optimiser keeps them.
    """
    keeps_rows = recipe.optimizer.keeps_rows(recipe.model.tied)

    def gradient_of(part: Part) -> Gradient:
        noise = part.noise
        if noise is None:
            T, B = part.inputs.shape
            rows = B * recipe.optimizer.dropout_samples
            noise = draw_noise(recipe.model, part.key, T, rows, ranked)
        trained = params
        if keeps_rows:
            trained = {**params, "embedding": Rows(stack.embed(params, part.inputs))}
        differentiated = jax.value_and_grad(minimised, argnums=1, has_aux=True)
        (_, (cost, carry)), grads = differentiated(
            recipe, trained, noise, part.inputs, part.targets, part.carry, length, exact
        )
        return cost, carry, grads

    if small_batch:
        return _mean_of_small_batches(gradient_of, part, small_batch)
    return gradient_of(part)


def minimised(
    recipe: Recipe,
    params: Params,
    noise: Noise,
    inputs: Int[Array, "T B"],
    targets: Int[Array, "T B"],
    carry: Carry,
    length: Scalar | None = None,
    exact: Scalar | bool = False,
) -> tuple[Scalar, tuple[Scalar, Carry]]:
    """What a recipe minimises on one window: the nats, and the penalties that it adds.

    Args:
        recipe: Model and optimiser.
        params: The parameters; the embedding may be the `Rows` read of it.
        noise: What is random in the window.
        inputs: Tokens [T, B].
        targets: The tokens that follow them [T, B].
        carry: Before the window.
        length: How many of the T steps count; None: all.
        exact: Traced: the softmax sums all words, whatever words the noise has drawn.

    Returns:
        What is minimised; and the cost (nats alone, summed over T and averaged over B; of dropout
        samples the nats of their mean probability) with the new carry.
    """
    model = recipe.model
    samples = recipe.optimizer.dropout_samples
    if samples > 1:
        inputs, targets = (jnp.repeat(tokens, samples, 1) for tokens in (inputs, targets))
        if isinstance(params["embedding"], Rows):
            rows = jnp.repeat(params["embedding"].values, samples, 1)
            params = {**params, "embedding": Rows(rows)}
    T, B = inputs.shape  # B counts each sample
    steps = T
    counts = None
    if length is not None:
        steps = length
        counts = jnp.broadcast_to((jnp.arange(T) < length)[:, None], (T, B))
    head, raw, features, new_carry = stack.read(model, params, noise, inputs, carry, length)
    weights = None if counts is None else counts.astype(jnp.float32)
    constant = None
    if samples > 1:
        log_shares = _log_shares(model, head, features, targets, noise, samples)
        shares = jnp.exp(log_shares)
        weights = shares if weights is None else shares * weights
        constant = jnp.sum(weights * log_shares)
    nats = heads.summed_nats(
        model, head, features, targets, weights, noise.latents, noise.drawn, exact
    )
    if constant is not None:
        nats += constant
    cost = nats / B
    total = _penalized(recipe.optimizer, cost, params, features, raw, counts, steps)
    return total, (cost, new_carry)


def _penalized(
    optimizer: Optimizer,
    cost: Scalar,
    params: Params,
    features: Float[Array, "T B H"],
    raw: Float[Array, "T B H"],
    counts: Bool[Array, "T B"] | None,
    steps: Scalar | int,
) -> Scalar:
    """The cost, or its mean over the steps, plus the optimiser's penalties.

    AR and TAR (Merity et al. 2017, arXiv:1708.01009) are per token and, with the cost `sum`, summed
    over the steps like the nats; L2 is not.

    Args:
        optimizer: Which penalties there are.
        cost: Nats, summed over T and averaged over B.
        params: The parameters, for L2.
        features: The last layer's outputs after dropout, for AR.
        raw: The same before dropout, for TAR.
        counts: Which steps count; None: all.
        steps: How many steps count.
    """
    T, B, H = features.shape
    total = cost
    if optimizer.activation_penalty is not None:
        squares = _squares(features, counts)
        total += optimizer.activation_penalty * squares / (B * H)
    if optimizer.temporal_penalty is not None and T > 1:
        differences = raw[1:] - raw[:-1]
        squares = _squares(differences, None if counts is None else counts[1:])
        mean_square = squares / (B * H)
        total += optimizer.temporal_penalty * mean_square * (steps / jnp.maximum(steps - 1, 1))
    if optimizer.cost == "mean":
        total /= steps
    if optimizer.l2_penalty is not None:
        total += optimizer.l2_penalty / 2 * sum(_squares(leaf) for leaf in jax.tree.leaves(params))
    return total


def _log_shares(
    model: Recurrent,
    head: Params,
    features: Float[Array, "T B H"],
    targets: Int[Array, "T B"],
    noise: Noise,
    samples: int,
) -> Float[Array, "T B"]:
    """ln(D w_d), where w_d = p_d / sum(p) is the part of sample d in a token's mean probability.

    The gradient of -ln mean(p) is that of sum(w_d nats_d) where w is constant, and its value is
    sum(w_d (nats_d + ln(D w_d))). The D samples of a row stand side by side.
    """
    head, features = lax.stop_gradient((head, features))
    nats = heads.token_nats(model, head, features, targets, noise.latents)
    by_sample = nats.reshape(len(nats), -1, samples)
    log_shares = jax.nn.log_softmax(-by_sample) + math.log(samples)
    return log_shares.reshape(nats.shape)


def _squares(x: Float[Array, "*rows"], counts: Bool[Array, "T B"] | None = None) -> Scalar:
    """The sum of the squares of x; with `counts` x is [T, B, H], and only where it is true."""
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    if counts is None:
        return squares.sum()
    return jnp.where(counts[..., None], squares, 0).sum()


def _mean_of_small_batches(
    gradient_of: Callable[[Part], Gradient],
    whole: Part,
    small_batch: int,
) -> Gradient:
    """The mean cost and gradient of the small batches, and the carry of the whole batch.

    Memory is that of one small batch. Masks that all rows of a small batch share, such as those of
    words and weights, differ between small batches (Yang et al. 2018, arXiv:1711.03953).
    """
    T, B = whole.inputs.shape
    S = B // small_batch

    def columns(tokens: Int[Array, "T B"]) -> Int[Array, "S T b"]:
        return jnp.moveaxis(tokens.reshape(T, S, -1), 1, 0)

    def add(mean, part: Part):
        cost, carry, grads = gradient_of(part)
        rows, others = _split_rows(grads)
        mean = jax.tree.map(lambda a, b: a + b / S, mean, (cost, others))
        return mean, (carry, jax.tree.map(lambda leaf: leaf / S, rows))

    carry = jax.tree.map(lambda leaf: leaf.reshape(S, -1, *leaf.shape[1:]), whole.carry)
    keys = None
    if whole.key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(whole.key, jnp.arange(S))
    parts = Part(columns(whole.inputs), columns(whole.targets), carry, keys, whole.noise)
    cost, _, grads = jax.eval_shape(gradient_of, jax.tree.map(lambda leaf: leaf[0], parts))
    _, others = _split_rows(grads)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (cost, others))
    (cost, others), (carry, rows) = lax.scan(add, zeros, parts)
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(T, B, -1), rows)
    carry = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
    return cost, carry, {**others, **rows}


def _split_rows(grads: Params) -> tuple[Params, Params]:
    """The gradients that are `Rows`, and the others."""
    rows = {name: leaf for name, leaf in grads.items() if isinstance(leaf, Rows)}
    others = {name: leaf for name, leaf in grads.items() if name not in rows}
    return rows, others


def apply_updates(
    params: Params,
    updates: Any,
    tokens: Int[Array, "T B"],
) -> Params:
    """The parameters plus their updates.

    Args:
        params: The parameters.
        updates: The same tree; `Rows` in it have one row for each token.
        tokens: The tokens [T, B] whose rows of the embedding are updated.
    """

    def add(leaf: Array, update: Array | Rows) -> Array:
        if isinstance(update, Rows):
            return add_rows(leaf, tokens, update)
        return leaf + update

    return jax.tree.map(add, params, updates)
