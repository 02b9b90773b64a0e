"""What a training step takes: a model, an optimiser and a schedule."""

from dataclasses import dataclass, field

import jax

from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Recurrent
from jaxlm.optimizers.descent import SGD
from jaxlm.optimizers.optimizer import Optimizer
from jaxlm.schedules import Piecewise, Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recipe:
    """The pytree that a step takes, whose numbers may be traced.

    Attributes:
        model: A kind of `MODELS`.
        optimizer: A kind of `OPTIMIZERS`.
        schedule: A kind of `SCHEDULES`.
    """

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)
