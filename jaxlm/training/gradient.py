"""The gradient of one window: of the whole batch at once, or of small batches one after the other.

Letters: `T` steps, `B` batch, `V` vocabulary, `E` embedding width, `S` small batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.config.config import Recipe
from jaxlm.models import stack
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.ops.embedding import Rows, add_rows
from jaxlm.training.cost import minimised

Gradient = tuple[jax.Array, Carry, Params]  # the cost, the new carry, and the gradient of what is minimised


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """The rows that one gradient is computed of.

    Attributes:
        inputs, targets: [T, B].
        carry: before the window.
        key: of the noise; None: nothing is random, or the noise is given.
        noise: in place of what the key draws.
    """

    inputs: jax.Array
    targets: jax.Array
    carry: Carry
    key: jax.Array | None
    noise: Noise | None


def gradient(
    recipe: Recipe, params: Params, part: Part, small_batch: int, length: jax.Array | None, exact: jax.Array | bool
) -> Gradient:
    """The gradient of what a recipe minimises on one window.

    The embedding's gradient is `Rows`, one row for each token read, where the optimiser keeps them.

    Args:
        recipe: model and optimiser.
        params: the parameters.
        part: the whole batch; noise that is given has an axis S before its own where there are small batches.
        small_batch: rows of a small batch; 0: the whole batch at once.
        length: how many of the T steps count, traced; None: all.
        exact: whether all words count where the noise has words drawn, traced.
    """
    keeps_rows = recipe.optimizer.keeps_rows(recipe.model.tied)

    def of_part(part: Part) -> Gradient:
        T, B = part.inputs.shape
        noise = draw_noise(recipe.model, part.key, T, B) if part.noise is None else part.noise
        trained = stack.read_rows(params, part.inputs) if keeps_rows else params

        def cost_fn(trained: Params) -> tuple[jax.Array, tuple[jax.Array, Carry]]:
            return minimised(recipe, trained, noise, part.inputs, part.targets, part.carry, length, exact)

        (_, (cost, carry)), grads = jax.value_and_grad(cost_fn, has_aux=True)(trained)
        return cost, carry, grads

    return _of_small_batches(of_part, part, small_batch) if small_batch else of_part(part)


def _of_small_batches(of_part: Callable[[Part], Gradient], whole: Part, small_batch: int) -> Gradient:
    """The mean cost of the small batches, their carries as one, and the mean of their gradients.

    Memory is that of one small batch, and masks that all rows of a batch share, such as those of words and weights,
    vary within it (Yang et al. 2018, arXiv:1711.03953).
    """
    T, B = whole.inputs.shape
    S = B // small_batch

    def columns(tokens: jax.Array) -> jax.Array:
        return jnp.moveaxis(tokens.reshape(T, S, -1), 1, 0)

    def add(total: tuple[jax.Array, Params], part: Part) -> tuple[tuple[jax.Array, Params], tuple[Carry, Params]]:
        cost, carry, grads = of_part(part)
        rows, others = _apart(grads)
        total = jax.tree.map(lambda a, b: a + b / S, total, (cost, others))
        return total, (carry, jax.tree.map(lambda leaf: leaf / S, rows))

    carry = jax.tree.map(lambda leaf: leaf.reshape(S, -1, *leaf.shape[1:]), whole.carry)
    keys = None if whole.key is None else jax.vmap(jax.random.fold_in, (None, 0))(whole.key, jnp.arange(S))
    parts = Part(columns(whole.inputs), columns(whole.targets), carry, keys, whole.noise)
    cost, _, grads = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (cost, _apart(grads)[1]))
    (cost, others), (carry, rows) = lax.scan(add, zeros, parts)
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(T, B, -1), rows)
    return cost, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry), {**others, **rows}


def _apart(grads: Params) -> tuple[Params, Params]:
    """The gradients that are one row a token read, and the others."""
    rows = {name: part for name, part in grads.items() if isinstance(part, Rows)}
    return rows, {name: part for name, part in grads.items() if name not in rows}


def with_dense_rows(grads: Params, params: Params, tokens: jax.Array) -> Params:
    """The gradient with its rows, one for each of tokens [T, B], added up to a table [V, E]."""
    return {
        name: add_rows(jnp.zeros_like(params[name]), tokens, part) if isinstance(part, Rows) else part
        for name, part in grads.items()
    }


def apply_updates(params: Params, updates: Any, tokens: jax.Array) -> Params:
    """params + updates; an update that is rows has one for each of tokens [T, B]."""
    return {
        name: add_rows(part, tokens, updates[name])
        if isinstance(updates[name], Rows)
        else jax.tree.map(jnp.add, part, updates[name])
        for name, part in params.items()
    }
