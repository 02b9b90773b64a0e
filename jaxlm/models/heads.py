"""From features to nats: a softmax over the vocabulary, or a mixture of several.

The kernel is the head's own or the embedding (tied), which features reach through a projection
where the widths differ.
Letters: `T` steps, `B` batch, `H` width of the features, `D` width that the kernel reads, `K`
    experts, `V` vocabulary. `model` is the config's model.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from jaxlm.models.recurrent import Params, Recurrent, uniform
from jaxlm.ops import mixture, sampled_softmax, softmax
from jaxlm.ops.dropout import Mask, apply_mask
from jaxlm.ops.product import product
from jaxlm.ops.sampled_softmax import Drawn


def init_head(
    model: Recurrent,
    kernel_key: PRNGKeyArray,
    bias_key: PRNGKeyArray,
) -> Params:
    """Fresh parameters of the head.

    All are uniform in +-init_scale, as in TensorFlow's tutorial, but for a mixture's `latent_bias`,
    which is zero. With `torch_init` the arrays that read features are uniform in +-1/sqrt(H), and
    `bias` is zero.

    Args:
        model: The config's model.
        kernel_key: For the kernels.
        bias_key: For the bias.

    Returns:
        `bias` [V]; `kernel` [D, V], unless it is tied; with a projection `projection` [H, D]; with
        a mixture `prior` [H, K], `latent_kernel` [H, K * D] and `latent_bias` [K * D].
    """
    H = model.hidden_sizes[-1]
    D = model.kernel_width
    K = model.experts
    V = model.vocab_size
    shapes: dict[str, tuple[int, ...]] = {}
    if model.projection:
        shapes["projection"] = (H, D)
    if K:
        shapes |= {"prior": (H, K), "latent_kernel": (H, K * D), "latent_bias": (K * D,)}
    scale = H**-0.5 if model.torch_init else model.init_scale
    head = {
        name: uniform(jax.random.fold_in(kernel_key, place), scale, *shape)
        for place, (name, shape) in enumerate(shapes.items(), 0 if model.tied else 1)
    }
    if K and not model.torch_init:
        head["latent_bias"] = jnp.zeros(K * D)
    if not model.tied:
        head["kernel"] = uniform(kernel_key, model.init_scale, D, V)
    head["bias"] = jnp.zeros(V) if model.torch_init else uniform(bias_key, model.init_scale, V)
    return head


def summed_nats(
    model: Recurrent,
    params: Params,
    features: Float[Array, "T B H"],
    targets: Int[Array, "T B"],
    weights: Float[Array, "T B"] | None = None,
    kept: Mask = None,
    drawn: Drawn | None = None,
    exact: Scalar | bool = False,
) -> Scalar:
    """The weighted sum of -log p of the targets, with gradients and flat in memory.

    Args:
        model: The config's model.
        params: All parameters of the model.
        features: What the head reads.
        targets: Ids.
        weights: Constants without a gradient; None: ones.
        kept: The mask `Noise.latents`.
        drawn: Words that the softmax's sum is estimated from; None: it sums all words.
        exact: Traced; whether all words are summed though there are words drawn.

    Returns:
        Nats.
    """
    kernel, bias = _kernel_and_bias(model, params)
    if model.experts:
        latents, prior = _latents_and_prior(model, params, features, kept)
        weights = jnp.ones(targets.shape) if weights is None else weights
        epsilon = model.mixture_epsilon
        return mixture.summed_nats(latents, prior, kernel, bias, targets, weights, epsilon)
    x = _projected(model, params, features, kept)
    weights = jnp.ones(targets.shape) if weights is None else weights
    if drawn is None:
        return softmax.summed_nats(x, kernel, bias, targets, weights)
    return sampled_softmax.summed_nats(x, kernel, bias, targets, weights, drawn, exact)


def token_nats(
    model: Recurrent,
    params: Params,
    features: Float[Array, "*rows H"],
    targets: Int[Array, "*rows"],
    kept: Mask = None,
) -> Float[Array, "*rows"]:
    """-log p of each target, without gradients.

    Args:
        model: The config's model.
        params: All parameters of the model.
        features: What the head reads.
        targets: Ids.
        kept: The mask `Noise.latents`.

    Returns:
        Nats.
    """
    kernel, bias = _kernel_and_bias(model, params)
    if model.experts:
        latents, prior = _latents_and_prior(model, params, features, kept)
        return mixture.token_nats(latents, prior, kernel, bias, targets, model.mixture_epsilon)
    x = _projected(model, params, features, kept)
    return softmax.token_nats(x, kernel, bias, targets)


def logits(
    model: Recurrent,
    params: Params,
    features: Float[Array, "*rows H"],
    kept: Mask = None,
) -> Float[Array, "*rows V"]:
    """Logits; of a mixture, log p.

    Args:
        model: The config's model.
        params: All parameters of the model.
        features: What the head reads: a few rows, since nothing is chunked.
        kept: The mask `Noise.latents`.

    Returns:
        An array whose last axis is the vocabulary.
    """
    kernel, bias = _kernel_and_bias(model, params)
    if model.experts:
        latents, prior = _latents_and_prior(model, params, features, kept)
        return mixture.log_probs(latents, prior, kernel, bias, model.mixture_epsilon)
    x = _projected(model, params, features, kept)
    return product(x, kernel, x.dtype) + bias


def _kernel_and_bias(
    model: Recurrent, params: Params
) -> tuple[Float[Array, "D V"], Float[Array, " V"]]:
    """The softmax's kernel, which is the embedding if it is tied, and its bias."""
    head = params["softmax"]
    kernel = params["embedding"].T if model.tied else head["kernel"]
    # Columns beyond the vocabulary only make V divide over the devices.
    return kernel[:, : model.vocab_size], head["bias"][: model.vocab_size]


def _latents_and_prior(
    model: Recurrent,
    params: Params,
    x: Float[Array, "*rows H"],
    kept: Mask,
) -> tuple[Float[Array, "*rows K D"], Float[Array, "*rows K"]]:
    """What the softmaxes of a mixture read, and the logits of their prior."""
    head = params["softmax"]
    latents = product(x, head["latent_kernel"], x.dtype) + head["latent_bias"]
    latents = jnp.tanh(latents).astype(x.dtype)
    latents = apply_mask(latents, kept, model.keep_latent)
    latents = latents.reshape(*x.shape[:-1], model.experts, -1)
    return latents, product(x, head["prior"], x.dtype)


def _projected(
    model: Recurrent,
    params: Params,
    x: Float[Array, "*rows H"],
    kept: Mask,
) -> Float[Array, "*rows D"]:
    """What a plain softmax reads: the features, or their projection."""
    if not model.projection:
        return x
    x = product(x, params["softmax"]["projection"], x.dtype).astype(x.dtype)
    return apply_mask(x, kept, model.keep_latent)
