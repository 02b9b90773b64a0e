"""Optimisers: an optax transformation made from the recipe's traced numbers, and which parameters are evaluated.

A transformation made anew at each step is the same one: its numbers come from the recipe, its state from the run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.transforms import partition

from jaxlm.config.config import Recipe
from jaxlm.config.models import Recurrent
from jaxlm.config.optimizers import SGD, AdamW, Muon, Optimizer
from jaxlm.models import stack
from jaxlm.models.cell import Params
from jaxlm.ops.newton_schulz import orthogonalized

Number = jax.Array | int | float


def takes_rows(recipe: Recipe) -> bool:
    """Whether the gradient of the embedding may stay one row for each token read, as TensorFlow's IndexedSlices.

    It is exact for plain SGD, and then the global norm counts each occurrence of a word by itself. A tied embedding
    also has a gradient at every word.
    """
    optimizer = recipe.optimizer
    plain = isinstance(optimizer, SGD) and optimizer.momentum is None
    return (plain or counts_rows(recipe)) and not recipe.model.tied


def counts_rows(recipe: Recipe) -> bool:
    """Whether rows only count in the global norm, and the update takes the dense gradient: TensorFlow's Adam."""
    return isinstance(recipe.optimizer, AdamW) and recipe.optimizer.compatibility == "lamb"


def transformation(recipe: Recipe, factor: Number) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then the recipe's optimiser at `factor` times its learning rate.

    Its `update` takes the gradient's global norm as `grad_norm`: a device may hold a part of the gradient.
    """
    optimizer = recipe.optimizer
    clip = [] if optimizer.clip_norm is None else [clip_by_given_norm(optimizer.clip_norm)]
    return optax.chain(*clip, _RULES[type(optimizer)](recipe.model, optimizer, factor))


def clip_by_given_norm(max_norm: Number) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` of the `grad_norm` that `update` is given."""

    def update(updates, state, params=None, **given):
        norm = given["grad_norm"]
        return jax.tree.map(lambda g: lax.select(norm < max_norm, g, g / norm * max_norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def state_specs(opt_state: optax.OptState, param_specs: Params, other: Any) -> Any:
    """Where each leaf of the optimiser's state lies: one that belongs to a parameter lies as that does.

    Args:
      opt_state: its leaves may be shapes.
      param_specs: where each parameter lies.
      other: where leaves lie that belong to no parameter.
    """
    by_path = {path: spec for path, spec in jax.tree_util.tree_leaves_with_path(param_specs)}

    def spec(path: tuple[Any, ...], _: Any) -> Any:
        return next((by_path[path[start:]] for start in range(len(path)) if path[start:] in by_path), other)

    return jax.tree_util.tree_map_with_path(spec, opt_state)


def averaged(recipe: Recipe, average: Params | None, params: Params, step: Number, keep: jax.Array) -> Params | None:
    """The exponential average after one more window: a mean of all iterates, the recent ones weighing more.

    Its weights add up to one from the first window on (Adam's bias correction). Where `keep` is true it stays.
    """
    decay = recipe.optimizer.average_decay
    if average is None or decay is None:
        return None
    weight = jnp.where(keep, 0.0, (1 - decay) / (1 - decay ** (jnp.asarray(step, jnp.float32) + 1)))
    return jax.tree.map(lambda old, new: old + weight.astype(old.dtype) * (new - old), average, params)


def _sgd(model: Recurrent, optimizer: SGD, factor: Number) -> optax.GradientTransformation:
    return optax.sgd(optimizer.learning_rate * factor, optimizer.momentum, optimizer.nesterov)


def _adamw(model: Recurrent, optimizer: AdamW, factor: Number) -> optax.GradientTransformation:
    """Adam; with lamb's quirks epsilon is beside the root of the squared gradient's mean before its bias correction."""
    plain = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)

    def update(updates, state, params=None):
        corrected = jnp.sqrt(1 - optimizer.beta2 ** (state.count + 1))
        epsilon = optimizer.epsilon / corrected if optimizer.compatibility == "lamb" else optimizer.epsilon
        return optax.scale_by_adam(optimizer.beta1, optimizer.beta2, epsilon).update(updates, state, params)

    return optax.chain(optax.GradientTransformation(plain.init, update),
                       optax.add_decayed_weights(optimizer.weight_decay, _matrices),
                       optax.scale_by_learning_rate(optimizer.learning_rate * factor))


def _muon(model: Recurrent, optimizer: Muon, factor: Number) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), each gate's matrix orthogonalised by itself; Adam for whatever is no such matrix."""
    muon = optax.chain(
        optax.trace(optimizer.momentum, optimizer.nesterov),
        _orthogonalized_by_gate(model, optimizer.newton_schulz_steps),
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.scale_by_learning_rate(optimizer.learning_rate * factor))
    adam = optax.adam(optimizer.adam_learning_rate * factor, optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    return partition({"muon": muon, "adam": adam}, lambda params: jax.tree.map(
        lambda inner: "muon" if inner else "adam", stack.is_inner_matrix(model, params)))


def _orthogonalized_by_gate(model: Recurrent, steps: int) -> optax.GradientTransformation:
    """Each gate's part of every kernel [I, gates * H] orthogonalised, in the dtype that the model multiplies in."""
    gates = stack.gates_per_kernel(model)

    def orthogonal(kernel: jax.Array) -> jax.Array:
        found = orthogonalized(jnp.stack(jnp.split(kernel, gates, 1)), steps, model.compute_dtype)
        return jnp.concatenate(list(found), 1)

    return optax.stateless(lambda updates, _: jax.tree.map(orthogonal, updates))


def _matrices(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


_RULES: dict[type[Optimizer], Callable[[Any, Any, Number], optax.GradientTransformation]] = {
    SGD: _sgd, AdamW: _adamw, Muon: _muon}
