"""SyntaxGym's formulas over the surprisals of regions, as in `(2;%mismatch%) > (2;%match%) + 1`.

Numbers: literals, and the surprisal (N;%condition%) of a region or (*;%condition%) of all of them; `*`, then `+` and
`-`, from left to right. Comparisons of numbers: `<`, `>`, and `=`, which holds within 1e-3. They are joined by `&`,
then `|`. Parentheses or brackets group anything. A formula is parsed here and never evaluated as Python.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxlm.errors import DataError

Region = tuple[str, int]  # condition's name, region's number
Surprisals = Mapping[Region, float]

RELATIVE, ABSOLUTE = 1e-5, 1e-3  # tolerances of "="
DEEPEST = 50
TOKEN = re.compile(
    r"\s*(?:(?P<region>\(\s*(?P<number>\d+|\*)\s*;\s*%(?P<condition>[^%()]+)%\s*\))"
    r"|(?P<literal>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<sign>[-+*<>=&|()\[\]])|(?P<end>$))"
)
CLOSING = {"(": ")", "[": "]"}


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes:
        text: as written.
        regions: those that it names; number 0 stands for all of a condition.
        holds: whether it is true of the surprisals of an item's regions.
    """

    text: str
    regions: frozenset[Region]
    holds: Callable[[Surprisals], bool]


@dataclass(frozen=True)
class _Part:
    """A part of a formula: what it computes, and whether that is a truth value or a number."""

    value: Callable[[Surprisals], float | bool]
    is_truth: bool


def parse(text: str, where: str = "the formula") -> Formula:
    """Parses a formula. Raises DataError, with the column of what is wrong."""
    parser = _Parser(text, where)
    part = parser.level(0, 0)
    if parser.sign or parser.literal or not parser.ended:
        raise parser.error("expected an operator or the end")
    if not part.is_truth:
        raise DataError(f"{where}: {text!r} is a number: expected a comparison, with <, > or =")
    return Formula(text, frozenset(parser.regions), lambda surprisals: bool(part.value(surprisals)))


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=0) or abs(a - b) <= ABSOLUTE + RELATIVE * abs(b)


# Operators, whether they take truth values, whether they give one.
LEVELS: tuple[tuple[dict[str, Callable], bool, bool], ...] = (
    ({"|": lambda a, b: a or b}, True, True),
    ({"&": lambda a, b: a and b}, True, True),
    ({"<": operator.lt, ">": operator.gt, "=": _equal}, False, True),
    ({"+": operator.add, "-": operator.sub}, False, False),
    ({"*": operator.mul}, False, False),
)


class _Parser:
    """Recursive descent over LEVELS, the loosest first."""

    def __init__(self, text: str, where: str):
        self._text, self._where, self._next = text, where, 0
        self.regions: set[Region] = set()
        self._advance()

    def _advance(self) -> None:
        found = TOKEN.match(self._text, self._next)
        if found is None:
            self._start = self._next + len(self._text[self._next :]) - len(self._text[self._next :].lstrip())
            raise self.error("expected a number, an operator or a region such as (2;%match%)")
        self._start, self._next = found.start(found.lastgroup or 0), found.end()
        if found["region"]:
            self._start = found.start("region")
        self.sign, self.literal, self.ended = found["sign"], found["literal"], found["end"] is not None
        self.region = (found["condition"].strip(), found["number"]) if found["region"] else None

    def error(self, expected: str) -> DataError:
        """At the token that comes next."""
        rest = self._text[self._start : self._start + 20]
        return DataError(f"{self._where}, column {self._start + 1}: {expected}, found {rest!r}")

    def level(self, level: int, depth: int) -> _Part:
        """An expression of operators at this level or tighter ones."""
        if depth > DEEPEST:
            raise self.error(f"expected at most {DEEPEST} parentheses inside each other")
        if level == len(LEVELS):
            return self._atom(depth)
        operators, takes_truth, gives_truth = LEVELS[level]
        left, compared = self.level(level + 1, depth), False
        while self.sign in operators:
            if left.is_truth != takes_truth or compared:
                raise self.error(
                    "expected & or | after a comparison" if left.is_truth else "expected a comparison before & or |"
                )
            apply = operators[self.sign]
            self._advance()
            start, right = self._start, self.level(level + 1, depth)
            if right.is_truth != takes_truth:
                self._start = start
                raise self.error("expected a comparison" if takes_truth else "expected a number")
            left = _Part(_applied(apply, left.value, right.value), gives_truth)
            compared = gives_truth and not takes_truth
        return left

    def _atom(self, depth: int) -> _Part:
        if self.region is not None:
            condition, number = self.region
            key = (condition, 0 if number == "*" else int(number[:18]))
            self.regions.add(key)
            self._advance()
            return _Part(_looked_up(key), False)
        if self.literal is not None:
            value = float(self.literal)
            self._advance()
            return _Part(lambda _: value, False)
        if self.sign == "-":
            self._advance()
            part = self._atom(depth + 1) if depth <= DEEPEST else self.level(0, depth + 1)
            if part.is_truth:
                raise self.error("expected a number after -")
            return _Part(lambda surprisals: -part.value(surprisals), False)
        if self.sign in CLOSING:
            closing = CLOSING[self.sign]
            self._advance()
            part = self.level(0, depth + 1)
            if self.sign != closing:
                raise self.error(f"expected {closing!r}")
            self._advance()
            return part
        raise self.error("expected a number, a region such as (2;%match%) or a parenthesis")


def _applied(apply: Callable, left: Callable, right: Callable) -> Callable[[Surprisals], float | bool]:
    return lambda surprisals: apply(left(surprisals), right(surprisals))


def _looked_up(key: Region) -> Callable[[Surprisals], float]:
    condition, number = key
    if number:
        return lambda surprisals: surprisals[key]
    return lambda surprisals: math.fsum(value for (name, _), value in surprisals.items() if name == condition)
