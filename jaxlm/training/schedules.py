"""Schedules: the factor on the learning rate of each window, from traced numbers."""

import math

import jax
import jax.numpy as jnp

from jaxlm.config.schedules import Cosine, Linear, Piecewise, Plateau, Schedule

Number = jax.Array | int | float


def factor(schedule: Schedule, step: Number, epoch: Number, total: Number, lowered: Number | None = None) -> jax.Array:
    """The factor on the rate.

    Args:
      schedule: of any kind; its numbers may be traced.
      step, epoch: the window's and its epoch's number, from 0.
      total: the windows of all epochs.
      lowered: what the plateau schedule's validations have brought the factor to (none yet: 1).
    """
    if isinstance(schedule, Plateau):
        return jnp.asarray(1.0 if lowered is None else lowered, jnp.float32)
    if isinstance(schedule, Piecewise):
        return schedule.decay ** jnp.maximum(epoch + schedule.schedule_offset - schedule.hold, 0.0)
    if isinstance(schedule, Cosine):
        risen, progress = _warm_up(schedule.warmup, step, total)
        return risen * (schedule.final + (1 - schedule.final) * (1 + jnp.cos(math.pi * progress)) / 2)
    assert isinstance(schedule, Linear)
    risen, progress = _warm_up(schedule.warmup, step, total)
    return risen * (1 - (1 - schedule.final) * progress)


def _warm_up(warmup: Number, step: Number, total: Number) -> tuple[jax.Array, jax.Array]:
    """How far the rate has risen, and the progress from the warm-up's end to the run's, both in [0, 1]."""
    rising = jnp.maximum(warmup * total, 1.0)
    risen = jnp.minimum((step + 1) / rising, 1.0)
    return risen, jnp.clip((step - warmup * total) / jnp.maximum((1 - warmup) * total, 1.0), 0.0, 1.0)
