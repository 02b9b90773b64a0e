"""The kinds of schedules: the factor on the learning rate, window by window or epoch by epoch."""

from dataclasses import dataclass
from typing import ClassVar

from jaxlm.fields import number


@dataclass(frozen=True)
class Schedule:
    """What every schedule has."""

    depends_on_total: ClassVar[bool] = False  # whether other epochs in all give other rates


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant, then decayed once an epoch, as in TensorFlow's PTB tutorial."""

    decay: float = number(0.5, "factor on the rate, each epoch after `hold`", "per epoch", above=0, high=1)
    hold: float = number(4.0, "epochs before the rate decays", "epochs", low=0)
    schedule_offset: float = number(
        1.0,
        "epoch i (from 0) has rate * decay**max(i + offset - hold, 0); older copies of the tutorial use 0",
        "epochs",
    )


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    depends_on_total: ClassVar[bool] = True
    warmup: float = number(0.0, "share of all windows over which the rate rises from zero", low=0, below=1)
    final: float = number(0.01, "factor on the rate at the end", low=0, high=1)


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear warm-up, then linear down to `final`."""

    depends_on_total: ClassVar[bool] = True
    warmup: float = number(0.05, "share of all windows over which the rate rises from zero", low=0, below=1)
    final: float = number(0.0, "factor on the rate at the end", low=0, high=1)


@dataclass(frozen=True)
class Plateau(Schedule):
    """Constant, then lowered each time that validation has stopped improving."""

    plateau_factor: float = number(0.25, "factor on the rate, each time that it is lowered", above=0, below=1)
    plateau_patience: float = number(
        0.0,
        "validations in a row that may fail to improve on the best before the rate is lowered",
        "validations",
        low=0,
    )


SCHEDULES: dict[str, type[Schedule]] = {"piecewise": Piecewise, "cosine": Cosine, "linear": Linear, "plateau": Plateau}
