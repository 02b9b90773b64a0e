"""What a sweep is: the recipe, the space, and how its points are chosen. Its study keeps it as JSON."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxlm.config.config import MAY_CHANGE, Config, differences
from jaxlm.errors import JaxlmError
from jaxlm.fields import shown
from jaxlm.runs import directory
from jaxlm.sweeps.space import MOST_POINTS, extremes, grid_point, grid_size, random_point, read_space, to_json

if TYPE_CHECKING:
    from jaxlm.sweeps.space import Space

STRATEGIES = ("grid", "random", "tpe")


@dataclass(frozen=True)
class Plan:
    """What a sweep is. All who work on one study have equal plans."""

    config: Config
    space: "Space"
    strategy: str
    trials: int
    seeds: int  # members of a trial
    prune: bool
    corpus: dict[str, str]  # as `runs.directory.named` names it

    def config_of(self, values: Mapping[str, Any], seed: int) -> Config:
        """The config of one member, which keeps its last and its best checkpoint."""
        return self.config.replace(**{"keep_last": 1, **values, "seed": seed})

    def seeds_of(self, params: Mapping[str, Any]) -> list[int]:
        """The seeds of a trial's members."""
        first = self.config.train.seed
        return [params["seed"]] if "seed" in params else list(range(first, first + self.seeds))

    def point(self, number: int) -> dict[str, Any] | None:
        """A point of the grid, or a random one, by its number from 0; None if Optuna chooses it (tpe)."""
        if self.strategy == "tpe":
            return None
        if self.strategy == "grid":
            return grid_point(self.space, number)
        return random_point(self.space, self.config.train.seed, number)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, which `from_json` reads."""
        space = {name: to_json(distribution) for name, distribution in self.space.items()}
        return {**vars(self), "config": json.loads(self.config.to_json()), "space": space}

    @staticmethod
    def from_json(tree: Any) -> "Plan":
        """The plan whose `to_json` is `tree`. Raises JaxlmError for anything else."""
        with suppress(TypeError, KeyError, AttributeError):
            plan = make_plan(**{**tree, "config": Config.from_json(json.dumps(tree["config"]))})
            if {**plan.to_json(), "config": tree["config"]} == tree:
                return plan
        raise JaxlmError("the plan is not one that a sweep writes")

    def differences(self, other: "Plan") -> list[str]:
        """`name: this plan's value -> the other's` for all that differs, except the number of trials."""
        fixed = MAY_CHANGE - {"train.epochs"}
        found = [line for line in differences(self.config, other.config) if line.split(":")[0] not in fixed]
        own, others = (
            {f"space.{name}": to_json(distribution) for name, distribution in plan.space.items()}
            | {"strategy": plan.strategy, "seeds": plan.seeds, "prune": plan.prune, **plan.corpus}
            for plan in (self, other)
        )
        return found + directory.different(own, others)


def make_plan(
    config: Config,
    space: Mapping[str, Any],
    strategy: str,
    trials: int | None,
    seeds: int,
    prune: bool | None,
    corpus: dict[str, str],
) -> Plan:
    """Checks what a user asks for, as `sweep` takes it, and makes its plan.

    Raises JaxlmError if a value is out of its limits, or two do not go together.
    """
    check_counts(trials=trials, seeds=seeds)
    read = read_space(space, config)
    if strategy not in STRATEGIES:
        raise JaxlmError(f"strategy is {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}; it is {strategy!r}")
    if "seed" in read and seeds > 1:
        raise JaxlmError("seed is in the space, and seeds asks for several of each point: leave one of them out")
    if (config.train.epochs if "epochs" not in read else min(extremes(read["epochs"]))) < 1:
        raise JaxlmError("a sweep needs at least 1 epoch, to compare validation perplexities; epochs is 0")
    if strategy == "grid":
        points = grid_size(read)
        if trials not in (None, points):
            raise JaxlmError(
                f"a grid tries each of its {points} points: leave trials ({trials}) out, or choose the strategy random"
            )
        trials = points
    if trials is None:
        raise JaxlmError(f"the strategy {strategy} has no end of its own: give trials, the number of points to try")
    config.replace(seed=config.train.seed + seeds - 1)  # refuses one that is too large
    return Plan(config, read, strategy, trials, seeds, strategy == "tpe" if prune is None else prune, corpus)


def check_counts(**counts: Any) -> None:
    """Raises JaxlmError unless each is None or a whole number from 1 to `MOST_POINTS`."""
    for name, number in counts.items():
        if number is not None and (type(number) is not int or not 1 <= number <= MOST_POINTS):
            raise JaxlmError(f"{name} must be a whole number from 1 to {MOST_POINTS:,}; it is {shown(number)}")
