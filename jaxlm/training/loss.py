"""From a window to its loss: summed nats, with the count that they are to be divided by."""

import jax
import jax.numpy as jnp

from jaxlm.config.config import Hyper
from jaxlm.models import lstm as model
from jaxlm.ops import softmax


def window_nats(params: model.Params, hyper: Hyper, embedded: jax.Array, targets: jax.Array, carry: model.Carry,
                dropout_key: jax.Array | None = None, recurrent_op: str = "scan"
                ) -> tuple[jax.Array, tuple[int, model.Carry]]:
    """Embedded inputs [T, B, E], targets [T, B] -> (summed nats, (tokens predicted, new carry)), for training."""
    h, carry = model.apply(params, hyper, embedded, carry, dropout_key, recurrent_op)
    nats = softmax.summed_nats(h.reshape(-1, h.shape[-1]), **params["softmax"], targets=targets.reshape(-1),
                               weights=jnp.ones(targets.size))
    return nats, (targets.size, carry)


def token_nats(params: model.Params, hyper: Hyper, embedded: jax.Array, targets: jax.Array,
               carry: model.Carry) -> tuple[jax.Array, model.Carry]:
    """The same -> (nats of each target [T, B], new carry), without dropout or gradients, for evaluation."""
    h, carry = model.apply(params, hyper, embedded, carry)
    nats = softmax.token_nats(h.reshape(-1, h.shape[-1]), **params["softmax"], targets=targets.reshape(-1))
    return nats.reshape(targets.shape), carry
