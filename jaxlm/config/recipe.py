"""What a training step takes: a model, an optimiser and a schedule."""

from dataclasses import dataclass

import jax

from jaxlm.models.recurrent import Recurrent
from jaxlm.optimizers.optimizer import Optimizer
from jaxlm.schedules import Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recipe:
    """The pytree that a step takes, whose numbers may be traced.

    Attributes:
        model: A kind of `MODELS`.
        optimizer: A kind of `OPTIMIZERS`.
        schedule: A kind of `SCHEDULES`.
    """

    model: Recurrent
    optimizer: Optimizer
    schedule: Schedule
