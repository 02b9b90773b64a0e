"""Adam with decoupled weight decay; and what it shares with Muon."""

from dataclasses import dataclass

import optax

from jaxlm.base.fields import count, flag, number
from jaxlm.optimizers.optimizer import OPTIMIZERS, Optimizer, average_latest, matrices


@dataclass(frozen=True)
class Adaptive(Optimizer):
    """The fields that AdamW and Muon share."""

    nonmonotone: int | None = count(
        None,
        "a Polyak average of the parameters, which evaluation then uses, starts after a "
        "validation worse than the best of all but the last N before it (0: with the first "
        "window; none: no Polyak average)",
        "validations",
        high=10_000,
        excludes=("average_decay", "two_tailed"),
    )
    average_latest: int | None = average_latest(needs=("nonmonotone",))
    clip_norm: float | None = number(
        1.0,
        "largest global norm of the gradient (none: no clipping)",
        above=0,
        optional=True,
        kind_specific=True,
    )
    beta1: float = number(
        0.9, "Adam's decay of the gradient's mean", low=0, below=1, kind_specific=True
    )
    beta2: float = number(
        0.999, "Adam's decay of the squared gradient's mean", low=0, below=1, kind_specific=True
    )
    epsilon: float = number(
        1e-8,
        "Adam's addition to the root of the squared gradient's mean",
        above=0,
        kind_specific=True,
    )

    def adam(self) -> optax.GradientTransformation:
        """Adam's direction, before the rate."""
        return optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)


@OPTIMIZERS.kind("adamw")
class AdamW(Adaptive):
    """Adam with decoupled weight decay on the matrices (arXiv:1711.05101)."""

    learning_rate: float = number(
        0.002, "rate before the schedule's factor", above=0, kind_specific=True
    )
    weight_decay: float = number(0.0, "decay of the matrices, times the learning rate", low=0)
    rectified: bool = flag(
        False,
        "RAdam: steps are small while few gradients are known, the first ones without Adam's root "
        "(arXiv:1908.03265)",
    )

    def adam(self) -> optax.GradientTransformation:
        """Adam's direction, or RAdam's."""
        if self.rectified:
            return optax.scale_by_radam(self.beta1, self.beta2, self.epsilon)
        return super().adam()

    def rule(self, model, factor) -> optax.GradientTransformation:
        return optax.chain(
            self.adam(),
            optax.add_decayed_weights(self.weight_decay, matrices),
            optax.scale_by_learning_rate(self.learning_rate * factor),
        )
