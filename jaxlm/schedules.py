"""Kinds of schedules: each has the fields of its config and the factor on the learning rate."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.base.fields import Section, number
from jaxlm.base.kinds import Kinds

Number = jax.Array | int | float


@dataclass(frozen=True)
class Schedule(Section):
    """A factor on the learning rate of each window.

    Attributes:
        depends_on_total: Whether another number of epochs gives other rates.
    """

    depends_on_total: ClassVar[bool] = False

    def factor(
        self,
        step: Number,
        epoch: Number,
        total: Number,
        lowered: Number | None = None,
    ) -> jax.Array:
        """The factor on the rate.

        Args:
            step: The window's number, from 0.
            epoch: Its epoch's number, from 0.
            total: The windows of all epochs.
            lowered: The factor by which validations have lowered the rate, for the plateau
                schedule; None: 1.

        Returns:
            A scalar.
        """
        raise NotImplementedError


SCHEDULES = Kinds[Schedule]()


@SCHEDULES.kind("piecewise")
class Piecewise(Schedule):
    """Constant, then decayed once an epoch, as in TensorFlow's PTB tutorial."""

    decay: float = number(
        0.5, "factor on the rate, each epoch after `hold`", "per epoch", above=0, high=1
    )
    hold: float = number(4.0, "epochs before the rate decays", "epochs", low=0)
    schedule_offset: float = number(
        1.0,
        "epoch i (from 0) has rate * decay**max(i + offset - hold, 0); older tutorials use 0",
        "epochs",
    )
    decay_every: float | None = number(
        None, "epochs from one decay to the next (none: 1)", "epochs", above=0
    )

    def factor(
        self,
        step,
        epoch,
        total,
        lowered=None,
    ) -> jax.Array:
        decays = epoch + self.schedule_offset - self.hold
        if self.decay_every is not None:
            decays = jnp.floor(decays / self.decay_every)
        return self.decay ** jnp.maximum(decays, 0.0)


@SCHEDULES.kind("cosine")
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to `final`.

    (Loshchilov and Hutter 2017, arXiv:1608.03983.)
    """

    depends_on_total = True
    warmup: float = number(
        0.0, "share of all windows over which the rate rises from zero", low=0, below=1
    )
    final: float = number(0.01, "factor on the rate at the end", low=0, high=1)

    def factor(
        self,
        step,
        epoch,
        total,
        lowered=None,
    ) -> jax.Array:
        risen, progress = _warm_up(self.warmup, step, total)
        return risen * (self.final + (1 - self.final) * (1 + jnp.cos(jnp.pi * progress)) / 2)


@SCHEDULES.kind("linear")
class Linear(Schedule):
    """Linear warm-up, then linear down to `final`."""

    depends_on_total = True
    warmup: float = number(
        0.05, "share of all windows over which the rate rises from zero", low=0, below=1
    )
    final: float = number(0.0, "factor on the rate at the end", low=0, high=1)

    def factor(
        self,
        step,
        epoch,
        total,
        lowered=None,
    ) -> jax.Array:
        risen, progress = _warm_up(self.warmup, step, total)
        return risen * (1 - (1 - self.final) * progress)


@SCHEDULES.kind("plateau")
class Plateau(Schedule):
    """Constant, then lowered whenever validation stops improving."""

    plateau_factor: float = number(
        0.25, "factor on the rate, each time the rate is lowered", above=0, below=1
    )
    plateau_patience: float = number(
        0.0,
        "validations in a row without a new best that do not yet lower the rate",
        "validations",
        low=0,
    )

    def factor(
        self,
        step,
        epoch,
        total,
        lowered=None,
    ) -> jax.Array:
        return jnp.asarray(1.0 if lowered is None else lowered, jnp.float32)


def _warm_up(
    warmup: Number,
    step: Number,
    total: Number,
) -> tuple[jax.Array, jax.Array]:
    """The share of the full rate, and the progress from the warm-up's end to the run's end."""
    risen = jnp.minimum((step + 1) / jnp.maximum(warmup * total, 1.0), 1.0)
    progress = (step - warmup * total) / jnp.maximum((1 - warmup) * total, 1.0)
    return risen, jnp.clip(progress, 0.0, 1.0)
