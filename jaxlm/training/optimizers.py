"""The optimiser: an optax chain, and the schedule of its rate, both made from `Hyper`'s traced numbers."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxlm.config.config import Hyper

# Hyper becomes a pytree here and not in config.py, so that a command line's help need not load JAX.
jax.tree_util.register_dataclass(Hyper, [item.name for item in fields(Hyper)], [])


def learning_rate(hyper: Hyper, epoch: jax.Array | int) -> jax.Array:
    """The rate in `epoch` (from 0): constant, then decayed once an epoch, as in TensorFlow's PTB tutorial."""
    return hyper.learning_rate * hyper.decay ** jnp.maximum(epoch + hyper.schedule_offset - hyper.hold, 0.0)


def optimizer(hyper: Hyper, rate: jax.Array | float) -> optax.GradientTransformationExtraArgs:
    """Clip by the global norm, then SGD. Its state is empty, so a chain made anew at each step is the same."""
    return optax.chain(clip_by_given_norm(hyper.clip_norm), optax.sgd(rate))


def clip_by_given_norm(max_norm: jax.Array | float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` of a `grad_norm` that `update` is given: a device may hold a part of the gradient."""

    def update(updates, state, params=None, **given):
        norm = given["grad_norm"]
        return jax.tree.map(lambda g: lax.select(norm < max_norm, g, g / norm * max_norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
