"""The space of a sweep, read: for each field of a config the values or the interval that it is drawn from.

In a text, as `--set` and files have it:

    0.5,1,2               these values                  true,false     small,large     none,0.1
    256x128,200x200       the same for hidden_sizes: widths of the layers
    range:2:8:2           2, 4, 6 and 8
    uniform:0.5:1         any number between; whole ones for a field of whole numbers
    log:0.1:10            the same, uniform in the logarithm
"""

import itertools
import math
import os
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import files
from jaxlm.config.config import Config, spec_of_field
from jaxlm.data.corpora import EMBEDDED
from jaxlm.errors import JaxlmError
from jaxlm.sweeps.distributions import Distribution, Interval, Space, Values

MOST_POINTS = 100_000  # of a sweep
MOST_VALUES = 10_000  # of one field that are listed
MOST_STEPS = 10**9  # of a range
MOST_WHOLE = 2**53  # the largest whole number, as floats and databases keep it exactly
MOST_CHOICES = 100  # of static fields, beside which a value is tried
MOST_TEXT = 1_000  # characters of one value
MOST_BYTES = 1 << 20  # of a file


def read_space(space: Mapping[str, Any], config: Config) -> Space:
    """A space as users give it.

    Args:
        space: A field's name -> a list of values, a (low, high, step), a `range`, one of Optuna's distributions, a
            mapping with low, high and perhaps step or log, or a text as above. NumPy's scalars count as numbers.
        config: The recipe that the values are put into; each must be within its field's limits.

    Returns:
        The fields' distributions, in the given order.

    Raises:
        JaxlmError: The space is empty, or a field is unknown or has something else.
    """
    if not space:
        raise JaxlmError("the space is empty: name at least one field with its values, as in learning_rate=0.5,1,2")
    read = {name: _distribution(name, given) for name, given in space.items()}
    for name, distribution in read.items():
        _check(name, distribution, read, config)
    return read


def read_space_file(path: Path) -> dict[str, Any]:
    """What a file of TOML or JSON has as a space, for `read_space`.

    Args:
        path: A regular file of at most `MOST_BYTES` bytes: FIELD = SPACE lines, or a JSON object.

    Raises:
        JaxlmError: The file cannot be read, is neither, or is empty.
    """
    try:
        text = files.read_bytes(path, MOST_BYTES).decode()
        space = files.strict_json(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise JaxlmError(f"{path} cannot be read: {files.reason(error)}") from None
    except UnicodeDecodeError as error:
        raise JaxlmError(f"{path} cannot be read: it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise JaxlmError(
            f"{path} is nested too deeply: expected FIELD = SPACE, as in learning_rate = [0.5, 1]"
        ) from None
    except ValueError as error:
        raise JaxlmError(f"{path} is neither TOML nor JSON: {error}") from None
    if not space:
        raise JaxlmError(f"{path} holds an empty space: name at least one field, as in learning_rate = [0.5, 1]")
    return space


def decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a study keeps them -> as a config takes them. Raises JaxlmError for an unknown field."""
    return {
        name: tuple(map(int, value.split("x"))) if _kind(name) is tuple else value for name, value in params.items()
    }


def with_first_values(config: Config, space: Space) -> Config:
    """The recipe with the first value of each field of the space, where they go together; else as it is.

    (The recipe's own value of such a field is never trained, and need not fit.)
    """
    try:
        return config.replace(**first_values(space))
    except JaxlmError:
        return config


def first_values(space: Mapping[str, Any]) -> dict[str, Any]:
    """The first value of each field of a space, read or as users give it, as a config takes them."""
    return decoded({name: _distribution(name, given).samples[0] for name, given in space.items()})


def grid_size(space: Space) -> int:
    """How many points the space's grid has. Raises JaxlmError where it has no end, or more than `MOST_POINTS`."""
    for name, distribution in space.items():
        if distribution.count is None:
            raise JaxlmError(
                f"{name} is a distribution, and a grid needs values: list them or give a range, or choose "
                f"--strategy random or tpe"
            )
    if (points := math.prod(distribution.count or 0 for distribution in space.values())) > MOST_POINTS:
        raise JaxlmError(f"the grid has {points:,} points: use --strategy random with --trials, or fewer values")
    return points


def grid_point(space: Space, number: int) -> dict[str, Any]:
    """The point of a number from 0, however the fields are ordered; those of equal shapes are neighbours."""
    point = {}
    for name in sorted(space, key=lambda name: (_kind(name) is not float, name)):  # the first changes fastest
        number, place = divmod(number, space[name].count or 1)
        point[name] = space[name].nth(place)
    return {name: point[name] for name in space}


def random_point(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The point of a number from 0, drawn; it depends on the space, the seed and the number alone."""
    random = np.random.default_rng((seed, number))
    point = {name: space[name].draw(random) for name in sorted(space)}
    return {name: point[name] for name in space}


def _kind(name: str) -> type:
    """The type of a field: int, float, bool, str or tuple (of whole numbers). Raises JaxlmError for an unknown one."""
    return spec_of_field(name).type


def _check(name: str, distribution: Distribution, space: Space, config: Config) -> None:
    """Raises JaxlmError unless the recipe takes every value, alone or beside some choice of the space's static fields.

    (A field may belong to one kind of optimizer only, which the space names too.)
    """
    others = {other: found.samples for other, found in space.items() if other != name and _kind(other) is not float}
    beside = [
        {},
        *(
            dict(zip(others, choice, strict=True))
            for choice in itertools.islice(itertools.product(*others.values()), MOST_CHOICES)
        ),
    ]
    for value in distribution.samples:
        first: JaxlmError | None = None
        for place, choice in enumerate(beside):
            try:
                config.replace(**decoded({**choice, name: value}))
            except JaxlmError as error:
                first = first or error
            else:
                beside.insert(0, beside.pop(place))  # it is likely to do for the next value too
                break
        else:
            assert first is not None
            raise first


def _distribution(name: str, given: Any) -> Distribution:
    if not isinstance(name, str):
        raise JaxlmError(f"a space has names of fields, as in learning_rate; one is {_short(name)}")
    kind = _kind(name)
    if isinstance(given, Values | Interval):
        given = given.to_json()
    if isinstance(given, str):
        word, *numbers = given.split(":")
        if word in ("range", "uniform", "log") and len(numbers) == (3 if word == "range" else 2):
            low, high, *step = (_number(name, number) for number in numbers)
            return _interval(name, kind, low, high, *step, log=word == "log", given=given)
        if ":" in given and kind is not str:
            raise JaxlmError(
                f"{name} takes values, as in 0.5,1,2, or range:LOW:HIGH:STEP, uniform:LOW:HIGH or "
                f"log:LOW:HIGH; it is {_short(given)}"
            )
        given = [_from_text(kind, part.strip()) for part in given.split(",") if part.strip()]
    elif hasattr(given, "choices"):  # Optuna's CategoricalDistribution
        given = list(given.choices)
    elif hasattr(given, "low") and hasattr(given, "high"):  # its distributions of numbers
        given = {part: getattr(given, part) for part in ("low", "high", "step", "log") if hasattr(given, part)}
    elif isinstance(given, tuple):
        if len(given) != 3 or not all(type(_plain(part)) in (int, float) for part in given):
            raise JaxlmError(f"{name} takes a list of values or (low, high, step); it is {_short(given)}")
        given = dict(zip(("low", "high", "step"), given, strict=True))
    if isinstance(given, Mapping):
        if not {"low", "high"} <= given.keys() <= {"low", "high", "step", "log"}:
            raise JaxlmError(
                f"{name} has {', '.join(map(_short, given)) or 'nothing'}: a distribution has low, high "
                f"and perhaps step or log"
            )
        low, high, step, log = (_plain(given.get(part)) for part in ("low", "high", "step", "log"))
        if log not in (None, True, False):
            raise JaxlmError(f"{name} has log {_short(log)}: it is true or false")
        return _interval(name, kind, low, high, step, log=bool(log), given=dict(given))
    return _values(name, kind, given)


def _values(name: str, kind: type, given: Any) -> Values:
    if not isinstance(given, list | range | np.ndarray):
        raise JaxlmError(f"{name} takes a list of values, a range or a distribution; it is {_short(given)}")
    if len(given[: MOST_VALUES + 1]) > MOST_VALUES:  # (the length of a range itself may be too large for `len`)
        raise JaxlmError(f"{name} lists more than {MOST_VALUES:,} values: give (low, high, step), or fewer")
    values = [_encoded(name, kind, value) for value in given]
    if not values:
        raise JaxlmError(f"{name} has no value to try: name at least one")
    seen = set()
    for value in values:
        if value in seen:
            raise JaxlmError(f"{name} has the value {value} twice: name it once (seeds train a point again)")
        seen.add(value)
    return Values(tuple(values))


def _interval(
    name: str, kind: type, low: Any, high: Any, step: Any = None, *, log: bool = False, given: Any
) -> Interval:
    if kind not in (int, float):
        raise JaxlmError(f"{name} is no number: it takes a list of values, not {_short(given)}")
    numbers = [low, high] + ([step] if step is not None else [])
    if not all(type(number) in (int, float) and abs(number) < math.inf for number in numbers):
        raise JaxlmError(f"{name} needs finite numbers; it is {_short(given)}")
    if any(abs(number) > MOST_WHOLE for number in numbers if kind is int or isinstance(number, int)):
        raise JaxlmError(f"{name} takes whole numbers of at most {MOST_WHOLE:,}; it is {_short(given)}")
    if kind is int and not all(float(number).is_integer() for number in numbers):
        raise JaxlmError(f"{name} takes whole numbers; it is {_short(given)}")
    if low > high:
        raise JaxlmError(f"{name} goes from {low:g} to {high:g}: the low end must not be above the high one")
    if not math.isfinite(high - low):
        raise JaxlmError(f"{name} goes from {low:g} to {high:g}: the ends are too far apart")
    if step is not None and step <= 0:
        raise JaxlmError(f"{name} has the step {step:g}: it must be above 0")
    if log and (low <= 0 or step not in (None, 1)):
        raise JaxlmError(f"{name} is logarithmic from {low:g}: that needs a low end above 0 and no step")
    if kind is int:
        step = 1 if step is None else int(step)
        return Interval(int(low), int(low) + (int(high) - int(low)) // step * step, step, log)
    if step is None or log:
        return Interval(float(low), float(high), None, log)
    if (high - low) / step > MOST_STEPS:
        raise JaxlmError(
            f"{name} goes from {low:g} to {high:g} in more than {MOST_STEPS:,} steps of {step:g}: take a "
            f"larger step, or uniform:LOW:HIGH"
        )
    high = low + math.floor((high - low) / step + 1e-9) * step  # the last value within the range
    return Interval(float(low), float(high), float(step))


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text) else float(text)
    except ValueError:
        raise JaxlmError(f"{name} needs numbers between its colons; one is {_short(text)}") from None


def _from_text(kind: type, text: str) -> Any:
    """The text's value for such a field; else the text itself, which the config will refuse."""
    if text.lower() == "none" and kind in (int, float):
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    for number in (int, float) if kind is int else (float,) if kind is float else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _encoded(name: str, kind: type, value: Any) -> Any:
    """A value as a study keeps it: layers' widths become a text as 256x128."""
    value = _plain(value)
    if kind is tuple:
        parts = (
            value.split("x")
            if isinstance(value, str)
            else list(map(_plain, value if isinstance(value, list | tuple | np.ndarray) else [value]))
        )
        if len(parts) > MOST_TEXT or not all(
            re.fullmatch("[0-9]{1,9}", part) if isinstance(part, str) else type(part) is int and 0 <= part < 10**9
            for part in parts
        ):
            raise JaxlmError(f"{name} takes whole numbers with x between, as in 256x128; it is {_short(value)}")
        return "x".join(str(int(part)) for part in parts)
    if not isinstance(value, bool | int | float | str | None):
        raise JaxlmError(f"{name} takes a list of numbers or texts; one is {_short(value)}")
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise JaxlmError(f"{name} has a value of {len(value):,} characters: {MOST_TEXT:,} is the most")
    if type(value) is int and abs(value) > MOST_WHOLE:
        raise JaxlmError(f"{name} takes whole numbers of at most {MOST_WHOLE:,}; it is {_short(value)}")
    if name == "corpus" and isinstance(value, str) and value not in ("auto", "ptb", *EMBEDDED):
        return os.path.abspath(value)  # others may resume the sweep from elsewhere
    return float(value) if kind is float and type(value) is int else value


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    """A value for a message, however large."""
    try:
        return reprlib.repr(value)
    except ValueError:  # thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
