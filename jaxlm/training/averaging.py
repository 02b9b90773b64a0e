"""Averages of the parameters, which evaluation uses: exponential, or even from a switch on.

The even average is Polyak and Juditsky's (1992), as AWD-LSTM takes it of SGD's iterates (arXiv:1708.02182) and the
Mogrifier of Adam's (arXiv:1909.01792): before the switch the parameters themselves, from it on the mean of all since.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.models.recurrent import Params
from jaxlm.optimizers.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Average:
    """A mean of the parameters after each of so many updates."""

    params: Params
    iterates: Int[Array, "*M"]


def averaged(optimizer: Optimizer, average: Average | None, params: Params, started: Bool[Array, ""]) -> Average | None:
    """The average after one more update.

    An exponential average weighs recent iterates more; its weights add up to one from the first iterate on (Adam's bias
    correction).

    The parameters are those after the update; `started` says whether an even average has (`validations.py`).
    """
    if average is None:
        return None
    if optimizer.average_decay is not None:
        iterates = average.iterates + 1
        weight = (1 - optimizer.average_decay) / (1 - optimizer.average_decay ** iterates.astype(jnp.float32))
    else:
        iterates = average.iterates + started
        weight = 1 / jnp.maximum(iterates - optimizer.forgotten_iterates, 1).astype(jnp.float32)

    def mean(old: Float[Array, "*shape"], new: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.where(weight == 1, new, old + weight.astype(old.dtype) * (new - old))

    return Average(jax.tree.map(mean, average.params, params), iterates)
