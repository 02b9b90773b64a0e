"""A mixture of K softmaxes over one layer: a plain reference, and its fused twin.

Yang et al. 2018, arXiv:1711.03953. Letters: `T` steps, `B` batch, `K` experts, `D` width of a
latent vector, `V` vocabulary. The axes of `rows` are [T, B], or [N] without a batch.

    p(word) = sum_k prior_k softmax_k(word)
    prior = softmax(choice)        softmax_k = softmax(latents_k W + b)

The fast path takes the steps in chunks, as `ops/softmax.py` does, and never holds [T, B, K, V] nor
[T, B, V]. The gradient is that of K softmaxes whose nats are weighted by each expert's share
r_k = prior_k softmax_k(target) / p(target), so each chunk's gradient is finished while its logits
are there.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Scalar

from jaxlm.ops import softmax
from jaxlm.ops.devices import by_platform
from jaxlm.ops.product import product
from jaxlm.ops.softmax import (
    Bias,
    Row,
    Targets,
    chunking,
    gradients_from_odds,
    odds_and_pick,
    with_bias,
)

Latent = Float[Array, "*rows K D"]
Choice = Float[Array, "*rows K"]  # logits of the prior
Kernel = Float[Array, "D V"]
Epsilon = Scalar | float | None


def log_probs(
    latents: Latent,
    choice: Choice,
    kernel: Kernel,
    bias: Bias,
    epsilon: Epsilon = None,
) -> Float[Array, "*rows V"]:
    """log p of every word for a few rows, one expert after the other.

    Args:
        latents: What each expert's softmax reads.
        choice: The logits of the prior.
        kernel: The matrix that the experts share.
        bias: Its bias.
        epsilon: Added to each probability.

    Returns:
        The logarithms.
    """

    def add(total, expert):
        latent, log_prior = expert
        logits = product(latent, kernel, latent.dtype) + bias
        return jnp.logaddexp(total, log_prior[..., None] + jax.nn.log_softmax(logits)), None

    experts = jnp.moveaxis(latents, -2, 0), jnp.moveaxis(jax.nn.log_softmax(choice), -1, 0)
    dtype = jnp.promote_types(latents.dtype, bias.dtype)
    nothing = jnp.full((*choice.shape[:-1], len(bias)), -jnp.inf, dtype)
    return _with_epsilon(lax.scan(add, nothing, experts)[0], epsilon)


def token_nats_reference(
    latents,
    choice,
    kernel,
    bias,
    targets,
    epsilon=None,
):
    """`token_nats` written plainly: all probabilities of all experts at once.

    Its weighted sum, differentiated by JAX, is `summed_nats`.

    Args:
        latents: What each expert's softmax reads.
        choice: The logits of the prior.
        kernel: The matrix that the experts share.
        bias: Its bias.
        targets: The word of each row.
        epsilon: Added to each probability.

    Returns:
        -log p of each target in nats.
    """
    experts = jax.nn.softmax(latents @ kernel + bias)
    p = jnp.einsum("...k,...kv->...v", jax.nn.softmax(choice), experts)
    return -jnp.log(
        jnp.take_along_axis(p, targets[..., None], -1)[..., 0] + (0 if epsilon is None else epsilon)
    )


def token_nats(
    latents: Latent,
    choice: Choice,
    kernel: Kernel,
    bias: Bias,
    targets: Targets,
    epsilon: Epsilon = None,
) -> Row:
    """-log p of each target in nats, for evaluation.

    Args:
        latents: What each expert's softmax reads.
        choice: The logits of the prior.
        kernel: The matrix that the experts share.
        bias: Its bias.
        targets: The word of each row.
        epsilon: Added to each probability; None: nothing, and they sum to one.

    Returns:
        The nats.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    softmax.check_shapes(latents[..., 0, :], kernel, bias, targets)
    return by_platform(_token_nats, latents, choice, kernel, bias, targets, epsilon)


def _token_nats(
    on_cpu,
    latents,
    choice,
    kernel,
    bias,
    targets,
    epsilon,
):
    inputs, layer = with_bias(on_cpu, latents, kernel, bias)
    cut, join = chunking(on_cpu, targets.shape, kernel.shape, choice.shape[-1])

    def chunk(_, rows):
        _, _, log_joint = _experts(layer, *rows)
        return None, -_with_epsilon(jax.nn.logsumexp(log_joint, -1), epsilon)

    return join(lax.scan(chunk, None, tuple(map(cut, (inputs, choice, targets))))[1])


def summed_nats(
    latents: Latent,
    choice: Choice,
    kernel: Kernel,
    bias: Bias,
    targets: Targets,
    weights: Row,
    epsilon: Epsilon = None,
) -> Scalar:
    """The sum of weights * -log p of the targets, in nats: the loss, with gradients.

    Dtypes are those of `softmax.summed_nats`.

    Args:
        latents: What each expert's softmax reads.
        choice: The logits of the prior.
        kernel: The matrix that the experts share.
        bias: Its bias.
        targets: The word of each row.
        weights: The weight of each row. Targets, weights and epsilon have no gradients.
        epsilon: Added to each probability.

    Returns:
        The loss.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    softmax.check_shapes(latents[..., 0, :], kernel, bias, targets, weights)
    return _summed_nats(latents, choice, kernel, bias, targets, weights, epsilon)


def _nats_and_gradients(
    on_cpu,
    latents,
    choice,
    kernel,
    bias,
    targets,
    weights,
    epsilon,
):
    """The loss and, in the same pass over the chunks, its gradients."""
    narrow = kernel.astype(latents.dtype)
    inputs, layer = with_bias(on_cpu, latents, kernel, bias)
    cut, join = chunking(on_cpu, targets.shape, kernel.shape, choice.shape[-1])

    def chunk(carry, rows):
        nats, dlayer = carry
        x, choice, targets, weights = rows
        odds, total, log_joint = _experts(layer, x, choice, targets)
        log_p = jax.nn.logsumexp(log_joint, -1)
        log_sum = _with_epsilon(log_p, epsilon)
        nats -= jnp.sum(weights * log_sum)
        weights = (weights * jnp.exp(log_p - log_sum))[..., None]  # times p / (p + epsilon)
        share = jnp.exp(log_joint - log_p[..., None])
        odds -= softmax.is_target(targets[..., None], odds) * total[..., None]
        dlatents, dchunk = gradients_from_odds(
            odds, weights * share / total, narrow, jnp.moveaxis(x, -1, 0)
        )
        dchoice = weights * (jax.nn.softmax(choice) - share)
        return (nats, dlayer + dchunk), (dlatents.astype(x.dtype), dchoice)

    zero = jnp.zeros((), bias.dtype), jnp.zeros(layer.shape, kernel.dtype)
    rows = tuple(map(cut, (inputs, choice, targets, weights)))
    (nats, dlayer), (dlatents, dchoice) = lax.scan(chunk, zero, rows)
    D = len(kernel)
    gradients = join(dlatents), join(dchoice).astype(choice.dtype), dlayer[:D], dlayer[D]
    return nats, (*gradients, None, None, None)


_summed_nats = softmax.with_gradients(partial(by_platform, _nats_and_gradients))


def _experts(
    layer,
    x,
    choice,
    targets,
):
    """The odds of all words [*rows, K, V]; their sum, and log(prior_k p_k(target)) [*rows, K]."""
    logits = product(x, layer, x.dtype)
    targets = jnp.broadcast_to(targets[..., None], choice.shape)
    odds, total, top, picked = odds_and_pick(logits, targets)
    return odds, total, jax.nn.log_softmax(choice) + picked - top - jnp.log(total)


def _with_epsilon(log_p, epsilon):
    """log(p + epsilon)."""
    if epsilon is None:
        return log_p
    return jnp.logaddexp(log_p, jnp.log(jnp.asarray(epsilon, log_p.dtype)))
