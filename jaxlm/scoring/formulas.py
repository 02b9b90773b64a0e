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
from typing import Any

from jaxlm.errors import DataError

Region = tuple[str, int]  # condition's name, region's number
Surprisals = Mapping[Region, float]

RELATIVE, ABSOLUTE = 1e-5, 1e-3  # tolerances of "="
DEEPEST = 50
TOKEN = re.compile(
    r"\s*(?:(?P<region>\(\s*(?P<number>\d+|\*)\s*;\s*%(?P<condition>[^%()]+)%\s*\))"
    r"|(?P<literal>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<sign>[-+*<>=&|()\[\]])|(?P<end>$)|(?P<wrong>.))",
    re.DOTALL,
)
CLOSING = {"(": ")", "[": "]"}
Value = Callable[[Surprisals], Any]  # of a part of a formula: a number or a truth value


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=0) or abs(a - b) <= ABSOLUTE + RELATIVE * abs(b)


# Operators from the loosest on, whether they take truth values, whether they give one.
LEVELS: tuple[tuple[dict[str, Callable], bool, bool], ...] = (
    ({"|": lambda a, b: a or b}, True, True),
    ({"&": lambda a, b: a and b}, True, True),
    ({"<": operator.lt, ">": operator.gt, "=": _equal}, False, True),
    ({"+": operator.add, "-": operator.sub}, False, False),
    ({"*": operator.mul}, False, False),
)


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


def parse(text: str, where: str = "the formula") -> Formula:
    """Parses a formula. Raises DataError, with the column of what is wrong."""
    parser = _Parser(text, where)
    value, is_truth = parser.level(0, 0)
    if parser.kind != "end":
        raise parser.error("expected an operator or the end")
    if not is_truth:
        raise DataError(f"{where}: {text!r} is a number: expected a comparison, with <, > or =")
    return Formula(text, frozenset(parser.regions), lambda surprisals: bool(value(surprisals)))


class _Parser:
    """Recursive descent over LEVELS. A method returns a part's value, and whether that is a truth value."""

    def __init__(self, text: str, where: str):
        self._text, self._where, self._next = text, where, 0
        self.regions: set[Region] = set()
        self._advance()

    def _advance(self) -> None:
        found = TOKEN.match(self._text, self._next)
        assert found is not None and found.lastgroup is not None
        self.kind, self._found, self._next = found.lastgroup, found, found.end()
        self._start, self.sign = found.start(self.kind), found["sign"]
        if self.kind == "wrong":
            raise self.error("expected a number, an operator or a region such as (2;%match%)")

    def error(self, expected: str) -> DataError:
        """At the token that comes next."""
        rest = self._text[self._start : self._start + 20]
        return DataError(f"{self._where}, column {self._start + 1}: {expected}, found {rest!r}")

    def level(self, level: int, depth: int) -> tuple[Value, bool]:
        """An expression of operators at this level or tighter ones."""
        if depth > DEEPEST:
            raise self.error(f"expected at most {DEEPEST} parentheses inside each other")
        if level == len(LEVELS):
            return self._atom(depth)
        operators, takes_truth, gives_truth = LEVELS[level]
        (left, is_truth), compared = self.level(level + 1, depth), False
        while self.sign in operators:
            if is_truth != takes_truth or compared:
                raise self.error(
                    f"expected {'& or | after a comparison' if is_truth else 'a comparison before & or |'}"
                )
            apply = operators[self.sign]
            self._advance()
            start, (right, right_is_truth) = self._start, self.level(level + 1, depth)
            if right_is_truth != takes_truth:
                self._start = start
                raise self.error("expected a comparison" if takes_truth else "expected a number")
            left, is_truth = _applied(apply, left, right), gives_truth
            compared = gives_truth and not takes_truth
        return left, is_truth

    def _atom(self, depth: int) -> tuple[Value, bool]:
        kind, sign, found = self.kind, self.sign, self._found
        if kind == "end" or (kind == "sign" and sign != "-" and sign not in CLOSING):
            raise self.error("expected a number, a region such as (2;%match%) or a parenthesis")
        self._advance()
        if kind == "region":
            condition, number = found["condition"].strip(), found["number"]
            self.regions.add(key := (condition, 0 if number == "*" else int(number[:18])))
            return _looked_up(key), False
        if kind == "literal":
            value = float(found["literal"])
            return (lambda _: value), False
        if sign == "-":
            negated, is_truth = self._atom(depth + 1) if depth <= DEEPEST else self.level(0, depth + 1)
            if is_truth:
                raise self.error("expected a number after -")
            return (lambda surprisals: -negated(surprisals)), False
        part = self.level(0, depth + 1)
        if self.sign != CLOSING[sign]:
            raise self.error(f"expected {CLOSING[sign]!r}")
        self._advance()
        return part


def _applied(apply: Callable, left: Value, right: Value) -> Value:
    return lambda surprisals: apply(left(surprisals), right(surprisals))


def _looked_up(key: Region) -> Value:
    condition, number = key
    if number:
        return lambda surprisals: surprisals[key]
    return lambda surprisals: math.fsum(value for (name, _), value in surprisals.items() if name == condition)
