"""What a field of a config is: its type, limits, unit and help, and the check of a value against them.

Numbers (float) are traced by JAX, so that changing one compiles nothing; every other field is static. A number that is
`optional` may be None: the mechanism that it belongs to is then absent.
"""

import difflib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError

MOST_DIGITS = 400  # of a number that a message repeats


@dataclass(frozen=True)
class Spec:
    """What a field takes and means."""

    type: type  # float, int, bool, str, or tuple (of whole numbers)
    help: str
    unit: str = ""
    low: float = (
        -math.inf
    )  # limits of a number: it may be `low` or `high`, and not `above` or `below`
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()  # the texts that it takes; (): any
    optional: bool = False  # whether it may be None
    needs: tuple[
        str, ...
    ] = ()  # other fields of the section, of which one must be set where this one is
    excludes: tuple[
        str, ...
    ] = ()  # other fields of the section that must not be set where this one is
    own: bool = (
        False  # whether each kind has a value of its own, which another kind does not take over
    )

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


def number(default: float | None, help: str, unit: str = "", **options: Any) -> Any:
    """A traced number; None is allowed where it is the default, or with `optional=True`."""
    return _declared(default, Spec(float, help, unit, **{"optional": default is None, **options}))


def probability(help: str, **options: Any) -> Any:
    """A traced probability, absent by default; `help` says of what."""
    return number(None, f"probability that {help}", above=0, high=1, **options)


def count(
    default: int | tuple[int, ...] | None, help: str, unit: str = "", low: int = 0, **options: Any
) -> Any:
    """A static whole number, or a tuple of such; None is allowed where it is the default."""
    kind = tuple if isinstance(default, tuple) else int
    options = {"high": 2**31 - 1, "optional": default is None, **options}
    return _declared(default, Spec(kind, help, unit, low, **options))


def flag(default: bool, help: str, **options: Any) -> Any:
    """A static switch."""
    return _declared(default, Spec(bool, help, **options))


def choice(default: str, help: str, choices: Sequence[str]) -> Any:
    """A static name, one of several."""
    return _declared(default, Spec(str, help, choices=tuple(choices)))


def text(default: str, help: str) -> Any:
    """A static text."""
    return _declared(default, Spec(str, help))


def _declared(default: Any, spec: Spec) -> Any:
    return field(default=default, metadata={"spec": spec})


@cache
def specs(kind: type) -> dict[str, Spec]:
    """name -> spec of every field of a kind that has one, in the order of declaration."""
    return {item.name: item.metadata["spec"] for item in fields(kind) if "spec" in item.metadata}


def checked(section: Any) -> Any:
    """A section with every value as plain Python has it: scalars of arrays converted, lists as tuples.

    Arrays and tracers pass in the place of a number. A section's own method `check` refuses what `needs` and `excludes`
    cannot say. Raises JaxlmError where a value has another type, is outside its limits, or contradicts another.
    """
    plain = {
        n: _check(n.rstrip("_"), spec, getattr(section, n))
        for n, spec in specs(type(section)).items()
    }
    if any(value is not getattr(section, name) for name, value in plain.items()):
        section = replace(section, **plain)
    _check_relations(section)
    if hasattr(section, "check"):
        section.check()
    return section


def checked_value(name: str, value: Any, kind: type, **limits: Any) -> Any:
    """A value that is no field, checked as one: `limits` are of its `Spec`. Raises JaxlmError as `checked`."""
    return _check(name, Spec(kind, "", **limits), value)


def _check_relations(section: Any) -> None:
    """Raises JaxlmError where a field is set without one that it needs, or beside one that it excludes."""

    def is_set(name: str) -> bool:
        value = getattr(section, name)
        default = getattr(type(section), name)
        if default is None:
            return value is not None
        return value != default

    def told(names: Sequence[str]) -> str:
        return ", ".join(f"{name} is {setting_text(getattr(section, name))}" for name in names)

    for name, spec in specs(type(section)).items():
        if spec.needs and is_set(name) and not any(map(is_set, spec.needs)):
            needed = either(spec.needs)
            raise JaxlmError(
                f"{name} needs {needed}, and {told(spec.needs)}: set {needed}, or leave {name} out"
            )
        other = next((other for other in spec.excludes if is_set(name) and is_set(other)), None)
        if other:
            raise JaxlmError(
                f"{name} and {other} exclude each other, and {told([name, other])}: leave one out"
            )


def _check(name: str, spec: Spec, value: Any) -> Any:
    """One field's value, as plain Python has it. Raises JaxlmError where the spec does not allow it."""
    value = _plain(value)
    if spec.type is tuple:
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not value:
            raise JaxlmError(f"{name} needs at least one whole number, as in 256,128; it is empty")
        return tuple(_scalar(name, spec, int, _plain(one)) for one in value)
    if (value is None and spec.optional) or (hasattr(value, "shape") and spec.type is float):
        return value
    return _scalar(name, spec, spec.type, value)


def _scalar(name: str, spec: Spec, kind: type, value: Any) -> Any:
    if not isinstance(value, _TAKEN.get(kind, kind)) or isinstance(value, bool) != (kind is bool):
        none = " or none" if spec.optional else ""
        raise JaxlmError(f"{name} takes {_WORDS[kind]}{none}; it is {shown(value)}")
    try:
        value = kind(value)
    except OverflowError:
        value = math.inf
    taken = float32(value) if kind is float else value
    if kind in (int, float) and not (
        abs(taken) < math.inf and spec.low <= value <= spec.high and spec.above < taken < spec.below
    ):
        rounded = "" if not abs(value) < math.inf or taken == value else f", {taken:g} in float32"
        raise JaxlmError(f"{name} must be {spec.range}; it is {shown(value)}{rounded}")
    if spec.choices and value not in spec.choices:
        raise JaxlmError(f"{name} must be {either(spec.choices)}; it is {shown(value)}")
    return value


def _plain(value: Any) -> Any:
    """Scalars of NumPy and JAX as Python's; any other value, a tracer too, as it is."""
    arrays = type(value).__module__.split(".")[0] in ("numpy", "jaxlib")
    if arrays and getattr(value, "shape", None) == ():
        return value.item()
    return value


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}
_TAKEN: dict[type, Any] = {float: (int, float), Path: (str, Path)}


def float32(value: float) -> float:
    """The number that a program computes with: rounded to float32; 0 where that is subnormal, as processors have it."""
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
    """`a, b or c`."""
    if len(names) > 1:
        return f"{', '.join(names[:-1])} or {names[-1]}"
    return "".join(names)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` or the known names, to end a message with."""
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}"


def setting_text(value: Any) -> str:
    """A field's value as a table shows it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
