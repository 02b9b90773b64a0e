"""A mixture of K softmaxes over one layer (Yang et al. 2018, arXiv:1711.03953): a plain reference, and its fused twin.

Letters: `N` rows (T * B), `K` experts, `D` width of a latent vector, `V` vocabulary.

    p(word) = sum_k prior_k softmax_k(word)        prior = softmax(choice)        softmax_k = softmax(latents_k W + b)

The fast path takes the rows in chunks, as `ops/softmax.py` does, and never holds [N, K, V] nor [N, V]. The gradient is
that of K softmaxes whose nats are weighted by each expert's share r_k = prior_k softmax_k(target) / p(target); so a
chunk finishes its own as soon as its logits are there. Under `shard_map` kernel and bias may be a device's own words.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.distributed import collectives
from jaxlm.ops.product import product
from jaxlm.ops.softmax import _from_odds, _hits, _in_chunks, _odds_and_pick, _with_bias

Number = jax.Array | float


def log_probs(
    latents: jax.Array, choice: jax.Array, kernel: jax.Array, bias: jax.Array, epsilon: Number | None = None
) -> jax.Array:
    """log p of every word, one expert after the other, for a few rows.

    Args:
      latents: [..., K, D].
      choice: logits of the prior [..., K].
      kernel: [D, V], whole.
      bias: [V].
      epsilon: added to each probability; None: nothing, and they sum to one.

    Returns:
      [..., V].
    """

    def add(total, expert):
        latent, log_prior = expert
        return jnp.logaddexp(total, log_prior[..., None] + jax.nn.log_softmax(latent @ kernel + bias)), None

    experts = jnp.moveaxis(latents, -2, 0), jnp.moveaxis(jax.nn.log_softmax(choice), -1, 0)
    nothing = jnp.full((*choice.shape[:-1], len(bias)), -jnp.inf, jnp.promote_types(latents.dtype, bias.dtype))
    return _log_of_sum(lax.scan(add, nothing, experts)[0], epsilon)


def token_nats_reference(
    latents: jax.Array,
    choice: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    epsilon: Number | None = None,
) -> jax.Array:
    """`token_nats` written plainly: all probabilities of all experts at once."""
    experts = jax.nn.softmax(latents @ kernel + bias)
    p = jnp.einsum("nk,nkv->nv", jax.nn.softmax(choice), experts)
    return -jnp.log(jnp.take_along_axis(p, targets[:, None], -1)[:, 0] + (0 if epsilon is None else epsilon))


def summed_nats_reference(
    latents: jax.Array,
    choice: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    epsilon: Number | None = None,
) -> jax.Array:
    """`summed_nats` written plainly, differentiated by JAX."""
    return jnp.vdot(token_nats_reference(latents, choice, kernel, bias, targets, epsilon), weights)


def token_nats(
    latents: jax.Array,
    choice: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    epsilon: Number | None = None,
) -> jax.Array:
    """-log p of each target in nats, for evaluation.

    Args:
      latents: [N, K, D].
      choice: logits of the prior [N, K].
      kernel: [D, V].
      bias: [V].
      targets: integers [N].
      epsilon: added to each probability; None: nothing, and they sum to one.

    Returns:
      Nats [N].

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _check_shapes(latents, choice, kernel, bias, targets)
    x, layer = _layer(latents, kernel, bias)

    def chunk(_, rows):
        _, _, log_joint = _experts(layer, *rows)
        return None, -_log_of_sum(jax.nn.logsumexp(log_joint, -1), epsilon)

    _, nats = lax.scan(chunk, None, _in_chunks(kernel.shape, x, choice, targets, parts=choice.shape[1]))
    return nats.reshape(-1)[: len(targets)]


def summed_nats(
    latents: jax.Array,
    choice: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    epsilon: Number | None = None,
) -> jax.Array:
    """The sum of weights * -log p of the targets, in nats: the loss, with gradients for all but the last three.

    Args:
      latents: [N, K, D]. In bfloat16 the products multiply bfloat16 and sum in float32; the logarithms, the loss and
        the gradients of kernel and bias keep the parameters' dtype.
      choice: logits of the prior [N, K].
      kernel: [D, V].
      bias: [V].
      targets: integers [N].
      weights: [N], constants without a gradient.
      epsilon: added to each probability, a constant; None: nothing.

    Returns:
      The sum in nats, a scalar.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _check_shapes(latents, choice, kernel, bias, targets)
    if weights.shape != targets.shape:
        raise ValueError(f"weights should have targets' shape {targets.shape}; its shape is {weights.shape}")
    return _summed_nats(latents, choice, kernel, bias, targets, weights, epsilon)


@jax.custom_vjp
def _summed_nats(latents, choice, kernel, bias, targets, weights, epsilon):
    return jnp.vdot(token_nats(latents, choice, kernel, bias, targets, epsilon), weights)


def _forward(latents, choice, kernel, bias, targets, weights, epsilon):
    """The loss and, in the same pass over the chunks, its gradients for a cotangent of one."""
    (N, K, D), dtype = latents.shape, latents.dtype
    x, layer = _layer(latents, kernel, bias)
    narrow = kernel.astype(dtype)

    def chunk(carry, rows):
        nats, dlayer = carry
        x, choice, targets, weights = rows
        odds, total, log_joint = _experts(layer, x, choice, targets)
        log_p = jax.nn.logsumexp(log_joint, -1)
        log_sum = _log_of_sum(log_p, epsilon)
        nats -= jnp.vdot(weights, log_sum)
        weights = (weights * jnp.exp(log_p - log_sum))[:, None]  # p / (p + epsilon): what the log of the sum passes on
        share = jnp.exp(log_joint - log_p[:, None])
        odds -= _hits(jnp.repeat(targets, K), odds) * total[:, None]
        dlatents, dchunk = _from_odds(odds, (weights * share).reshape(-1) / total, narrow, x.reshape(-1, x.shape[-1]).T)
        dchoice = weights * (jax.nn.softmax(choice) - share)
        return (nats, dlayer + dchunk), (dlatents.astype(dtype), dchoice)

    zero = jnp.zeros((), bias.dtype), jnp.zeros(layer.shape, kernel.dtype)
    rows = _in_chunks(kernel.shape, x, choice, targets, weights, parts=K)
    (nats, dlayer), (dlatents, dchoice) = lax.scan(chunk, zero, rows)
    dlatents = collectives.sum_over_model(dlatents).reshape(-1, K, D)[:N]
    return nats, (dlatents, dchoice.reshape(-1, K)[:N].astype(choice.dtype), dlayer[:D], dlayer[D])


def _backward(gradients, cotangent):
    return *((cotangent * gradient).astype(gradient.dtype) for gradient in gradients), None, None, None


_summed_nats.defvjp(_forward, _backward)


def _layer(latents, kernel, bias):
    """Latents [N, K, D] and kernel with the bias as one more input of one, as `ops/softmax.py` adds it."""
    N, K, D = latents.shape
    x, layer = _with_bias(latents.reshape(N * K, D), kernel, bias)
    return x.reshape(N, K, -1), layer


def _experts(layer, x, choice, targets):
    """Of n rows: odds [n * K, V], their sums [n * K], and log(prior_k softmax_k(target)) [n, K]."""
    n, K, D = x.shape
    logits = product(x.reshape(n * K, D), layer, x.dtype)
    odds, total, top, picked = _odds_and_pick(logits, jnp.repeat(targets, K))
    return odds, total, jax.nn.log_softmax(choice) + (picked - top - jnp.log(total)).reshape(n, K)


def _log_of_sum(log_p, epsilon):
    return log_p if epsilon is None else jnp.logaddexp(log_p, jnp.log(jnp.asarray(epsilon, log_p.dtype)))


def _check_shapes(latents, choice, kernel, bias, targets):
    if latents.ndim != 3 or kernel.ndim != 2:
        raise ValueError(
            f"latents should be [N, K, D] and kernel [D, V]; their shapes are {latents.shape} and {kernel.shape}"
        )
    (N, K, D), V = latents.shape, kernel.shape[1]
    for name, array, shape in (
        ("choice", choice, (N, K)),
        ("kernel", kernel, (D, V)),
        ("bias", bias, (V,)),
        ("targets", targets, (N,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} should have the shape {shape}; its shape is {array.shape}")
    for name, array in (("latents", latents), ("choice", choice), ("kernel", kernel), ("bias", bias)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} should be floating-point numbers; its dtype is {array.dtype}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets should be integers; they are {targets.dtype}")
