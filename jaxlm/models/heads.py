"""From features to nats: a softmax over the vocabulary, or a mixture of several.

The kernel is the head's own or the embedding (tied), which features reach through a projection where the widths differ.
Letters: `T` steps, `B` batch, `H` width of the features, `D` width that the kernel reads, `K` experts, `V` vocabulary.
`model` is the config's model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from jaxlm.models.noise import Mask
from jaxlm.models.recurrent import Params, Recurrent, uniform
from jaxlm.ops import mixture, sampled_softmax, softmax
from jaxlm.ops.dropout import apply_mask
from jaxlm.ops.product import product
from jaxlm.ops.sampled_softmax import Drawn


def init_head(model: Recurrent, kernel_key: PRNGKeyArray, bias_key: PRNGKeyArray) -> Params:
    """`kernel` [D, V], unless it is tied, and `bias` [V]; both uniform in +-init_scale, as in TensorFlow's tutorial.

    With a projection also `projection` [H, D]. With a mixture also `prior` [H, K] and `latent_kernel` [H, K * D], both
    uniform in +-init_scale, and `latent_bias` [K * D], zero. With `torch_init` the projection or the mixture's three
    arrays are uniform in +-1/sqrt(H), and `bias` is zero.
    """
    H = model.hidden_sizes[-1]
    D = model.kernel_width
    K = model.experts
    V = model.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"projection": (H, D)} if model.projection else {}
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
    return {
        **head,
        "bias": jnp.zeros(V) if model.torch_init else uniform(bias_key, model.init_scale, V),
    }


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
    """The weighted sum of -log p of the targets, in nats, with gradients and flat in memory.

    The weights are constants without a gradient (None: ones); `kept` is `Noise.latents`. The softmax's sum is estimated
    from the words `drawn`, unless there are none or `exact`, traced, is true.
    """
    op, given, options = _read(model, params, features, kept)
    weights = jnp.ones(targets.shape) if weights is None else weights
    if drawn is None:
        return op.summed_nats(*given, targets, weights, **options)
    x, kernel, bias = given
    return sampled_softmax.summed_nats(x, kernel, bias, targets, weights, drawn, exact)


def token_nats(
    model: Recurrent,
    params: Params,
    features: Float[Array, "*rows H"],
    targets: Int[Array, "*rows"],
    kept: Mask = None,
) -> Float[Array, "*rows"]:
    """features and targets -> -log p of each target, without gradients; `kept` is `Noise.latents`."""
    op, given, options = _read(model, params, features, kept)
    return op.token_nats(*given, targets, **options)


def logits(
    model: Recurrent, params: Params, features: Float[Array, "*rows H"], kept: Mask = None
) -> Float[Array, "*rows V"]:
    """features -> logits; of a mixture, log p. For a few rows, since nothing is chunked."""
    op, given, options = _read(model, params, features, kept)
    if op is mixture:
        return mixture.log_probs(*given, **options)
    x, kernel, bias = given
    return product(x, kernel, x.dtype) + bias


def _read(
    model: Recurrent, params: Params, x: Float[Array, "*rows H"], kept: Mask
) -> tuple[Any, tuple[Float[Array, "..."], ...], dict[str, Any]]:
    """The op, `softmax` or `mixture`; what it takes before targets, from features; and its options."""
    head = params["softmax"]
    kernel = params["embedding"].T if model.tied else head["kernel"]
    layer = (
        kernel[:, : model.vocab_size],
        head["bias"][: model.vocab_size],
    )  # not the words that make V divide
    if model.experts:
        latents = jnp.tanh(product(x, head["latent_kernel"], x.dtype) + head["latent_bias"]).astype(
            x.dtype
        )
        latents = apply_mask(latents, kept, model.keep_latent).reshape(
            *x.shape[:-1], model.experts, -1
        )
        return (
            mixture,
            (latents, product(x, head["prior"], x.dtype), *layer),
            {"epsilon": model.mixture_epsilon},
        )
    if model.projection:
        x = apply_mask(
            product(x, head["projection"], x.dtype).astype(x.dtype), kept, model.keep_latent
        )
    return softmax, (x, *layer), {}
