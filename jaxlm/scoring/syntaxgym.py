"""SyntaxGym's test suites (Gauthier et al. 2020): items, conditions and regions, and formulas over surprisals.

A formula is like `(2;%mismatch%) > (2;%match%) + 1`. Numbers: literals, and the surprisal (N;%condition%) of a region
or (*;%condition%) of all of them; `*`, then `+` and `-`, from left to right. Comparisons of numbers: `<`, `>`, and `=`,
which holds within 1e-3. They are joined by `&`, then `|`. Parentheses or brackets group anything. A formula is never
evaluated as Python.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import DataError
from jaxlm.fields import checked_value
from jaxlm.scoring.sentences import SentenceReader, in_regions, sentence_nats
from jaxlm.scoring.stimuli import json_object, lines_of, source
from jaxlm.scoring.token_scores import Scoring

Region = tuple[str, int]  # condition's name, region's number (0: all regions of the condition)

RELATIVE = 1e-5
ABSOLUTE = 1e-3  # tolerances of "="
DEEPEST = 50
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<region>\(\s*(?P<number>\d+|\*)\s*;\s*%(?P<condition>[^%()]+)%\s*\))"
    r"|(?P<literal>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<sign>[-+*<>=&|()\[\]])|(?P<end>\Z)|(?P<wrong>.)",
    re.DOTALL,
)
CLOSING = {"(": ")", "[": "]"}
COMPARISON = (
    2  # the level of comparisons: looser operators take truth values, tighter ones give numbers
)
OPERATORS: dict[
    str, tuple[int, Callable[[Any, Any], Any]]
] = {  # the higher a level, the tighter its operators bind
    "|": (0, operator.or_),
    "&": (1, operator.and_),
    "<": (COMPARISON, operator.lt),
    ">": (COMPARISON, operator.gt),
    "=": (COMPARISON, lambda a, b: a == b or abs(a - b) <= ABSOLUTE + RELATIVE * abs(b)),
    "+": (3, operator.add),
    "-": (3, operator.sub),
    "*": (4, operator.mul),
}


def holds(formula: str, surprisals: Mapping[Region, float], where: str = "the formula") -> bool:
    """Whether a formula, which `where` names in an error, holds of an item's surprisals.

    Precedence climbing over OPERATORS reads and evaluates at once; a value is a float or a bool. Raises DataError, with
    the column of what is wrong; also where the item lacks a region.
    """
    tokens = [found for found in TOKEN.finditer(formula) if found.lastgroup != "space"][
        ::-1
    ]  # the next one is last

    def error(expected: str, found: re.Match[str]) -> DataError:
        start = found.start()
        return DataError(
            f"{where}, column {start + 1}: {expected}, found {formula[start : start + 20]!r}"
        )

    def expression(loosest: int, depth: int) -> float | bool:
        """The value of operators of the level `loosest` or tighter ones."""
        negative = tokens[-1]["sign"] == "-" and loosest <= OPERATORS["-"][0]  # -x is 0 - x
        left = 0.0 if negative else atom(depth)
        while (sign := tokens[-1]["sign"]) in OPERATORS and OPERATORS[sign][0] >= loosest:
            level, apply = OPERATORS[sign]
            takes_truth = level < COMPARISON
            if isinstance(left, bool) != takes_truth:
                what = "a comparison before & or |" if takes_truth else "& or | after a comparison"
                raise error(f"expected {what}", tokens[-1])
            tokens.pop()
            first = tokens[-1]
            right = expression(level + 1, depth)
            if isinstance(right, bool) != takes_truth:
                raise error("expected a comparison" if takes_truth else "expected a number", first)
            left = apply(left, right)
        return left

    def atom(depth: int) -> float | bool:
        found = tokens.pop()
        if depth > DEEPEST:
            raise error(f"expected at most {DEEPEST} parentheses inside each other", found)
        if found.lastgroup == "literal":
            return float(found[0])
        if found.lastgroup == "region":
            region = (
                found["condition"].strip(),
                0 if found["number"] == "*" else int(found["number"][:18]),
            )
            if region not in surprisals:
                raise error("expected a region that the item has", found)
            return surprisals[region]
        if found["sign"] not in CLOSING:
            raise error("expected a number, a region such as (2;%match%) or a parenthesis", found)
        value = expression(0, depth + 1)
        closing = CLOSING[found["sign"]]
        if (last := tokens.pop())["sign"] != closing:
            raise error(f"expected {closing!r}", last)
        return value

    value = expression(0, 0)
    if tokens[-1].lastgroup != "end":
        raise error("expected an operator or the end", tokens[-1])
    if not isinstance(value, bool):
        raise DataError(f"{where}: {formula!r} is a number: expected a comparison, with <, > or =")
    return value


class Item(NamedTuple):
    """One item: for each condition the content of its regions, by number and in their order."""

    number: int
    conditions: dict[str, dict[int, str]]


class Suite(NamedTuple):
    """A test suite."""

    name: str
    predictions: list[str]  # formulas
    items: list[Item]
    path: str = "the suite"


class ItemResult(NamedTuple):
    """An item's surprisals by region, in bits, and which predictions hold; unknown words are counted."""

    number: int
    surprisals: dict[Region, float]
    predictions: list[bool]
    oov: int


class SuiteResult(NamedTuple):
    """A suite's results."""

    suite: Suite
    items: list[ItemResult]

    def __repr__(self) -> str:
        return f"SuiteResult({self.suite.name!r}, accuracy {self.accuracy:.3f} on {len(self.items):,} items)"

    @property
    def accuracy(self) -> float:
        """The share of items of which every prediction holds."""
        return sum(all(item.predictions) for item in self.items) / len(self.items)

    @property
    def by_prediction(self) -> list[float]:
        """The share of items of which each prediction holds."""
        return [
            sum(held) / len(self.items)
            for held in zip(*(item.predictions for item in self.items), strict=True)
        ]


def read_suite(path: str | Path) -> Suite:
    """Reads a suite. Raises DataError, with the file and the place of what is malformed."""
    where = source(path)
    tree = json_object("".join(chain.from_iterable(lines_of(path))), where)
    meta = tree.get("meta")
    if not isinstance(meta, dict) or meta.get("metric", "sum") not in ("sum", "all", ["sum"]):
        raise DataError(
            f"{where}: expected an object in 'meta', with the metric 'sum', found {meta!r:.200}"
        )
    predictions = []
    items = [_item(item, at) for at, item in _objects(tree, "items", where)]
    for at, prediction in _objects(tree, "predictions", where):
        formula = prediction.get("formula")
        if not isinstance(formula, str):
            raise DataError(f"{at}: expected an object with a formula")
        for item in items:
            known = {
                (name, number): 0.0
                for name, regions in item.conditions.items()
                for number in (0, *regions)
            }
            holds(formula, known, f"{at}, item {item.number}")
        predictions.append(formula)
    return Suite(str(meta.get("name", Path(path).stem)), predictions, items, where)


def score_suite(scoring: Scoring, read: SentenceReader, suite: Suite, oov: str) -> SuiteResult:
    """Scores a suite, each sentence by itself. Raises DataError where a word is refused, or a sentence has no words."""
    checked_value("oov", oov, str, choices=("unk", "error"))
    sentences = []
    for item in suite.items:
        for name, regions in item.conditions.items():
            where = f"{suite.path}, item {item.number}, condition {name!r}"
            content = " ".join(
                filter(None, map(str.strip, regions.values()))
            )  # (a region may be empty)
            sentence = read(content, oov, where)
            sentences.append(in_regions(sentence, [*regions.values()], where))
    scored = zip(sentences, sentence_nats(scoring, sentences), strict=True)
    results = []
    for item in suite.items:
        surprisals = {}
        unknown = 0
        for (name, regions), (one, nats) in zip(item.conditions.items(), scored, strict=False):
            bits = nats / math.log(2)
            unknown = unknown + int(one.oov.sum())
            for region, (start, stop) in zip(regions, pairwise(one.starts), strict=True):
                surprisals[name, region] = float(bits[start:stop].sum())
            surprisals[name, 0] = float(bits.sum())
        held = [holds(formula, surprisals) for formula in suite.predictions]
        results.append(ItemResult(item.number, surprisals, held, unknown))
    return SuiteResult(suite, results)


def _objects(tree: dict[str, Any], name: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in errors, object) of each object in a list, which is not empty. Raises DataError."""
    value = tree.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list in {name!r} that is not empty")
    for place, one in enumerate(value, 1):
        at = f"{where}, {name.removesuffix('s')} {place}"
        if not isinstance(one, dict):
            raise DataError(f"{at}: expected an object, found {type(one).__name__}")
        yield at, one


def _item(tree: dict[str, Any], where: str) -> Item:
    conditions: dict[str, dict[int, str]] = {}
    for _, condition in _objects(tree, "conditions", where):
        name = condition.get("condition_name")
        if not isinstance(name, str) or name in conditions:
            raise DataError(
                f"{where}: expected a condition_name for each condition, none of them twice"
            )
        at = f"{where}, condition {name!r}"
        regions = {}
        for _, region in _objects(condition, "regions", at):
            number = _whole(region.get("region_number"))
            if not number or number in regions or not isinstance(region.get("content"), str):
                raise DataError(
                    f"{at}: expected a region_number from 1, not twice, and a content for each region"
                )
            regions[number] = region["content"]
        conditions[name] = regions
    return Item(_whole(tree.get("item_number")), conditions)


def _whole(value: Any) -> int:
    """A whole number from 1, which some suites write as text; 0 for anything else."""
    text = str(value) if isinstance(value, str | int) else ""
    if text.isascii() and text.isdigit():
        return int(text[:18])
    return 0
