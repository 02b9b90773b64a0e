"""The plan of a sweep: its space, how points of it are chosen, and the seeds of each."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked_value
from jaxlm.config.config import MAY_CHANGE, Config, differences, different
from jaxlm.sweeps.space import (
    MOST_POINTS,
    Space,
    extremes,
    grid_point,
    grid_size,
    random_point,
    read_space,
    to_json,
)

STRATEGIES = ("grid", "random", "tpe")
PRUNING = ("none", "median", "halving")


@dataclass(frozen=True)
class Plan:
    """What a sweep is. All who work on one study have equal plans."""

    config: Config
    space: Space
    strategy: str  # one of STRATEGIES
    trials: int
    seeds: int  # members of a trial
    prune: str  # one of PRUNING
    corpus: dict[str, str]  # `Corpus.identity`

    def config_of(self, values: Mapping[str, Any], seed: int) -> Config:
        """The config of one member, which keeps its last and its best checkpoint.

        Args:
            values: The trial's, of the fields of the space.
            seed: The member's.
        """
        return self.config.replace(**{"keep_last": 1, **values, "seed": seed})

    def seeds_of(self, params: Mapping[str, Any]) -> list[int]:
        """The seeds of a trial's members."""
        first = self.config.train.seed
        if "seed" in params:
            return [params["seed"]]
        return list(range(first, first + self.seeds))

    def point(self, number: int) -> dict[str, Any]:
        """A point of the grid, or a random one, by its number from 0; {} if Optuna chooses it."""
        if self.strategy == "grid":
            return grid_point(self.space, number)
        if self.strategy == "random":
            return random_point(self.space, self.config.train.seed, number)
        return {}

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, which `from_json` reads."""
        space = {name: to_json(distribution) for name, distribution in self.space.items()}
        return {**vars(self), "config": json.loads(self.config.to_json()), "space": space}

    @staticmethod
    def from_json(tree: Any) -> "Plan":
        """Reads what `to_json` returned. Raises JaxlmError for what is no plan."""
        with suppress(TypeError, KeyError, AttributeError):
            return make_plan(**{**tree, "config": Config.from_json(json.dumps(tree["config"]))})
        raise JaxlmError("the plan is not one that a sweep writes")

    def differences(self, other: "Plan") -> list[str]:
        """`name: this value -> the other` for all that differs, but the number of trials."""
        ignored = MAY_CHANGE - {"train.epochs"}
        lines = differences(self.config, other.config)
        lines = [line for line in lines if line.split(":")[0] not in ignored]
        return lines + different(self._settings(), other._settings())

    def _settings(self) -> dict[str, Any]:
        space = {f"space.{name}": to_json(values) for name, values in self.space.items()}
        rest = {"strategy": self.strategy, "seeds": self.seeds, "prune": self.prune}
        return {**space, **rest, **self.corpus}


def make_plan(
    config: Config,
    space: Mapping[str, Any],
    strategy: str,
    trials: int | None,
    seeds: int,
    prune: bool | str | None,
    corpus: dict[str, str],
) -> Plan:
    """The plan of what `sweep` is asked for.

    Args:
        config: The config, with the fields that the space leaves out.
        space: As `read_space` takes it.
        strategy: One of `STRATEGIES`.
        trials: How many points to try; a grid needs none.
        seeds: How many members a trial has.
        prune: One of `PRUNING`; True is median, False none, and None median with tpe alone.
        corpus: The corpus's name and hashes.

    Raises:
        JaxlmError: Values are out of their limits, or do not fit each other.
    """
    trials = checked_value("trials", trials, int, low=1, high=MOST_POINTS, optional=True)
    seeds = checked_value("seeds", seeds, int, low=1, high=MOST_POINTS)
    checked_value("strategy", strategy, str, choices=STRATEGIES)
    if prune is None:
        prune = strategy == "tpe"
    if isinstance(prune, bool):
        prune = "median" if prune else "none"
    checked_value("prune", prune, str, choices=PRUNING)
    if not isinstance(config, Config) or not isinstance(space, Mapping):
        raise JaxlmError(
            "a sweep takes a Config, as of jaxlm.preset('small'), and a mapping of fields to their "
            "values"
        )
    distributions = read_space(space, config)
    if "seed" in distributions and seeds > 1:
        raise JaxlmError(
            "seed is in the space, and seeds asks for several of each point: leave one of them out"
        )
    epochs = [config.train.epochs]
    if "epochs" in distributions:
        epochs = extremes(distributions["epochs"])
    if min(epochs) < 1:
        raise JaxlmError(
            "a sweep needs at least 1 epoch, to compare validation perplexities; epochs is 0"
        )
    if strategy == "grid":
        points = grid_size(distributions)
        if trials not in (None, points):
            raise JaxlmError(
                f"a grid tries each of its {points} points: leave trials ({trials}) out, or choose "
                f"the strategy random"
            )
        trials = points
    if trials is None:
        raise JaxlmError(
            f"the strategy {strategy} has no end of its own: give trials, the number of points to "
            f"try"
        )
    config.replace(seed=config.train.seed + seeds - 1)  # raises if the last seed is too large
    return Plan(config, distributions, strategy, trials, seeds, prune, corpus)
