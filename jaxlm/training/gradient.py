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
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.ops.embedding import Rows, add_rows

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
) -> Gradient:
    """The gradient of what a recipe minimises on one window.

    Args:
        recipe: Model and optimiser.
        params: The parameters.
        part: The whole batch. With small batches, noise that is given has a leading axis S.
        small_batch: The rows that one gradient is computed of; 0: all.
        length: How many of the T steps count; None: all.
        exact: Traced: the softmax sums all words, whatever words the noise has drawn.

    Returns:
        The cost (nats, summed over T and averaged over B), the carry after the window, and the
        gradient. The embedding's gradient is `Rows`, one row for each token read, where the
        optimiser keeps them.
    """
    keeps_rows = recipe.optimizer.keeps_rows(recipe.model.tied)

    def of_part(part: Part) -> Gradient:
        noise = part.noise
        if noise is None:
            steps, rows = part.inputs.shape
            rows *= recipe.optimizer.dropout_samples
            noise = draw_noise(recipe.model, part.key, steps, rows)
        trained = params
        if keeps_rows:
            trained = {**params, "embedding": Rows(stack.embed(params, part.inputs))}
        gradient_of = jax.value_and_grad(minimised, argnums=1, has_aux=True)
        (_, (cost, carry)), grads = gradient_of(
            recipe, trained, noise, part.inputs, part.targets, part.carry, length, exact
        )
        return cost, carry, grads

    if small_batch:
        return _of_small_batches(of_part, part, small_batch)
    return of_part(part)


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

    AR and TAR (Merity et al. 2017, arXiv:1708.01009) are per token and, with the cost `sum`, summed
    over the steps like the nats; L2 is not.

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
    optimizer = recipe.optimizer
    samples = optimizer.dropout_samples
    if samples > 1:
        inputs, targets = (jnp.repeat(tokens, samples, 1) for tokens in (inputs, targets))
        if isinstance(params["embedding"], Rows):
            rows = jnp.repeat(params["embedding"].values, samples, 1)
            params = {**params, "embedding": Rows(rows)}
    T, B = inputs.shape  # B counts each sample
    steps = T
    counted = None
    if length is not None:
        steps = length
        counted = jnp.broadcast_to((jnp.arange(T) < length)[:, None], (T, B))
    head, raw, features, new_carry = stack.read(model, params, noise, inputs, carry, length)
    weights = None if counted is None else counted.astype(jnp.float32)
    beside = None
    if samples > 1:
        fixed_head, fixed_features = lax.stop_gradient((head, features))
        of_samples = heads.token_nats(model, fixed_head, fixed_features, targets, noise.latents)
        log_shares = _log_shares(of_samples, samples)
        shares = jnp.exp(log_shares)
        weights = shares if weights is None else shares * weights
        beside = jnp.sum(weights * log_shares)
    nats = heads.summed_nats(
        model, head, features, targets, weights, noise.latents, noise.drawn, exact
    )
    if beside is not None:
        nats += beside
    cost = nats / B
    total = cost
    if optimizer.activation_penalty is not None:
        squares = _squares(features, counted)
        total += optimizer.activation_penalty * squares / (B * features.shape[-1])
    if optimizer.temporal_penalty is not None and T > 1:
        between = raw[1:] - raw[:-1]
        later = None if counted is None else counted[1:]
        squares = _squares(between, later) / (B * raw.shape[-1])
        total += optimizer.temporal_penalty * squares * (steps / jnp.maximum(steps - 1, 1))
    if optimizer.cost == "mean":
        total /= steps
    if optimizer.l2_penalty is not None:
        total += optimizer.l2_penalty / 2 * sum(_squares(leaf) for leaf in jax.tree.leaves(params))
    return total, (cost, new_carry)


def _log_shares(nats: Float[Array, "T rows"], samples: int) -> Float[Array, "T rows"]:
    """ln of each sample's part of a token's mean probability, times the number of samples.

    With p_d of the samples d and w_d = p_d / sum(p), the gradient of -ln mean(p) is that of
    sum(w_d nats_d) where w is constant, and its value is sum(w_d (nats_d + ln(D w_d))).

    Args:
        nats: -ln p_d of each target; the samples of a row stand side by side.
        samples: D.
    """
    by_sample = nats.reshape(*nats.shape[:-1], -1, samples)
    log_shares = jax.nn.log_softmax(-by_sample) + math.log(samples)
    return log_shares.reshape(nats.shape)


def _squares(
    x: Float[Array, "*rows"], counted: Bool[Array, "T B"] | None = None
) -> Float[Array, ""]:
    """The sum of squares; of x [T, B, H] only at the steps and rows `counted`."""
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    if counted is None:
        return squares.sum()
    return jnp.where(counted[..., None], squares, 0).sum()


def _of_small_batches(
    of_part: Callable[[Part], Gradient],
    whole: Part,
    small_batch: int,
) -> Gradient:
    """The mean cost of the small batches, their carries as one, and the mean of their gradients.

    Memory is that of one small batch. Masks that all rows of a small batch share, such as those of
    words and weights, differ between small batches (Yang et al. 2018, arXiv:1711.03953).
    """
    T, B = whole.inputs.shape
    S = B // small_batch

    def columns(tokens: Int[Array, "T B"]) -> Int[Array, "S T b"]:
        return jnp.moveaxis(tokens.reshape(T, S, -1), 1, 0)

    def add(
        total: tuple[Scalar, Params], part: Part
    ) -> tuple[tuple[Scalar, Params], tuple[Carry, Params]]:
        cost, carry, grads = of_part(part)
        rows, others = _apart(grads)
        total = jax.tree.map(lambda a, b: a + b / S, total, (cost, others))
        return total, (carry, jax.tree.map(lambda leaf: leaf / S, rows))

    carry = jax.tree.map(lambda leaf: leaf.reshape(S, -1, *leaf.shape[1:]), whole.carry)
    keys = None
    if whole.key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(whole.key, jnp.arange(S))
    parts = Part(columns(whole.inputs), columns(whole.targets), carry, keys, whole.noise)
    cost, _, grads = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (cost, _apart(grads)[1]))
    (cost, others), (carry, rows) = lax.scan(add, zeros, parts)
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(T, B, -1), rows)
    carry = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
    return cost, carry, {**others, **rows}


def _apart(grads: Params) -> tuple[Params, Params]:
    """The gradients that are one row a token read, and the others."""
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
