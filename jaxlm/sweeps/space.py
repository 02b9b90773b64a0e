"""What a sweep tries: its plan, and its space, which names for each field Optuna's distribution of its values.

The texts of a space, as `range:2:8:2`, are listed by `jaxlm sweep --help`. A study keeps layer widths as the text
256x128.
"""

import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import files, hashed_json
from jaxlm.config.config import KINDS, MAY_CHANGE, Config, differences, spec_of_field
from jaxlm.data.corpora import NAMES
from jaxlm.errors import JaxlmError
from jaxlm.fields import checked_value, shown, specs
from jaxlm.late import optuna
from jaxlm.runs import directory

Space = dict[str, Any]  # Optuna's distribution of each field's values

MOST_POINTS = 100_000  # of a sweep
MOST_VALUES = 10_000  # of one field
MOST_CHOICES = 100  # combinations of the other static fields that a value is tried with
MOST_BYTES = 1 << 20  # of a file
STRATEGIES = ("grid", "random", "tpe")


@dataclass(frozen=True)
class Plan:
    """What a sweep is. All who work on one study have equal plans."""

    config: Config
    space: Space
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
        if "seed" in params:
            return [params["seed"]]
        return list(range(first, first + self.seeds))

    def point(self, number: int) -> dict[str, Any] | None:
        """A point of the grid, or a random one, by its number from 0; None if Optuna chooses it (tpe)."""
        if self.strategy == "grid":
            return grid_point(self.space, number)
        if self.strategy == "tpe":
            return None
        return random_point(self.space, self.config.train.seed, number)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, which `from_json` reads."""
        space = {name: to_json(distribution) for name, distribution in self.space.items()}
        return {**vars(self), "config": json.loads(self.config.to_json()), "space": space}

    @staticmethod
    def from_json(tree: Any) -> "Plan":
        """The plan of the tree that `to_json` returned. Raises JaxlmError for what is no plan."""
        with suppress(TypeError, KeyError, AttributeError):
            return make_plan(**{**tree, "config": Config.from_json(json.dumps(tree["config"]))})
        raise JaxlmError("the plan is not one that a sweep writes")

    def differences(self, other: "Plan") -> list[str]:
        """`name: this plan's value -> the other's` for all that differs, except the number of trials."""
        fixed = MAY_CHANGE - {"train.epochs"}
        found = [
            line
            for line in differences(self.config, other.config)
            if line.split(":")[0] not in fixed
        ]
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
    """The plan of what `sweep` is asked for. Raises JaxlmError if values are out of their limits or do not fit."""
    trials = checked_value("trials", trials, int, low=1, high=MOST_POINTS, optional=True)
    seeds = checked_value("seeds", seeds, int, low=1, high=MOST_POINTS)
    checked_value("strategy", strategy, str, choices=STRATEGIES)
    if not isinstance(config, Config) or not isinstance(space, Mapping):
        raise JaxlmError(
            "a sweep takes a Config, as of jaxlm.preset('small'), and a mapping of fields to their values"
        )
    read = read_space(space, config)
    if "seed" in read and seeds > 1:
        raise JaxlmError(
            "seed is in the space, and seeds asks for several of each point: leave one of them out"
        )
    if (config.train.epochs if "epochs" not in read else min(extremes(read["epochs"]))) < 1:
        raise JaxlmError(
            "a sweep needs at least 1 epoch, to compare validation perplexities; epochs is 0"
        )
    if strategy == "grid":
        points = grid_size(read)
        if trials not in (None, points):
            raise JaxlmError(
                f"a grid tries each of its {points} points: leave trials ({trials}) out, or choose the strategy random"
            )
        trials = points
    if trials is None:
        raise JaxlmError(
            f"the strategy {strategy} has no end of its own: give trials, the number of points to try"
        )
    config.replace(seed=config.train.seed + seeds - 1)  # refuses one that is too large
    return Plan(
        config, read, strategy, trials, seeds, strategy == "tpe" if prune is None else prune, corpus
    )


def read_space(space: Mapping[str, Any], config: Config) -> Space:
    """Reads a space as users give it, in the same order.

    A field has a list of values, a `range`, one of Optuna's distributions, or a text as `--set` takes; NumPy's scalars
    and arrays count as numbers and lists. Raises JaxlmError if the space is empty, a field is unknown, or the config
    does not take its values.
    """
    if not space:
        raise JaxlmError(
            "the space is empty: name at least one field with its values, as in learning_rate=0.5,1,2"
        )
    read = {name: _distribution(name, given) for name, given in space.items()}
    for name in read:
        _check(name, read, config)
    return read


def with_settings(space: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A space for `read_space`, with what texts of the form FIELD=SPACE add. Raises JaxlmError for others."""
    found = dict(space)
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise JaxlmError(
                f"--set takes FIELD=SPACE, as in learning_rate=0.5,1,2; it is {setting!r}"
            )
        if name in found:
            raise JaxlmError(f"{name} is in the space twice: leave one of them out")
        found[name] = value
    return found


def read_space_file(path: Path) -> dict[str, Any]:
    """Reads a TOML file of FIELD = SPACE lines, or a JSON object, for `read_space`. Raises JaxlmError for others."""
    with files.explained(JaxlmError, f"{path} cannot be read as TOML or JSON"):
        text = files.read_bytes(path, MOST_BYTES).decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            return hashed_json.strict_json(text)
        return tomllib.loads(text)


def to_json(distribution: Any) -> list[Any] | str:
    """A distribution as JSON, which `read_space` reads: a list of values, or a text."""
    if _is_listed(distribution):
        return list(distribution.choices)
    ends = f"{distribution.low!r}:{distribution.high!r}"
    if distribution.log:
        return f"log:{ends}"
    every = (
        isinstance(distribution, optuna.distributions.IntDistribution) and distribution.step == 1
    )
    if every or distribution.step is None:
        return f"uniform:{ends}"
    return f"range:{ends}:{distribution.step!r}"


def decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a config takes them, from values as a study keeps them. Raises JaxlmError for an unknown field."""
    kinds = {name: spec_of_field(name).type for name in params}
    return {
        name: tuple(map(int, one.split("x"))) if kinds[name] is tuple else one
        for name, one in params.items()
    }


def first_values(space: Mapping[str, Any]) -> dict[str, Any]:
    """The first value of each field of a space, read or as users give it, as a config takes them."""
    return decoded({name: extremes(_distribution(name, given))[0] for name, given in space.items()})


def with_flags(
    space: Mapping[str, Any], given: Mapping[str, Any], config: Config
) -> dict[str, Any]:
    """The space with the given fields of the config that its kinds do not take over: they are meant for all kinds.

    Raises JaxlmError as `read_space`, and for a field that would not reach each kind that has it.
    """
    found = {**space}
    for slot in KINDS.keys() & space.keys():
        named = {KINDS[slot][kind] for kind in extremes(read_space(space, config)[slot])}
        kinds = {type(getattr(config, slot)), *named}
        for name, value in given.items():
            meant = {
                kind: (specs(kind)[name], getattr(kind, name))
                for kind in kinds
                if name in specs(kind)
            }
            apart = len({*meant.values()}) > 1 or any(spec.own for spec, _ in meant.values())
            if len(meant) == len(kinds) and apart:
                found.setdefault(name, [value])
            elif meant and (not meant.keys() & named or (apart and len(meant) > 1)):
                why = f"{name} would not reach each {slot} of the space"
                raise JaxlmError(f"{why}: sweep the kinds that have it apart, or leave it out")
    return found


def extremes(distribution: Any) -> tuple[Any, ...]:
    """All listed values, or both ends of an interval: within a field's limits only if every value is."""
    if _is_listed(distribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def grid_size(space: Space) -> int:
    """How many points the space's grid has. Raises JaxlmError for an interval, or over `MOST_POINTS` points."""
    interval = next(
        (name for name, distribution in space.items() if not _is_listed(distribution)), None
    )
    if interval:
        remedy = "list them or give a range, or choose --strategy random or tpe"
        raise JaxlmError(f"{interval} is a distribution, and a grid needs values: {remedy}")
    points = math.prod(len(extremes(distribution)) for distribution in space.values())
    if points > MOST_POINTS:
        raise JaxlmError(
            f"the grid has {points:,} points: use --strategy random with --trials, or fewer values"
        )
    return points


def grid_point(space: Space, number: int) -> dict[str, Any]:
    """A point of the grid by its number, from 0. Points of equal array shapes are neighbours."""
    point = {}
    for name in sorted(
        space, key=lambda name: (not _is_float(name), name)
    ):  # the first changes fastest
        number, place = divmod(number, len(extremes(space[name])))
        point[name] = extremes(space[name])[place]
    return {name: point[name] for name in space}


def random_point(space: Space, seed: int, number: int) -> dict[str, Any]:
    """A random point by its number, from 0. It depends on the space, the seed and the number alone."""
    sampler = optuna.samplers.RandomSampler(
        seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    )
    study: Any = None  # which this sampler does not read
    point = {}
    for name, distribution in sorted(space.items()):
        value = sampler.sample_independent(study, study, name, distribution)
        ends = extremes(distribution)
        point[name] = (
            value if _is_listed(distribution) else max(ends[0], min(ends[1], value))
        )  # a logarithm is rounded
    return {name: point[name] for name in space}


def _is_listed(distribution: Any) -> bool:
    return isinstance(distribution, optuna.distributions.CategoricalDistribution)


def _is_float(name: str) -> bool:
    """Whether a field is a traced number, so that members with other values share a program."""
    return spec_of_field(name).type is float


def _check(name: str, space: Space, config: Config) -> None:
    """Raises JaxlmError unless the config takes each value alone or with others of the space, such as an optimizer."""
    others = {
        other: extremes(found)
        for other, found in space.items()
        if other != name and not _is_float(other)
    }
    others = dict(
        sorted(others.items(), key=lambda item: -len(item[1]))
    )  # short lists vary fastest
    combinations = itertools.islice(itertools.product(*others.values()), MOST_CHOICES)
    static = [dict(zip(others, combination, strict=True)) for combination in combinations]
    floats = {
        other: extremes(found)
        for other, found in space.items()
        if other != name and _is_float(other)
    }
    numbers = {
        other: next((one for one in values if one is not None), None)
        for other, values in floats.items()
    }
    beside = [{}, *static, *({**numbers, **one} for one in static)]
    for value in extremes(space[name]):
        errors = []
        for other in beside:
            try:
                config.replace(**decoded({**other, name: value}))
                break
            except JaxlmError as error:
                errors.append(error)
        else:
            raise errors[0]


def _distribution(name: str, given: Any) -> Any:
    kind = spec_of_field(str(name)).type
    given = (
        to_json(given)
        if isinstance(given, optuna.distributions.BaseDistribution)
        else _plain(given)
    )
    if isinstance(given, str):
        word, *ends = given.split(":")
        if word in ("range", "uniform", "log") and len(ends) == (3 if word == "range" else 2):
            low, high, *step = (_number(name, kind, end) for end in ends)
            if word != "range":
                kinds = optuna.distributions
                make = kinds.IntDistribution if kind is int else kinds.FloatDistribution
                try:
                    return make(low, high, word == "log")
                except ValueError as error:
                    raise JaxlmError(
                        f"{name} cannot be drawn from {low} to {high}: {error}"
                    ) from None
            given = _range(name, low, high, step[0])
        elif ":" in given and kind is not str:
            forms = "range:LOW:HIGH:STEP, uniform:LOW:HIGH or log:LOW:HIGH"
            raise JaxlmError(
                f"{name} takes values, as in 0.5,1,2, or {forms}; it is {shown(given)}"
            )
        else:
            given = [part.strip() for part in given.split(",") if part.strip()]
    if not isinstance(given, list | range):
        raise JaxlmError(
            f"{name} takes a list of values, a range or a distribution; it is {shown(given)}"
        )
    values = [_encoded(name, kind, value) for value in itertools.islice(given, MOST_VALUES + 1)]
    if not 1 <= len(values) <= MOST_VALUES:
        raise JaxlmError(
            f"{name} has {'too many values' if values else 'no value'} to try: name 1 to {MOST_VALUES:,}"
        )
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise JaxlmError(
            f"{name} has the value {shown(twice)} twice: name it once (seeds train a point again)"
        )
    return optuna.distributions.CategoricalDistribution(values)


def _range(name: str, low: Any, high: Any, step: Any) -> list[Any]:
    if not (step > 0 and 0 <= (high - low) // step < MOST_VALUES):
        raise JaxlmError(
            f"{name} needs range:LOW:HIGH:STEP of 1 to {MOST_VALUES:,} values, with a STEP above 0"
        )
    values = [low + place * step for place in range(int((high - low) / step * (1 + 1e-12)) + 1)]
    return [
        min(high, float(f"{value:.12g}")) if isinstance(value, float) else value for value in values
    ]


def _number(name: str, kind: type, text: str) -> Any:
    if kind not in (int, float):
        raise JaxlmError(f"{name} is no number: it takes a list of values")
    number = _from_text(kind, text.strip())
    if type(number) is not kind:
        kinds = "whole numbers" if kind is int else "numbers"
        raise JaxlmError(f"{name} takes {kinds} between its colons; one is {shown(text)}")
    return number


def _from_text(kind: type, text: str) -> Any:
    """The text's value for a field of this type; else the text, which the config refuses."""
    if kind is bool or (kind in (int, float) and text.lower() == "none"):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
    for number in {int: (int, float), float: (float,)}.get(kind, ()):
        with suppress(ValueError):
            return number(text)
    return text


def _encoded(name: str, kind: type, value: Any) -> Any:
    """A value as a study keeps it: layer widths become a text as 256x128, the text none (TOML has no null) None."""
    value = _from_text(kind, value) if isinstance(value, str) else _plain(value)
    if kind is tuple:
        text = (
            "x".join(str(_plain(width)) for width in value)
            if isinstance(value, list | tuple)
            else str(value)
        )
        if not re.fullmatch("[0-9]{1,9}(x[0-9]{1,9})*", text):
            raise JaxlmError(
                f"{name} takes whole numbers with x between, as in 256x128; it is {shown(value)}"
            )
        return text
    if not isinstance(value, bool | int | float | str | None):
        raise JaxlmError(f"{name} takes a list of numbers or texts; one is {shown(value)}")
    if name == "tokenizer_file" or (name == "corpus" and value not in NAMES):
        if value and isinstance(value, str):
            return os.path.abspath(value)
        return value  # resumed from another directory
    return value


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value
