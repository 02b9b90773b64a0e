"""From features to nats: a softmax over the vocabulary, or a mixture of several.

The kernel is the head's own or the embedding (tied), which features reach through a projection where the widths differ.
Letters: `T` steps, `B` batch, `H` width of the features, `D` width that the kernel reads, `K` experts, `V` vocabulary.
`model` is the config's model.
"""

import math

import jax
import jax.numpy as jnp

from jaxlm.models.recurrent import Params, Recurrent, uniform
from jaxlm.ops import mixture, sampled_softmax, softmax
from jaxlm.ops.dropout import apply_mask
from jaxlm.ops.product import product
from jaxlm.ops.sampled_softmax import Drawn


def init_head(model: Recurrent, kernel_key: jax.Array, bias_key: jax.Array) -> Params:
    """`kernel` [D, V], unless it is tied, and `bias` [V]; both uniform in +-init_scale, as in TensorFlow's tutorial.

    With a projection also `projection` [H, D]. With a mixture also `prior` [H, K], `latent_kernel` [H, K * D], both
    drawn likewise, and `latent_bias` [K * D], zero. With `torch_init` these, its bias too, are uniform in +-1/sqrt(H).
    """
    H, D, K, V = model.hidden_sizes[-1], kernel_width(model), model.experts, model.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"kernel": (D, V)} if not model.tied else {}
    if model.projection:
        shapes["projection"] = (H, D)
    if K:
        shapes |= {"prior": (H, K), "latent_kernel": (H, K * D)}
    if K and model.torch_init:
        shapes["latent_bias"] = (K * D,)
    scale = 1 / math.sqrt(H) if model.torch_init else model.init_scale
    own = {
        name: uniform(kernel_key, model.init_scale, *shape)
        if name == "kernel"
        else uniform(jax.random.fold_in(kernel_key, place), scale, *shape)
        for place, (name, shape) in enumerate(shapes.items())
    }
    bias = jnp.zeros(V) if model.torch_init else uniform(bias_key, model.init_scale, V)
    return {**({"latent_bias": jnp.zeros(K * D)} if K else {}), **own, "bias": bias}


def summed_nats(
    model: Recurrent,
    params: Params,
    features: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    kept: jax.Array | None = None,
    drawn: Drawn | None = None,
    exact: jax.Array | bool = False,
) -> jax.Array:
    """The weighted sum of -log p of the targets, in nats, with gradients and flat in memory.

    Args:
        model: the config's model.
        params: its parameters.
        features: [T, B, H].
        targets: [T, B].
        weights: [T, B], constants without a gradient; None: ones.
        kept: `Noise.latents`.
        drawn: words that the softmax's sum is estimated from; None: all words are summed.
        exact: traced; True sums all words in spite of `drawn`.
    """
    weights = jnp.ones(targets.shape) if weights is None else weights
    kernel, bias = _weights(model, params)
    if model.experts:
        latents, choice = _experts(model, params, features, kept)
        return mixture.summed_nats(latents, choice, kernel, bias, targets, weights, model.mixture_epsilon)
    given = _projected(model, params, features, kept), kernel, bias, targets, weights
    return softmax.summed_nats(*given) if drawn is None else sampled_softmax.summed_nats(*given, drawn, exact)


def token_nats(
    model: Recurrent, params: Params, features: jax.Array, targets: jax.Array, kept: jax.Array | None = None
) -> jax.Array:
    """features [T, B, H], targets [T, B] -> -log p of each target [T, B], without gradients; `kept` as above."""
    kernel, bias = _weights(model, params)
    if model.experts:
        latents, choice = _experts(model, params, features, kept)
        return mixture.token_nats(latents, choice, kernel, bias, targets, model.mixture_epsilon)
    return softmax.token_nats(_projected(model, params, features, kept), kernel, bias, targets)


def logits(model: Recurrent, params: Params, features: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """features [..., H] -> logits [..., V]; of a mixture, log p. For a few rows, since nothing is chunked."""
    kernel, bias = _weights(model, params)
    if model.experts:
        return mixture.log_probs(*_experts(model, params, features, kept), kernel, bias, model.mixture_epsilon)
    return product(_projected(model, params, features, kept), kernel, features.dtype) + bias


def kernel_width(model: Recurrent) -> int:
    """D, the width of what the kernel reads."""
    if model.experts:
        return model.latent_size or model.embedding_size
    return model.embedding_size if model.projection else model.hidden_sizes[-1]


def _weights(model: Recurrent, params: Params) -> tuple[jax.Array, jax.Array]:
    """The kernel [D, V] and bias [V], without the words that make a vocabulary divide over devices."""
    kernel = params["embedding"].T if model.tied else params["softmax"]["kernel"]
    return kernel[:, : model.vocab_size], params["softmax"]["bias"][: model.vocab_size]


def _projected(model: Recurrent, params: Params, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
    """[..., H] -> [..., D]."""
    if not model.projection:
        return x
    return apply_mask(product(x, params["softmax"]["projection"], x.dtype).astype(x.dtype), kept, model.keep_latent)


def _experts(
    model: Recurrent, params: Params, x: jax.Array, kept: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """[..., H] -> each expert's latent vector [..., K, D], and the logits of the prior [..., K]."""
    head = params["softmax"]
    latents = jnp.tanh(product(x, head["latent_kernel"], x.dtype) + head["latent_bias"]).astype(x.dtype)
    latents = apply_mask(latents, kept, model.keep_latent)
    return latents.reshape(*x.shape[:-1], model.experts, -1), product(x, head["prior"], x.dtype)
