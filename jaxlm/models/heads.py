"""From features to nats: the softmax over the vocabulary, with a kernel of its own or tied to the embedding.

Letters: `T` steps, `B` batch, `H` width of the features, `V` vocabulary. `model` is the config's model.
"""

import jax
import jax.numpy as jnp

from jaxlm.config.models import Recurrent
from jaxlm.models.cell import Params, uniform
from jaxlm.ops import softmax


def init_head(model: Recurrent, kernel_key: jax.Array, bias_key: jax.Array) -> Params:
    """`kernel` [H, V], unless it is tied, and `bias` [V]; both uniform in +-init_scale, as in TensorFlow's tutorial."""
    H, V = model.hidden_sizes[-1], model.vocab_size
    kernel = {} if model.tied else {"kernel": uniform(model, kernel_key, H, V)}
    return {**kernel, "bias": uniform(model, bias_key, V)}


def summed_nats(model: Recurrent, params: Params, features: jax.Array, targets: jax.Array,
                weights: jax.Array | None = None) -> jax.Array:
    """features [T, B, H], targets and weights (default: ones) [T, B] -> the weighted sum of -log p of the targets.

    With gradients (none for the weights), and flat in memory.
    """
    weights = jnp.ones(targets.size) if weights is None else weights.reshape(-1)
    return softmax.summed_nats(features.reshape(-1, features.shape[-1]), *_weights(model, params), targets.reshape(-1),
                               weights)


def token_nats(model: Recurrent, params: Params, features: jax.Array, targets: jax.Array) -> jax.Array:
    """features [T, B, H], targets [T, B] -> -log p of each target [T, B], without gradients."""
    nats = softmax.token_nats(features.reshape(-1, features.shape[-1]), *_weights(model, params), targets.reshape(-1))
    return nats.reshape(targets.shape)


def logits(model: Recurrent, params: Params, features: jax.Array) -> jax.Array:
    """features [..., H] -> logits [..., V]; for a few rows, since nothing is chunked."""
    kernel, bias = _weights(model, params)
    return features @ kernel + bias


def _weights(model: Recurrent, params: Params) -> tuple[jax.Array, jax.Array]:
    kernel = params["embedding"].T if model.tied else params["softmax"]["kernel"]
    return kernel, params["softmax"]["bias"]
