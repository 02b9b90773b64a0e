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


COMPARISON = 2  # the level of comparisons: looser operators take truth values, tighter ones give numbers
OPERATORS: dict[str, tuple[int, Callable]] = {  # a level is the higher, the tighter its operators bind
    "|": (0, lambda a, b: a or b),
    "&": (1, lambda a, b: a and b),
    "<": (COMPARISON, operator.lt),
    ">": (COMPARISON, operator.gt),
    "=": (COMPARISON, _equal),
    "+": (3, operator.add),
    "-": (3, operator.sub),
    "*": (4, operator.mul),
}


@dataclass(frozen=True)
class Formula:
    """A parsed formula: its text, the regions that it names, and whether it holds of an item's surprisals.

    The region number 0 stands for all regions of a condition.
    """

    text: str
    regions: frozenset[Region]
    holds: Callable[[Surprisals], bool]


def parse(text: str, where: str = "the formula") -> Formula:
    """Parses a formula. Raises DataError, with the column of what is wrong."""
    parser = _Parser(text, where)
    value, is_truth = parser.expression(0, 0)
    if parser.kind != "end":
        raise parser.error("expected an operator or the end")
    if not is_truth:
        raise DataError(f"{where}: {text!r} is a number: expected a comparison, with <, > or =")
    return Formula(text, frozenset(parser.regions), lambda surprisals: bool(value(surprisals)))


class _Parser:
    """Precedence climbing over OPERATORS. A method returns a part's value, and whether it is a truth value."""

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

    def expression(self, loosest: int, depth: int) -> tuple[Value, bool]:
        """An expression of operators of the level `loosest` or tighter ones."""
        left, is_truth = self._atom(depth)
        while self.sign in OPERATORS and OPERATORS[self.sign][0] >= loosest:
            level, apply = OPERATORS[self.sign]
            takes_truth = level < COMPARISON
            if is_truth != takes_truth:
                raise self.error(
                    f"expected {'& or | after a comparison' if is_truth else 'a comparison before & or |'}"
                )
            self._advance()
            start, (right, right_is_truth) = self._start, self.expression(level + 1, depth)
            if right_is_truth != takes_truth:
                self._start = start
                raise self.error("expected a comparison" if takes_truth else "expected a number")
            left, is_truth = _applied(apply, left, right), level <= COMPARISON
        return left, is_truth

    def _atom(self, depth: int) -> tuple[Value, bool]:
        if depth > DEEPEST:
            raise self.error(f"expected at most {DEEPEST} parentheses inside each other")
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
            negated, is_truth = self._atom(depth + 1)
            if is_truth:
                raise self.error("expected a number after -")
            return (lambda surprisals: -negated(surprisals)), False
        part = self.expression(0, depth + 1)
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
