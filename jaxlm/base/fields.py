"""Fields of a config: their types, limits, units and help, and the check of values.

Numbers (float) are traced by JAX, so that changing one compiles nothing; every other field is
static. A number that is `optional` may be None: the mechanism that it belongs to is then absent.
"""

import difflib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jaxlm.base.errors import JaxlmError

MOST_DIGITS = 400  # the longest value that an error message repeats whole, in characters
LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """What a field takes and means.

    Attributes:
        type: float, int, bool, str, or tuple.
        help: What the field means, as help and the manual print it.
        unit: What a number counts.
        low: The smallest value allowed.
        high: The largest value allowed.
        above: A limit that the value must exceed.
        below: A limit that the value must stay under.
        choices: The texts allowed; empty: any.
        optional: Whether the value may be None.
        needs: Other fields of the section; where this field is set, one of them must be set too.
        excludes: Other fields of the section that must not be set where this field is.
        kind_specific: Whether a config that changes to another kind takes the new kind's default.
        items: What a tuple holds: int or float.
    """

    type: type
    help: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    kind_specific: bool = False
    items: Any = int

    @property
    def range(self) -> str:
        """The limits in words."""
        limits = (
            ("above", self.above),
            ("at least", self.low),
            ("below", self.below),
            ("at most", self.high),
        )
        words = [f"{word} {limit:,}" for word, limit in limits if math.isfinite(limit)]
        return " and ".join(words) or "finite"

    def allows(self, number: float) -> bool:
        """Whether a number lies within the limits, also once it is rounded to float32."""
        rounded = float32(number) if isinstance(number, float) else number
        return (
            abs(rounded) < math.inf
            and self.low <= number <= self.high
            and self.above < rounded < self.below
        )


def number(
    default: float | tuple[float, ...] | None,
    help: str,
    unit: str = "",
    **options: Any,
) -> Any:
    """Declares a traced number, or a static tuple of numbers.

    Args:
        default: The value by default; with None the field is optional.
        help: What the number means.
        unit: What it counts.
        **options: Other fields of `Spec`.

    Returns:
        A dataclass field.
    """
    kind = tuple if isinstance(default, tuple) else float
    return _declared(default, kind, help, unit=unit, items=float, **options)


def probability(help: str, **options: Any) -> Any:
    """Declares a traced probability above 0, absent (None) by default.

    Args:
        help: What happens with this probability.
        **options: Other fields of `Spec`.

    Returns:
        A dataclass field.
    """
    return number(None, f"probability that {help}", above=0, high=1, **options)


def count(
    default: int | tuple[int, ...] | None,
    help: str,
    unit: str = "",
    low: int = 0,
    **options: Any,
) -> Any:
    """Declares a static whole number, or a tuple of whole numbers.

    Args:
        default: The value by default; with None the field is optional.
        help: What the number means.
        unit: What it counts.
        low: The smallest value allowed.
        **options: Other fields of `Spec`.

    Returns:
        A dataclass field.
    """
    kind = tuple if isinstance(default, tuple) else int
    return _declared(default, kind, help, unit=unit, low=low, **{"high": LARGEST_COUNT, **options})


def flag(
    default: bool,
    help: str,
    **options: Any,
) -> Any:
    """Declares a static switch.

    Args:
        default: The value by default.
        help: What happens where the switch is on.
        **options: Other fields of `Spec`.

    Returns:
        A dataclass field.
    """
    return _declared(default, bool, help, **options)


def choice(
    default: str,
    help: str,
    choices: Sequence[str],
    **options: Any,
) -> Any:
    """Declares a static name, one of several.

    Args:
        default: The value by default.
        help: What each choice means.
        choices: The names allowed.
        **options: Other fields of `Spec`.

    Returns:
        A dataclass field.
    """
    return _declared(default, str, help, choices=tuple(choices), **options)


def text(default: str, help: str) -> Any:
    """Declares a static text.

    Args:
        default: The value by default.
        help: What the text means.

    Returns:
        A dataclass field.
    """
    return _declared(default, str, help)


def _declared(
    default: Any,
    kind: type,
    help: str,
    **options: Any,
) -> Any:
    spec = Spec(kind, help, **{"optional": default is None, **options})
    return field(default=default, metadata={"spec": spec})


@cache
def specs(kind: type) -> dict[str, Spec]:
    """The spec of every declared field of a dataclass, by name, in the order of declaration."""
    return {item.name: item.metadata["spec"] for item in fields(kind) if "spec" in item.metadata}


class Section:
    """Base of frozen dataclasses whose fields a `Config` checks.

    A section by itself is not checked: tests hold recordings of other codes, in float64 too.

    Attributes:
        kind_name: The name in the table of its kinds; empty where there is no such table.
    """

    kind_name: ClassVar[str] = ""

    def check(self) -> None:
        """Raises JaxlmError where fields contradict each other in a way that `Spec` cannot say."""


def checked(section: Any) -> Any:
    """Checks the fields of a dataclass, and makes scalars of arrays plain.

    Args:
        section: A dataclass whose fields are declared by the functions above.

    Returns:
        The same section with plain Python values: scalars of arrays converted, lists as tuples. An
            array or a tracer may stand for a number.

    Raises:
        JaxlmError: A value has another type, lies outside its limits, or contradicts another value.
    """
    plain = {}
    for name, spec in specs(type(section)).items():
        value = getattr(section, name)
        plain_value = _plain_value(name.rstrip("_"), spec, value)
        if plain_value is not value:
            plain[name] = plain_value
    if plain:
        section = replace(section, **plain)
    _check_relations(section)
    return section


def checked_value(
    name: str,
    value: Any,
    kind: type,
    **limits: Any,
) -> Any:
    """Checks an argument that is no field.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        kind: The type wanted: float, int, bool, str, tuple or Path.
        **limits: Other fields of `Spec`.

    Returns:
        The value as plain Python has it.

    Raises:
        JaxlmError: The value has another type, or lies outside the limits.
    """
    return _plain_value(name, Spec(kind, "", **limits), value)


def _check_relations(section: Any) -> None:
    """Raises JaxlmError where fields need or exclude each other, or `check` refuses them."""

    def is_set(name: str) -> bool:
        value = getattr(section, name)
        default = getattr(type(section), name)
        if default is None:
            return value is not None
        return value != default

    def unset(name: str) -> str:
        return f"{name} to {setting_text(getattr(type(section), name))}"

    def settings(names: Sequence[str]) -> str:
        return ", ".join(f"{name} is {setting_text(getattr(section, name))}" for name in names)

    for name, spec in specs(type(section)).items():
        if not (spec.needs or spec.excludes) or not is_set(name):
            continue
        if spec.needs and not any(map(is_set, spec.needs)):
            needed = either(spec.needs)
            raise JaxlmError(
                f"{name} needs {needed}, and {settings(spec.needs)}: set {needed}, or {unset(name)}"
            )
        for other in spec.excludes:
            if is_set(other):
                raise JaxlmError(
                    f"{name} and {other} exclude each other, and {settings([name, other])}: "
                    f"set {unset(name)}, or {unset(other)}"
                )
    if hasattr(section, "check"):
        section.check()


def _plain_value(
    name: str,
    spec: Spec,
    value: Any,
) -> Any:
    """A field's value as plain Python has it. Raises JaxlmError where the spec does not allow it.

    An array or a tracer may stand for a number.
    """
    value = _without_array(value)
    if spec.type is tuple:
        numbers = value if isinstance(value, list | tuple) else [value]
        if not numbers:
            raise JaxlmError(f"{name} needs at least one number; it is empty")
        return tuple(
            _plain_scalar(name, spec, spec.items, _without_array(number)) for number in numbers
        )
    if value is None and spec.optional:
        return None
    if spec.type is float and hasattr(value, "shape"):
        return value
    return _plain_scalar(name, spec, spec.type, value)


def _plain_scalar(
    name: str,
    spec: Spec,
    kind: type,
    value: Any,
) -> Any:
    """A value as one of the plain types. Raises JaxlmError where the spec does not allow it."""
    is_kind = isinstance(value, _ACCEPTED.get(kind, kind))
    if not is_kind or isinstance(value, bool) != (kind is bool):
        none = " or none" if spec.optional else ""
        raise JaxlmError(f"{name} takes {_WORDS[kind]}{none}; it is {shown(value)}")
    try:
        value = kind(value)
    except OverflowError:
        value = math.inf
    if kind in (int, float) and not spec.allows(value):
        message = f"{name} must be {spec.range}; it is {shown(value)}"
        if kind is float and abs(value) < math.inf and float32(value) != value:
            message += f", {float32(value):g} in float32"
        raise JaxlmError(message)
    if spec.choices and value not in spec.choices:
        raise JaxlmError(f"{name} must be {either(spec.choices)}; it is {shown(value)}")
    return value


def _without_array(value: Any) -> Any:
    """Scalars of NumPy and JAX become Python's; any other value, a tracer too, stays."""
    is_array = type(value).__module__.split(".")[0] in ("numpy", "jaxlib")
    if is_array and getattr(value, "shape", None) == ():
        return value.item()
    return value


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}
_ACCEPTED: dict[type, Any] = {float: (int, float), Path: (str, Path)}


def float32(value: float) -> float:
    """The value as programs compute with it: rounded to float32, and 0 where it is subnormal."""
    rounded = array("f", [value])[0]
    if abs(rounded) < 2**-126:
        return 0.0
    return rounded


def shown(value: Any) -> str:
    """A value as an error message repeats it, of bounded length."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than 4,300 digits
        return "a number with thousands of digits"
    if len(text) <= MOST_DIGITS:
        return text
    return f"{text[:40]}... ({len(text):,} characters)"


def either(names: Sequence[str]) -> str:
    """The names in words: `a, b or c`."""
    if len(names) > 1:
        return f"{', '.join(names[:-1])} or {names[-1]}"
    return "".join(names)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name.

    Args:
        name: What was given.
        known: The names that exist.

    Returns:
        `; did you mean ...?` where a known name is close, or else `; known are ...`.
    """
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}"


def setting_text(value: Any) -> str:
    """A field's value as a table shows it."""
    if isinstance(value, tuple):
        return ",".join(map(setting_text, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
