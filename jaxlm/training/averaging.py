"""Averages of the parameters, which evaluation uses: exponential, or even from a switch on.

The even average is Polyak and Juditsky's (1992), as AWD-LSTM takes it of SGD's iterates (arXiv:1708.02182) and the
Mogrifier of Adam's (arXiv:1909.01792): before the switch the parameters themselves, from it on the mean of all since.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlm.config.config import Recipe
from jaxlm.config.optimizers import Descent, Optimizer
from jaxlm.models.recurrent import Params
from jaxlm.training.validations import Memory

Number = jax.Array | int | float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Averaging:
    """Of the even average."""

    iterates: jax.Array  # since the switch
    last_rate: jax.Array | None  # of the window before; with compatibility awd-lstm alone


def averages(recipe: Recipe) -> bool:
    """Whether a recipe evaluates an average."""
    return recipe.optimizer.averages_after is not None or recipe.optimizer.average_decay is not None


def first(recipe: Recipe) -> Averaging | None:
    """Before the first window; None unless the optimiser averages evenly."""
    if recipe.optimizer.averages_after is None:
        return None
    return Averaging(jnp.int32(0), jnp.float32(0) if _lags(recipe.optimizer) else None)


def moved_by(recipe: Recipe, averaging: Averaging | None, factor: Number) -> Number:
    """The factor on the learning rate by which this window's update moves.

    PyTorch sets the rate of averaged SGD at the end of a step, so that each step but the first moves by the rate of the
    step before. Compatibility awd-lstm repeats it.
    """
    if averaging is None or averaging.last_rate is None:
        return factor
    return jnp.where(averaging.iterates > 0, averaging.last_rate / recipe.optimizer.learning_rate, factor)


def averaged(
    recipe: Recipe,
    averaging: Averaging | None,
    memory: Memory | None,
    average: Params | None,
    params: Params,
    step: Number,
    factor: Number,
    finite: jax.Array,
) -> tuple[Params | None, Averaging | None]:
    """The average after one more window, and how many iterates are in it.

    Args:
      recipe: its optimiser averages exponentially, evenly, or not at all.
      averaging: of the even average, before the window.
      memory: it knows whether that has started.
      average: before the window; None: there is none.
      params: after the window.
      step: the window's number, from 0.
      factor: of the schedule.
      finite: whether the window made an update; if not, an even average stays.
    """
    if average is None:
        return None, None
    if averaging is None or memory is None or memory.switch is None:
        return _exponential(recipe, average, params, step), None
    counted = averaging.iterates + (memory.switch.averaging & finite)
    # PyTorch's first iterate is overwritten by the second.
    weight = 1 / jnp.maximum(counted - 1 if _lags(recipe.optimizer) else counted, 1).astype(jnp.float32)
    new = jax.tree.map(
        lambda old, new: jnp.where(weight == 1, new, old + weight.astype(old.dtype) * (new - old)), average, params
    )
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, average)
    rate = None if averaging.last_rate is None else jnp.asarray(recipe.optimizer.learning_rate * factor, jnp.float32)
    return new, Averaging(counted, rate)


def _exponential(recipe: Recipe, average: Params, params: Params, step: Number) -> Params:
    """A mean of all iterates, the recent ones weighing more; after a window without an update the iterate is the same.

    Its weights add up to one from the first window on (Adam's bias correction).
    """
    decay = recipe.optimizer.average_decay
    assert decay is not None
    weight = (1 - decay) / (1 - decay ** (jnp.asarray(step, jnp.float32) + 1))
    return jax.tree.map(lambda old, new: old + weight.astype(old.dtype) * (new - old), average, params)


def _lags(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, Descent) and optimizer.compatibility == "awd-lstm"
