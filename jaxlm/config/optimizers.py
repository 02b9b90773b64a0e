"""The kinds of optimisers, each a frozen dataclass of its numbers (traced) and switches (static)."""

from dataclasses import dataclass
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.fields import choice, count, flag, number


def _latest(**relations: Any) -> Any:
    return count(
        None,
        "the average of nonmonotone starts after so many validations at the latest (none: it may never start)",
        "validations",
        low=1,
        **relations,
    )


@dataclass(frozen=True)
class Optimizer:
    """What every optimiser has."""

    learning_rate: float = number(1.0, "rate before the schedule's factor", above=0, own=True)
    clip_norm: float | None = number(
        5.0, "largest global norm of the gradient (none: no clipping)", above=0, optional=True, own=True
    )
    average_decay: float | None = number(
        None,
        "decay of an exponential average of the parameters, which evaluation then uses (none: no average)",
        "per window",
        above=0,
        below=1,
    )

    cost: str = choice(
        "sum",
        "what is minimised: nats summed over the steps and averaged over the batch, or their mean over all tokens",
        ("sum", "mean"),
    )
    activation_penalty: float | None = number(
        None,
        "weight of the mean square of the last layer's outputs after dropout: AR (none: absent; arXiv:1708.01009)",
        low=0,
    )
    temporal_penalty: float | None = number(
        None,
        "weight of the mean square of the differences between steps of the "
        "last layer's outputs before dropout: TAR (none: absent)",
        low=0,
    )
    l2_penalty: float | None = number(
        None,
        "weight of half the squared norm of all parameters, in the cost whose gradient is clipped (none: absent)",
        low=0,
    )

    @property
    def averages_after(self) -> int | None:
        """What `nonmonotone` is; None where there is no even average of the parameters."""
        return getattr(self, "nonmonotone", None)

    @property
    def averages_latest(self) -> int | None:
        """What `average_latest` is; None where no number of validations starts that average."""
        return getattr(self, "average_latest", None)

    @property
    def averages_once_stale(self) -> bool:
        """Whether that average starts once the best validation is so many validations old."""
        return False

    def counted(self, predictions: int, rows: int) -> int:
        """What the nats of `predictions` in so many rows are divided by."""
        return predictions


@dataclass(frozen=True)
class Descent(Optimizer):
    """What plain gradient descent has, averaged or not."""

    weight_decay: float | None = number(
        None, "decay of all parameters, times the learning rate, after clipping (none: absent)", low=0
    )
    compatibility: str = choice(
        "none",
        "whose quirks to repeat: none, or awd-lstm, the published code of AWD-LSTM (docs/awd-lstm.md)",
        ("none", "awd-lstm"),
    )

    def counted(self, predictions: int, rows: int) -> int:
        return predictions if self.compatibility == "none" else predictions + rows


@dataclass(frozen=True)
class SGD(Descent):
    """Stochastic gradient descent."""

    momentum: float | None = number(None, "decay of the accumulated gradient (none: no momentum)", low=0, below=1)
    nesterov: bool = flag(False, "Nesterov's momentum", needs=("momentum",))


@dataclass(frozen=True)
class ASGD(Descent):
    """Averaged SGD from when validation stops improving on: NT-ASGD (Merity et al. 2018, arXiv:1708.02182)."""

    nonmonotone: int = count(
        5,
        "averaging starts after a validation that is worse than the best of all but the last "
        "so many before it (0: it starts with the first window)",
        "validations",
        high=10_000,
    )
    average_latest: int | None = _latest()

    def check(self) -> None:
        if self.average_decay is not None:
            raise JaxlmError(
                "average_decay averages exponentially and the optimizer asgd averages evenly, so that one "
                "of them must go: set average_decay to none, or take the optimizer sgd"
            )


@dataclass(frozen=True)
class Adaptive(Optimizer):
    """What AdamW and Muon have."""

    nonmonotone: int | None = count(
        None,
        "an even average of the parameters, which evaluation then uses, starts after "
        "a validation that is worse than the best of all but the last so many before "
        "it (0: with the first window; none: no such average)",
        "validations",
        high=10_000,
        excludes=("average_decay",),
    )
    average_latest: int | None = _latest(needs=("nonmonotone",))


@dataclass(frozen=True)
class AdamW(Adaptive):
    """Adam with decoupled weight decay on the matrices (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    learning_rate: float = number(0.002, "rate before the schedule's factor", above=0, own=True)
    clip_norm: float | None = number(
        1.0, "largest global norm of the gradient (none: no clipping)", above=0, optional=True, own=True
    )
    beta1: float = number(0.9, "decay of the gradient's mean", low=0, below=1)
    beta2: float = number(0.999, "decay of the squared gradient's mean", low=0, below=1)
    epsilon: float = number(1e-8, "added to the root of the squared gradient's mean", above=0)
    weight_decay: float = number(0.0, "decay of the matrices, times the learning rate", low=0)
    compatibility: str = choice(
        "none",
        "whose quirks to repeat: none, or lamb, the Mogrifier's published code, and TensorFlow 1 (docs/mogrifier.md)",
        ("none", "lamb"),
    )

    @property
    def averages_once_stale(self) -> bool:
        return self.compatibility == "lamb"


@dataclass(frozen=True)
class Muon(Adaptive):
    """Muon on the matrices of the layers, one a gate, and Adam on the rest (Jordan et al. 2024)."""

    learning_rate: float = number(0.02, "rate of the layers' matrices before the schedule's factor", above=0, own=True)
    clip_norm: float | None = number(
        1.0, "largest global norm of the gradient (none: no clipping)", above=0, optional=True, own=True
    )
    momentum: float = number(0.95, "decay of the accumulated gradient of the layers' matrices", low=0, below=1)
    nesterov: bool = flag(True, "Nesterov's momentum")
    newton_schulz_steps: int = count(5, "iterations that orthogonalise an update", "iterations", low=1, high=100)
    newton_schulz_rule: str = choice(
        "jordan",
        "the polynomials of these iterations: jordan, the same in each, or "
        "polar-express, the best for each (arXiv:2505.16932)",
        ("jordan", "polar-express"),
    )
    adam_learning_rate: float = number(0.002, "rate of Adam for the embedding, the softmax and the biases", above=0)
    beta1: float = number(0.9, "Adam's decay of the gradient's mean", low=0, below=1)
    beta2: float = number(0.999, "Adam's decay of the squared gradient's mean", low=0, below=1)
    epsilon: float = number(1e-8, "Adam's addition to the root of the squared gradient's mean", above=0)
    weight_decay: float = number(0.0, "decay of the layers' matrices, times their learning rate", low=0)
    adam_weight_decay: float | None = number(None, "decay of Adam's matrices, times Adam's rate (none: absent)", low=0)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "asgd": ASGD, "adamw": AdamW, "muon": Muon}
