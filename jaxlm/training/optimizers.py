"""Optimisers: an optax transformation made from the recipe's traced numbers, and the norm that it clips by.

A transformation made anew at each step is the same one: its numbers come from the recipe, its state from the run.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.transforms import partition

from jaxlm.config.config import Recipe
from jaxlm.config.optimizers import ASGD, SGD, AdamW, Descent, Muon, Optimizer
from jaxlm.models import stack
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.ops.newton_schulz import orthogonalized

Number = jax.Array | int | float


def takes_rows(recipe: Recipe) -> bool:
    """Whether the gradient of the embedding may stay one row for each token read, as TensorFlow's IndexedSlices.

    It is exact for plain SGD, and then the global norm counts each occurrence of a word by itself. A tied embedding
    also has a gradient at every word, and so has one that decays.
    """
    optimizer = recipe.optimizer
    if recipe.model.tied or optimizer.l2_penalty is not None:
        return False
    if not isinstance(optimizer, Descent):
        return counts_rows(recipe)
    momentum = getattr(optimizer, "momentum", None)
    return momentum is None and optimizer.weight_decay is None and not _repeats_awd_lstm(optimizer)


def counts_rows(recipe: Recipe) -> bool:
    """Whether rows only count in the global norm, and the update takes the dense gradient: TensorFlow's Adam."""
    return isinstance(recipe.optimizer, AdamW) and recipe.optimizer.compatibility == "lamb"


def transformation(recipe: Recipe, factor: Number) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then the recipe's optimiser at `factor` times its learning rate.

    Its `update` takes the gradient's global norm as `grad_norm`: rows of the embedding count in it one by one.
    """
    optimizer = recipe.optimizer
    quirks = _repeats_awd_lstm(optimizer)
    clip = [] if optimizer.clip_norm is None else [clip_by_given_norm(optimizer.clip_norm, 1e-6 if quirks else None)]
    twice = [optax.stateless(lambda updates, _: _with_biases_times(updates, 2))] if quirks else []
    return optax.chain(*clip, *twice, _RULES[type(optimizer)](recipe.model, optimizer, factor))


def counted_norm(recipe: Recipe, grads: Params) -> jax.Array:
    """The global norm of the gradient, as the recipe counts it."""
    if _repeats_awd_lstm(recipe.optimizer):
        grads = _with_biases_times(grads, math.sqrt(2))
    return optax.tree.norm(grads)


def clip_by_given_norm(max_norm: Number, added: float | None = None) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` of the `grad_norm` that `update` is given; PyTorch's adds 1e-6 to it."""

    def update(updates, state, params=None, **given):
        norm = given["grad_norm"] if added is None else given["grad_norm"] + added
        return jax.tree.map(lambda g: lax.select(norm < max_norm, g, g / norm * max_norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _sgd(model: Recurrent, optimizer: SGD, factor: Number) -> optax.GradientTransformation:
    descent = optax.sgd(optimizer.learning_rate * factor, optimizer.momentum, optimizer.nesterov)
    return optax.chain(*decay, descent) if (decay := _decay(optimizer)) else descent


def _asgd(model: Recurrent, optimizer: ASGD, factor: Number) -> optax.GradientTransformation:
    """SGD; which of its iterates are averaged is told in `averaging.py`."""
    return optax.chain(*_decay(optimizer), optax.sgd(optimizer.learning_rate * factor))


def _decay(optimizer: Descent) -> list[optax.GradientTransformation]:
    """The decay of all parameters: PyTorch's, added to the gradient after clipping."""
    weight = optimizer.weight_decay
    if weight is None:
        return []
    return [
        optax.stateless(
            lambda updates, params: jax.tree.map(lambda update, leaf: update + weight * leaf, updates, params)
        )
    ]


def _adamw(model: Recurrent, optimizer: AdamW, factor: Number) -> optax.GradientTransformation:
    """Adam; with lamb's quirks epsilon is beside the root of the squared gradient's mean before its bias correction."""
    plain = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)

    def update(updates, state, params=None):
        corrected = jnp.sqrt(1 - optimizer.beta2 ** (state.count + 1))
        epsilon = optimizer.epsilon / corrected if optimizer.compatibility == "lamb" else optimizer.epsilon
        return optax.scale_by_adam(optimizer.beta1, optimizer.beta2, epsilon).update(updates, state, params)

    return optax.chain(
        optax.GradientTransformation(plain.init, update),
        optax.add_decayed_weights(optimizer.weight_decay, _matrices),
        optax.scale_by_learning_rate(optimizer.learning_rate * factor),
    )


def _muon(model: Recurrent, optimizer: Muon, factor: Number) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), each gate's matrix orthogonalised by itself; Adam for whatever is no such matrix."""
    muon = optax.chain(
        optax.trace(optimizer.momentum, optimizer.nesterov),
        _orthogonalized_by_gate(model, optimizer),
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.scale_by_learning_rate(optimizer.learning_rate * factor),
    )
    weight = optimizer.adam_weight_decay
    adam = optax.chain(
        optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon),
        *([] if weight is None else [optax.add_decayed_weights(weight, _matrices)]),
        optax.scale_by_learning_rate(optimizer.adam_learning_rate * factor),
    )
    return partition(
        {"muon": muon, "adam": adam},
        lambda params: jax.tree.map(lambda inner: "muon" if inner else "adam", stack.is_inner_matrix(params)),
    )


def _orthogonalized_by_gate(model: Recurrent, optimizer: Muon) -> optax.GradientTransformation:
    """Each gate's part of every kernel [I, gates * H] orthogonalised, in the dtype that the model multiplies in."""
    gates = model.gates

    def orthogonal(kernel: jax.Array) -> jax.Array:
        found = orthogonalized(
            jnp.stack(jnp.split(kernel, gates, 1)),
            optimizer.newton_schulz_steps,
            model.compute_dtype,
            optimizer.newton_schulz_rule,
        )
        return jnp.concatenate(list(found), 1)

    return optax.stateless(lambda updates, _: jax.tree.map(orthogonal, updates))


def _repeats_awd_lstm(optimizer: Optimizer) -> bool:
    """Whether to repeat the published code of AWD-LSTM: two biases a layer, a clipped norm that is 1e-6 larger."""
    return isinstance(optimizer, Descent) and optimizer.compatibility == "awd-lstm"


def _with_biases_times(grads: Any, by: float) -> Any:
    """A gradient with the layers' biases times a number: each of ours is the sum of two equal ones of PyTorch."""
    return jax.tree.map(lambda grad, is_bias: grad * by if is_bias else grad, grads, stack.is_layer_bias(grads))


def _matrices(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


_RULES: dict[type[Optimizer], Callable[[Any, Any, Number], optax.GradientTransformation]] = {
    SGD: _sgd,
    ASGD: _asgd,
    AdamW: _adamw,
    Muon: _muon,
}
