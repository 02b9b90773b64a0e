"""The space of a sweep: for each field of a config the values, the range or the distribution that it is drawn from.

Each becomes one of Optuna's distributions. In a text, as `--set` and files have it:

    0.5,1,2               these values                  true,false     small,large
    256x128,200x200       the same for hidden_sizes: widths of the layers
    range:2:8:2           2, 4, 6 and 8
    uniform:0.5:1         any number between; whole ones for a field of whole numbers
    log:0.1:10            the same, uniform in the logarithm
"""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from jaxlm.config.config import Config, every_field, section_of
from jaxlm.errors import JaxlmError

Space = dict[str, BaseDistribution]
MOST_POINTS = 100_000  # of a grid


def read_space(space: Mapping[str, Any], config: Config) -> Space:
    """A space as users give it -> field -> distribution, every value within its field's limits.

    A value may be a list, a (low, high, step), a `range`, one of Optuna's distributions, a mapping with low, high and
    perhaps step or log, or a text as above. Raises JaxlmError.
    """
    if not space:
        raise JaxlmError("the space is empty: name at least one field with its values, as in learning_rate=0.5,1,2")
    read = {name: _distribution(name, given) for name, given in space.items()}
    for name, distribution in read.items():
        for value in _ends(distribution):
            config.replace(**decoded({name: value}))
    return read


def decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna keeps them -> as a config takes them."""
    return {name: tuple(map(int, value.split("x"))) if _kind(name) is tuple else value
            for name, value in params.items()}


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point of the space; those of equal shapes follow one another. Raises JaxlmError where it has no end."""
    names = sorted(space, key=lambda name: section_of(name) == "hyper")
    values = [_values(name, space[name]) for name in names]
    if (points := math.prod(map(len, values))) > MOST_POINTS:
        raise JaxlmError(f"the grid has {points:,} points: use --strategy random with --trials, or fewer values")
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]


def space_to_json(space: Space) -> dict[str, Any]:
    """The space as JSON's values."""
    return {name: json.loads(distribution_to_json(distribution)) for name, distribution in space.items()}


def _kind(name: str) -> type:
    section_of(name)  # raises for an unknown name
    return next(type(item.default) for _, item in every_field() if item.name == name)


def _distribution(name: str, given: Any) -> BaseDistribution:
    kind = _kind(name)
    if isinstance(given, str):
        word, *numbers = given.split(":")
        if word in ("range", "uniform", "log") and len(numbers) == (3 if word == "range" else 2):
            parts = [_number(name, number) for number in numbers]
            return _interval(name, kind, *parts, log=word == "log", given=given)
        if ":" in given and kind is not str:
            raise JaxlmError(f"{name} takes values, as in 0.5,1,2, or range:LOW:HIGH:STEP, uniform:LOW:HIGH or "
                             f"log:LOW:HIGH; it is {given!r}")
        given = [_from_text(kind, part.strip()) for part in given.split(",") if part.strip()]
    if isinstance(given, FloatDistribution | IntDistribution):
        given = {"low": given.low, "high": given.high, "step": given.step, "log": given.log}
    if isinstance(given, CategoricalDistribution):
        given = given.choices
    elif isinstance(given, tuple) and len(given) == 3 and all(type(part) in (int, float) for part in given):
        given = dict(zip(("low", "high", "step"), given, strict=True))
    elif isinstance(given, tuple):
        raise JaxlmError(f"{name} takes a list of values or (low, high, step); it is {given!r}")
    if isinstance(given, Mapping):
        if not {"low", "high"} <= given.keys() <= {"low", "high", "step", "log"}:
            raise JaxlmError(f"{name} has {', '.join(map(str, given))}: a distribution has low, high and perhaps step "
                             f"or log")
        return _interval(name, kind, given["low"], given["high"], given.get("step"), log=given.get("log", False),
                         given=dict(given))
    if not isinstance(given, list | tuple | range):
        raise JaxlmError(f"{name} takes a list of values, a range or a distribution; it is {given!r}")
    values = [_encoded(kind, value) for value in given]
    if not values:
        raise JaxlmError(f"{name} has no value to try: name at least one")
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise JaxlmError(f"{name} has the value {twice[0]} twice: name it once (seeds train a point again)")
    return CategoricalDistribution(values)


def _interval(name: str, kind: type, low: Any, high: Any, step: Any = None, *, log: bool = False, given: Any
              ) -> BaseDistribution:
    if kind not in (int, float):
        raise JaxlmError(f"{name} is no number: it takes a list of values, not {given!r}")
    numbers = [low, high] + ([step] if step is not None else [])
    if not all(type(number) in (int, float) and abs(number) < math.inf for number in numbers):
        raise JaxlmError(f"{name} needs finite numbers; it is {given!r}")
    if kind is int and not all(float(number).is_integer() for number in numbers):
        raise JaxlmError(f"{name} takes whole numbers; it is {given!r}")
    if low > high:
        raise JaxlmError(f"{name} goes from {low:g} to {high:g}: the low end must not be above the high one")
    if step is not None and step <= 0:
        raise JaxlmError(f"{name} has the step {step:g}: it must be above 0")
    if log and (low <= 0 or step not in (None, 1)):
        raise JaxlmError(f"{name} is logarithmic from {low:g}: that needs a low end above 0 and no step")
    if kind is int:
        step = 1 if step is None else int(step)
        return IntDistribution(int(low), int(low) + (int(high) - int(low)) // step * step, log=log, step=step)
    if step is not None:  # the last value within the range: Optuna would say it with a warning
        high = low + math.floor((high - low) / step + 1e-9) * step
        return FloatDistribution(float(low), float(high), step=float(step))
    return FloatDistribution(float(low), float(high), log=log)


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]  # pyright: ignore[reportAttributeAccessIssue]


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [float(f"{distribution.low + place * distribution.step:.12g}") for place in range(count)]
    raise JaxlmError(f"{name} is a distribution, and a grid needs values: list them or give a range, or choose "
                     f"--strategy random or tpe")


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("-").isdigit() else float(text)
    except ValueError:
        raise JaxlmError(f"{name} needs numbers between its colons; one is {text!r}") from None


def _from_text(kind: type, text: str) -> Any:
    """What the text means for such a field; else the text itself, which the config will refuse."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    for number in (int, float) if kind in (int, float) else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _encoded(kind: type, value: Any) -> Any:
    """A value as Optuna keeps it: layers' widths become a text as 256x128."""
    if kind is tuple:
        text = value if isinstance(value, str) else "x".join(map(str, value if isinstance(value, list | tuple) else
                                                                 [value]))
        if not all(part.isdigit() for part in text.split("x")):
            raise JaxlmError(f"hidden_sizes takes whole numbers with x between, as in 256x128; it is {value!r}")
        return text
    return float(value) if kind is float and type(value) is int else value
