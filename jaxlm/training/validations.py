"""The record of validations, by which averaging starts, the rate falls and the run ends.

The record is a part of the training state: it is saved, resumed and mapped over members with the
state. A mechanism that the recipe does not have is None in the record; without any there is no
record.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxlm.config.recipe import Recipe
from jaxlm.models.recurrent import Params
from jaxlm.optimizers.optimizer import Optimizer
from jaxlm.schedules import Plateau, Schedule


class Switch(NamedTuple):
    """Whether the Polyak average has started, and the losses that NT-ASGD's rule compares."""

    recent: Float[Array, " nonmonotone"]  # the last losses, the oldest first
    older: Float[Array, ""]  # the lowest loss before `recent`
    averaging: Bool[Array, ""]
    made: Int[Array, ""] | None  # validations so far; with average_latest alone


class Lowered(NamedTuple):
    """What the plateau schedule has done to the rate."""

    factor: Float[Array, ""]  # on the rate
    waited: Int[Array, ""]  # validations since the best improved or the rate was lowered


class Validations(NamedTuple):
    """The record of all validations so far."""

    best: Float[Array, ""]  # the lowest loss
    stale: Int[Array, ""]  # validations since the lowest loss
    switch: Switch | None
    lowered: Lowered | None
    slowed: Float[Array, ""] | None = None  # the factor on the rate by all restarts


def first_validations(recipe: Recipe, patience: int = 0) -> Validations | None:
    """The record before any validation; None where nothing depends on one.

    Args:
        recipe: Optimiser and schedule.
        patience: Of early stopping; 0: a run never ends early.
    """
    switch = None
    lowered = None
    after = recipe.optimizer.averages_after
    if after is not None:
        made = None
        if recipe.optimizer.averages_latest is not None:
            made = jnp.int32(0)
        switch = Switch(_never(after), _never(), jnp.bool_(after == 0), made)
    if isinstance(recipe.schedule, Plateau):
        lowered = Lowered(jnp.float32(1), jnp.int32(0))
    slowed = None if recipe.optimizer.restart_factor is None else jnp.float32(1)
    if switch is None and lowered is None and slowed is None and not patience:
        return None
    return Validations(_never(), jnp.int32(0), switch, lowered, slowed)


def validated(
    recipe: Recipe,
    record: Validations,
    loss: Scalar,
) -> Validations:
    """The record after one more validation.

    The rate is lowered, and the count begins anew, once more than `plateau_patience` losses in a
    row were not below the best. `_next_switch` decides when averaging starts.

    Args:
        recipe: Optimiser and schedule.
        record: The record before.
        loss: Mean nats; nan counts as the worst.
    """
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss).astype(jnp.float32)
    better = loss < record.best
    new = record._replace(
        best=jnp.minimum(record.best, loss), stale=jnp.where(better, 0, record.stale + 1)
    )
    if record.switch is not None and len(record.switch.recent):
        new = new._replace(switch=_next_switch(recipe.optimizer, record.switch, loss, new.stale))
    if record.lowered is not None:
        assert isinstance(recipe.schedule, Plateau)
        waited = jnp.where(better, 0, record.lowered.waited + 1)
        lower = waited > recipe.schedule.plateau_patience
        factor = jnp.where(
            lower, record.lowered.factor * recipe.schedule.plateau_factor, record.lowered.factor
        )
        new = new._replace(lowered=Lowered(factor, jnp.where(lower, 0, waited)))
    return new


def averaging_started(record: Validations | None) -> Bool[Array, ""]:
    """Whether a Polyak average has started."""
    if record is None or record.switch is None:
        return jnp.bool_(False)
    return record.switch.averaging


def rate_factor(
    schedule: Schedule,
    record: Validations | None,
    step: Scalar,
    epoch: Scalar | int,
    total: Scalar | int,
) -> Scalar:
    """The factor on the learning rate: the schedule's, times those of all restarts.

    Args:
        schedule: The recipe's schedule.
        record: The validations so far.
        step: The window's number, from 0.
        epoch: Its epoch's number, from 0.
        total: The windows of all epochs.
    """
    if record is None:
        return schedule.factor(step, epoch, total)
    lowered = None if record.lowered is None else record.lowered.factor
    factor = schedule.factor(step, epoch, total, lowered)
    if record.slowed is not None:
        factor *= record.slowed
    return factor


def _next_switch(
    optimizer: Optimizer,
    old: Switch,
    loss: Scalar,
    stale: Scalar,
) -> Switch:
    """The switch after one more validation.

    Averaging starts once a loss is above the lowest of all but the last `nonmonotone` before it
    (Merity et al. 2018, arXiv:1708.02182, algorithm 1, as its code has it); if the optimiser
    `averages_once_stale`, once the lowest loss is `nonmonotone` validations old (Melis et al. 2020,
    as their code has it); and at the latest with validation `average_latest`.
    """
    starts = stale >= len(old.recent) if optimizer.averages_once_stale else loss > old.older
    made = None
    if old.made is not None:
        made = old.made + 1
        if optimizer.averages_latest is not None:
            starts |= made >= optimizer.averages_latest
    return Switch(
        jnp.append(old.recent[1:], loss),
        jnp.minimum(old.older, old.recent[0]),
        old.averaging | starts,
        made,
    )


def _never(*shape: int) -> Float[Array, "..."]:
    """Losses of validations that were not made. Each has its own memory: the state is donated."""
    return jnp.full(shape, jnp.inf, jnp.float32)


class Average(NamedTuple):
    """A mean of the parameters after each of many updates, which evaluation uses.

    Attributes:
        params: The mean; of two-tailed averaging the longer one.
        iterates: How many updates it is of.
        short: The shorter mean of two-tailed averaging; None: there is no second one.
    """

    params: Params
    iterates: Int[Array, "*M"]
    short: "Average | None" = None


def first_average(optimizer: Optimizer, params: Params) -> Average | None:
    """The average before any update; None where the recipe has none.

    Args:
        optimizer: Which average.
        params: The parameters, which are copied.
    """
    if not optimizer.averages:
        return None
    short = None
    if optimizer.two_tailed:
        short = Average(jax.tree.map(jnp.copy, params), jnp.int32(0))
    return Average(jax.tree.map(jnp.copy, params), jnp.int32(0), short)


def averaged(
    optimizer: Optimizer,
    average: Average | None,
    params: Params,
    started: Bool[Array, ""],
) -> Average | None:
    """The average after one more update.

    An exponential average weighs recent iterates more; its weights add up to one from the first
    iterate on (Adam's bias correction). The Polyak average is Polyak and Juditsky's (1992), as
    AWD-LSTM takes it of SGD's iterates (arXiv:1708.02182) and the Mogrifier of Adam's
    (arXiv:1909.01792): until it has started the parameters themselves, from then on the mean of all
    since. Each of the two averages of two-tailed averaging is the mean of all since it began.

    Args:
        optimizer: Which average, and its decay.
        average: The average before; None: the recipe has none.
        params: The parameters after the update.
        started: Whether the Polyak average has started.
    """
    if average is None:
        return None
    if optimizer.average_decay is not None:
        iterates = average.iterates + 1
        weight = (1 - optimizer.average_decay) / (
            1 - optimizer.average_decay ** iterates.astype(jnp.float32)
        )
    elif optimizer.two_tailed:
        iterates = average.iterates + 1
        weight = 1 / iterates.astype(jnp.float32)
    else:
        iterates = average.iterates + started
        weight = 1 / jnp.maximum(iterates - optimizer.forgotten_iterates, 1).astype(jnp.float32)

    def mean(old: Float[Array, "*shape"], new: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.where(weight == 1, new, old + weight.astype(old.dtype) * (new - old))

    short = averaged(optimizer, average.short, params, started)
    return Average(jax.tree.map(mean, average.params, params), iterates, short)


def switched(long: Average) -> Average:
    """Replaces the longer of two-tailed averages by the shorter, which begins anew.

    Args:
        long: The longer average, and within it the shorter.

    Returns:
        What was the shorter average, and within it an average of no iterates yet.
    """
    assert long.short is not None
    empty = Average(long.params, jnp.zeros_like(long.iterates))
    return long.short._replace(short=empty)
