"""The space of a sweep: for each field Optuna's distribution of its values.

The texts of a space, as `range:2:8:2`, are listed by `jaxlm sweep --help`. A study keeps layer
widths as the text 256x128.
"""

import itertools
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base import files, hashed_json
from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import shown, specs
from jaxlm.config.config import KINDS, Config, spec_of_field, starting_values
from jaxlm.data.corpora import NAMES
from jaxlm.sweeps.storage import import_optuna

Space = dict[str, Any]  # Optuna's distribution of each field's values

MOST_POINTS = 100_000  # of a sweep
MOST_VALUES = 10_000  # of one field
MOST_CHOICES = 100  # combinations of the other static fields that a value is tried with
MOST_BYTES = 1 << 20  # of a file
WIDTHS = re.compile("[0-9]{1,9}(x[0-9]{1,9})*x?")  # of layers; 256x is one layer


def read_space(space: Mapping[str, Any], config: Config) -> Space:
    """Reads a space as users give it.

    Args:
        space: For each field a list or tuple of values, a `range`, one of Optuna's distributions,
            or a text as `--set` takes. NumPy's scalars and arrays count as numbers and lists.
        config: The config, with the fields that the space leaves out.

    Returns:
        Optuna's distribution of each field, in the same order.

    Raises:
        JaxlmError: The space is empty, a field is unknown, or the config does not take its values.
    """
    if not space:
        raise JaxlmError(
            "the space is empty: name at least one field with its values, as in "
            "learning_rate=0.5,1,2"
        )
    distributions = {name: _distribution(name, values) for name, values in space.items()}
    for name in distributions:
        _check_values(name, distributions, config)
    return distributions


def with_settings(space: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Adds settings to a space.

    Args:
        space: A space as users give it.
        settings: Texts of the form FIELD=SPACE.

    Returns:
        The space with all of them, for `read_space`.

    Raises:
        JaxlmError: A text has another form, or a field occurs twice.
    """
    space = dict(space)
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise JaxlmError(
                f"--set takes FIELD=SPACE, as in learning_rate=0.5,1,2; it is {setting!r}"
            )
        if name in space:
            raise JaxlmError(f"{name} is in the space twice: leave one of them out")
        space[name] = value
    return space


def read_space_file(path: Path) -> dict[str, Any]:
    """Reads a TOML file of FIELD = SPACE lines, or a JSON object, for `read_space`.

    Raises:
        JaxlmError: The file cannot be read as either.
    """
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
    takes_all = (
        distribution.step == 1 if isinstance(distribution.low, int) else not distribution.step
    )
    if takes_all:
        return f"uniform:{ends}"
    return f"range:{ends}:{distribution.step!r}"


def decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a config takes them, of values as a study keeps them.

    Raises:
        JaxlmError: A field is unknown.
    """
    values = {}
    for name, value in params.items():
        if spec_of_field(name).type is tuple:
            value = tuple(map(int, value.split("x")))
        values[name] = value
    return values


def first_values(space: Mapping[str, Any]) -> dict[str, Any]:
    """The first value of each field of a space, read or not, as a config takes them."""
    firsts = {}
    for name, values in space.items():
        firsts[name] = extremes(_distribution(name, values))[0]
    return decoded(firsts)


def with_flags(
    space: Mapping[str, Any],
    flags: Mapping[str, Any],
    config: Config,
) -> dict[str, Any]:
    """Adds flags to a space, where its kinds would not take their values over from the config.

    A flag is meant for all kinds of the space.

    Args:
        space: A space, read or as users give it.
        flags: The values of flags, by field.
        config: The config, with these values.

    Returns:
        The space, with a list of one value for each field that was added.

    Raises:
        JaxlmError: A field would not reach each kind that has it; or as `read_space`.
    """
    extended = {**space}
    for slot in KINDS.keys() & space.keys():
        section = getattr(config, slot)
        kinds = [KINDS[slot][kind] for kind in extremes(read_space(space, config)[slot])]
        for name in flags:
            if name not in specs(type(section)):
                continue
            value = getattr(section, name)
            with_field = [kind for kind in kinds if name in specs(kind)]
            starts = [starting_values(section, kind)[name] for kind in with_field]
            if starts and all(start == value for start in starts):
                continue  # each kind takes the value over, or has it as its default
            if len(with_field) < len(kinds):
                raise JaxlmError(
                    f"{name} would not reach each {slot} of the space: sweep the kinds that have "
                    "it apart, or leave it out"
                )
            extended.setdefault(name, [value])
    return extended


def extremes(distribution: Any) -> tuple[Any, ...]:
    """All listed values, or both ends of an interval: where a field takes both, it takes all."""
    if _is_listed(distribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def grid_size(space: Space) -> int:
    """How many points the space's grid has.

    Raises:
        JaxlmError: A field has an interval, or there are over `MOST_POINTS` points.
    """
    for name, distribution in space.items():
        if not _is_listed(distribution):
            raise JaxlmError(
                f"{name} is a distribution, and a grid needs values: list them or give a range, or "
                f"choose --strategy random or tpe"
            )
    points = math.prod(len(extremes(distribution)) for distribution in space.values())
    if points > MOST_POINTS:
        raise JaxlmError(
            f"the grid has {points:,} points: use --strategy random with --trials, or fewer values"
        )
    return points


def grid_point(space: Space, number: int) -> dict[str, Any]:
    """A point of the grid. Points of equal array shapes are neighbours.

    Args:
        space: A read space of listed values.
        number: The point's, from 0.
    """
    point = dict.fromkeys(space)
    floats_first = sorted(space, key=lambda name: (not _is_float(name), name))
    for name in floats_first:  # the first change fastest
        choices = extremes(space[name])
        number, place = divmod(number, len(choices))
        point[name] = choices[place]
    return point


def random_point(
    space: Space,
    seed: int,
    number: int,
) -> dict[str, Any]:
    """A random point, which depends on nothing but the arguments.

    Args:
        space: A read space.
        seed: The config's seed.
        number: The point's, from 0.
    """
    own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    sampler = import_optuna().samplers.RandomSampler(seed=own_seed)
    study: Any = None  # this sampler reads neither the study nor the trial
    point = dict.fromkeys(space)
    for name, distribution in sorted(space.items()):
        value = sampler.sample_independent(study, study, name, distribution)
        if not _is_listed(distribution):  # rounding may carry a logarithm past an end
            low, high = extremes(distribution)
            value = max(low, min(high, value))
        point[name] = value
    return point


def _is_listed(distribution: Any) -> bool:
    """Whether it is a CategoricalDistribution."""
    return hasattr(distribution, "choices")


def _is_float(name: str) -> bool:
    """Whether a field is a traced number, so that members with other values share a program."""
    return spec_of_field(name).type is float


def _check_values(
    name: str,
    space: Space,
    config: Config,
) -> None:
    """Raises JaxlmError unless the config takes each value, alone or with others of the space."""
    for value in extremes(space[name]):
        error = _refusal(name, value, space, config)
        if error is not None:
            raise error


def _refusal(
    name: str,
    value: Any,
    space: Space,
    config: Config,
) -> JaxlmError | None:
    """Why the config does not take a value alone; None where it takes it, perhaps with others."""
    first_error = None
    for others in _settings_of_others(name, space):
        try:
            config.replace(**decoded({**others, name: value}))
            return None
        except JaxlmError as error:
            first_error = first_error or error
    return first_error


def _settings_of_others(name: str, space: Space) -> Iterator[dict[str, Any]]:
    """Values of other fields, with which a value of one field is tried until the config takes it.

    A value may need another, as a field of the optimizer needs that optimizer. First the value is
    tried alone; then with combinations of the static fields, without and with a value of each
    float.
    """
    yield {}
    static = {}
    floats = {}
    for other, distribution in space.items():
        values = extremes(distribution)
        if other == name:
            continue
        if _is_float(other):
            floats[other] = next((value for value in values if value is not None), None)
        else:
            static[other] = values
    # The fields with the fewest values change fastest, so that all of these are soon tried.
    names = sorted(static, key=lambda other: -len(static[other]))
    products = itertools.product(*(static[other] for other in names))
    for values in itertools.islice(products, MOST_CHOICES):
        combination = dict(zip(names, values, strict=True))
        yield combination
        yield {**floats, **combination}


def _distribution(name: str, values: Any) -> Any:
    """Optuna's distribution of one field's values, as users give them."""
    kind = spec_of_field(str(name)).type
    distributions = import_optuna().distributions
    if isinstance(values, distributions.BaseDistribution):
        values = to_json(values)
    values = _plain(values)
    if isinstance(values, str):
        word, *ends = values.split(":")
        if word == "range" and len(ends) == 3:
            values = _range(name, *(_number(name, kind, end) for end in ends))
        elif word in ("uniform", "log") and len(ends) == 2:
            low, high = (_number(name, kind, end) for end in ends)
            interval = distributions.FloatDistribution
            if kind is int:
                interval = distributions.IntDistribution
            try:
                return interval(low, high, log=word == "log")
            except ValueError as error:
                raise JaxlmError(f"{name} cannot be drawn from {low} to {high}: {error}") from None
        elif ":" in values and kind is not str:
            raise JaxlmError(
                f"{name} takes values, as in 0.5,1,2, or range:LOW:HIGH:STEP, uniform:LOW:HIGH or "
                f"log:LOW:HIGH; it is {shown(values)}"
            )
        else:
            values = [value.strip() for value in values.split(",") if value.strip()]
            if kind is tuple and len(values) > 1 and all(value.isdigit() for value in values):
                _refuse_widths(name, values, [f"{value}x" for value in values])
    elif not isinstance(values, list | tuple | range):
        raise JaxlmError(
            f"{name} takes a list of values, a range or a distribution; it is {shown(values)}"
        )
    elif kind is tuple and len(values) > 1 and all(type(value) is int for value in values):
        _refuse_widths(name, values, [f"({value},)" for value in values[:MOST_CHOICES]])
    stored = [_encoded(name, kind, value) for value in itertools.islice(values, MOST_VALUES + 1)]
    if not 1 <= len(stored) <= MOST_VALUES:
        problem = "too many values" if stored else "no value"
        raise JaxlmError(f"{name} has {problem} to try: name 1 to {MOST_VALUES:,}")
    if len(set(stored)) < len(stored):
        twice = next(value for value in stored if stored.count(value) > 1)
        raise JaxlmError(
            f"{name} has the value {shown(twice)} twice: name it once (seeds train a point again)"
        )
    return distributions.CategoricalDistribution(stored)


def _refuse_widths(
    name: str,
    widths: Sequence[Any],
    models: Sequence[str],
) -> None:
    """Refuses numbers that may be the widths of one model's layers, or of models of one layer."""
    if len(widths) > 9:
        raise JaxlmError(
            f"{name} takes widths with x between, as in 256x128, not {len(widths)} numbers"
        )
    layers = "x".join(map(str, widths))
    raise JaxlmError(
        f"{name} may mean one model of {len(widths)} layers, written {layers}, or {len(widths)} "
        f"models of one layer, written {','.join(models)}: write which"
    )


def _range(
    name: str,
    low: Any,
    high: Any,
    step: Any,
) -> list[Any]:
    if not (step > 0 and 0 <= (high - low) // step < MOST_VALUES):
        raise JaxlmError(
            f"{name} needs range:LOW:HIGH:STEP of 1 to {MOST_VALUES:,} values, with a STEP above 0"
        )
    last = int((high - low) / step * (1 + 1e-12))  # 0.1 to 0.3 in steps of 0.1 has three values
    values = []
    for place in range(last + 1):
        value = low + place * step
        if isinstance(value, float):
            value = min(high, float(f"{value:.12g}"))
        values.append(value)
    return values


def _number(
    name: str,
    kind: type,
    text: str,
) -> Any:
    if kind not in (int, float):
        raise JaxlmError(f"{name} is no number: it takes a list of values")
    number = _from_text(kind, text.strip())
    if type(number) is not kind:
        kinds = "whole numbers" if kind is int else "numbers"
        raise JaxlmError(f"{name} takes {kinds} between its colons; one is {shown(text)}")
    return number


def _from_text(kind: type, text: str) -> Any:
    """The text's value for a field of this type; else the text, which the config refuses."""
    if kind in (bool, int, float) and text.lower() == "none":
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is int:
        with suppress(ValueError):
            return int(text)
    if kind in (int, float):
        with suppress(ValueError):
            return float(text)
    return text


def _encoded(
    name: str,
    kind: type,
    value: Any,
) -> Any:
    """A value as a study keeps it.

    Layer widths become a text as 256x128. The kinds of a mixed stack, hawk+attention, become
    hawk,attention. The text none becomes None, since TOML has no null. A file's path becomes
    absolute, for a sweep that is resumed from another directory.
    """
    value = _from_text(kind, value) if isinstance(value, str) else _plain(value)
    if kind is tuple:
        return _widths(name, value)
    if name in KINDS and isinstance(value, str):
        value = value.replace("+", ",")
    if not isinstance(value, bool | int | float | str | None):
        raise JaxlmError(f"{name} takes a list of numbers or texts; one is {shown(value)}")
    is_file = name == "tokenizer_file" or (name == "corpus" and value not in NAMES)
    if is_file and value and isinstance(value, str):
        return os.path.abspath(value)
    return value


def _widths(name: str, value: Any) -> str:
    widths: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    text = "x".join(str(_plain(width)) for width in widths)
    if not WIDTHS.fullmatch(text):
        raise JaxlmError(
            f"{name} takes whole numbers with x between, as in 256x128; it is {shown(value)}"
        )
    return text.removesuffix("x")


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value
