"""Gradient descent, averaged or not."""

from dataclasses import dataclass

import optax

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import count, flag, number
from jaxlm.optimizers.optimizer import OPTIMIZERS, Optimizer, average_latest


@dataclass(frozen=True)
class Descent(Optimizer):
    """What SGD and ASGD share."""

    weight_decay: float | None = number(
        None,
        "decay of all parameters, times the learning rate, after clipping (none: absent)",
        low=0,
    )

    def keeps_rows(self, tied: bool) -> bool:
        return not tied and self.l2_penalty is None and self.weight_decay is None

    def decay(self) -> list[optax.GradientTransformation]:
        """The decay of all parameters, added to the gradient as PyTorch's SGD adds it; []: none."""
        if self.weight_decay is None:
            return []
        return [optax.add_decayed_weights(self.weight_decay)]


@OPTIMIZERS.kind("sgd")
class SGD(Descent):
    """Stochastic gradient descent."""

    momentum: float | None = number(
        None, "decay of the accumulated gradient (none: no momentum)", low=0, below=1
    )
    nesterov: bool = flag(False, "Nesterov's momentum", needs=("momentum",))

    def keeps_rows(self, tied: bool) -> bool:
        return super().keeps_rows(tied) and self.momentum is None

    def rule(self, model, factor) -> optax.GradientTransformation:
        return optax.chain(
            *self.decay(), optax.sgd(self.learning_rate * factor, self.momentum, self.nesterov)
        )


@OPTIMIZERS.kind("asgd")
class ASGD(Descent):
    """Averaged SGD from when validation stops improving: NT-ASGD (arXiv:1708.02182)."""

    nonmonotone: int = count(
        5,
        "averaging starts after a validation worse than the best of all but the last N before it "
        "(0: with the first window)",
        "validations",
        high=10_000,
    )
    average_latest: int | None = average_latest()

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        if self.average_decay is not None or self.two_tailed:
            name = "two_tailed" if self.two_tailed else "average_decay"
            raise JaxlmError(
                f"{name} and the optimizer asgd both average the parameters: leave one of them out"
            )

    def rule(self, model, factor) -> optax.GradientTransformation:
        return optax.chain(*self.decay(), optax.sgd(self.learning_rate * factor))
