"""SyntaxGym's test suites (Gauthier et al. 2020) and their formulas over surprisals.

A formula is like `(2;%mismatch%) > (2;%match%) + 1`. Numbers: literals, and the surprisal
(N;%condition%) of a region or (*;%condition%) of all of them; `*`, then `+` and `-`, from left to
right. Comparisons of numbers: `<`, `>`, and `=`, which holds within 1e-3. They are joined by `&`,
then `|`. Parentheses or brackets group anything. A formula is never evaluated as Python.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.base.errors import DataError
from jaxlm.base.fields import checked_value
from jaxlm.data.text import lines_of, source
from jaxlm.scoring.model import Model, SentenceReader
from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.sentences import region_starts
from jaxlm.scoring.stimuli import json_object
from jaxlm.scoring.word_nats import sentence_nats

# A condition's name, and a region's number from 1, or ALL.
Region = tuple[str, int]
ALL = 0

# Tolerances of "=".
RELATIVE = 1e-5
ABSOLUTE = 1e-3
DEEPEST = 50  # parentheses inside each other
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<region>\(\s*(?P<number>\d+|\*)\s*;\s*%(?P<condition>[^%()]+)%\s*\))"
    r"|(?P<literal>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<sign>[-+*<>=&|()\[\]])|(?P<end>\Z)|(?P<wrong>.)",
    re.DOTALL,
)
CLOSING = {"(": ")", "[": "]"}


def _equal(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= ABSOLUTE + RELATIVE * abs(b)


# The level of comparisons: looser operators take truth values, tighter ones give numbers.
COMPARISON = 2
# The higher a level, the tighter its operators bind.
OPERATORS: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "|": (0, operator.or_),
    "&": (1, operator.and_),
    "<": (COMPARISON, operator.lt),
    ">": (COMPARISON, operator.gt),
    "=": (COMPARISON, _equal),
    "+": (3, operator.add),
    "-": (3, operator.sub),
    "*": (4, operator.mul),
}


def holds(
    formula: str,
    surprisals: Mapping[Region, float],
    where: str = "the formula",
) -> bool:
    """Whether a formula holds of an item's surprisals.

    Precedence climbing over OPERATORS reads and evaluates at once; a value is a float or a bool.

    Args:
        formula: The formula.
        surprisals: The surprisal of every region of the item, and of ALL of each condition.
        where: Names the formula in an error.

    Raises:
        DataError: The formula is malformed, or the item lacks a region; with the column.
    """
    tokens = [token for token in TOKEN.finditer(formula) if token.lastgroup != "space"]
    tokens.reverse()  # so that `tokens.pop()` takes the next one

    def error(expected: str, token: re.Match[str]) -> DataError:
        start = token.start()
        rest = formula[start : start + 20]
        return DataError(f"{where}, column {start + 1}: {expected}, found {rest!r}")

    def expression(loosest: int, depth: int) -> float | bool:
        """The value of operators of the level `loosest` or tighter ones."""
        negative = tokens[-1]["sign"] == "-" and loosest <= OPERATORS["-"][0]
        left = 0.0 if negative else atom(depth)  # -x is 0 - x
        while True:
            sign = tokens[-1]["sign"]
            if sign not in OPERATORS or OPERATORS[sign][0] < loosest:
                return left
            level, apply = OPERATORS[sign]
            takes_truth = level < COMPARISON
            if isinstance(left, bool) and not takes_truth:
                raise error("expected & or | after a comparison", tokens[-1])
            if takes_truth and not isinstance(left, bool):
                raise error("expected a comparison before & or |", tokens[-1])
            tokens.pop()
            right_token = tokens[-1]
            right = expression(level + 1, depth)
            if isinstance(right, bool) != takes_truth:
                expected = "a comparison" if takes_truth else "a number"
                raise error(f"expected {expected}", right_token)
            left = apply(left, right)

    def atom(depth: int) -> float | bool:
        token = tokens.pop()
        if depth > DEEPEST:
            raise error(f"expected at most {DEEPEST} parentheses inside each other", token)
        if token.lastgroup == "literal":
            return float(token[0])
        if token.lastgroup == "region":
            number = ALL if token["number"] == "*" else int(token["number"][:18])
            region = token["condition"].strip(), number
            if region not in surprisals or (number == ALL and token["number"] != "*"):
                raise error("expected a region that the item has", token)
            return surprisals[region]
        if token["sign"] not in CLOSING:
            raise error("expected a number, a region such as (2;%match%) or a parenthesis", token)
        value = expression(0, depth + 1)
        last = tokens.pop()
        if last["sign"] != CLOSING[token["sign"]]:
            raise error(f"expected {CLOSING[token['sign']]!r}", last)
        return value

    value = expression(0, 0)
    if tokens[-1].lastgroup != "end":
        raise error("expected an operator or the end", tokens[-1])
    if not isinstance(value, bool):
        raise DataError(f"{where}: {formula!r} is a number: expected a comparison, with <, > or =")
    return value


class Item(NamedTuple):
    """One item of a suite.

    Attributes:
        number: Its number.
        conditions: For each condition the content of its regions, by number and in their order.
    """

    number: int
    conditions: dict[str, dict[int, str]]


class Suite(NamedTuple):
    """A test suite.

    Attributes:
        name: Its name.
        predictions: Formulas.
        items: Its items.
        path: Names the suite in an error.
    """

    name: str
    predictions: list[str]
    items: list[Item]
    path: str = "the suite"


class ItemResult(NamedTuple):
    """The results of an item.

    Attributes:
        number: The item's number.
        surprisals: By region, in bits.
        predictions: Which predictions hold.
        oov: How many words are unknown.
    """

    number: int
    surprisals: dict[Region, float]
    predictions: list[bool]
    oov: int


class SuiteResult(NamedTuple):
    """The results of a suite, and of its items."""

    suite: Suite
    items: list[ItemResult]

    def __repr__(self) -> str:
        accuracy = f"accuracy {self.accuracy:.3f} on {len(self.items):,} items"
        return f"SuiteResult({self.suite.name!r}, {accuracy})"

    @property
    def accuracy(self) -> float:
        """The share of items of which every prediction holds."""
        return sum(all(item.predictions) for item in self.items) / len(self.items)

    @property
    def by_prediction(self) -> list[float]:
        """The share of items of which each prediction holds."""
        columns = zip(*(item.predictions for item in self.items), strict=True)
        return [sum(held) / len(self.items) for held in columns]


def read_suite(path: str | Path) -> Suite:
    """Reads a suite. Raises DataError, with the file and the place of what is malformed."""
    where = source(path)
    tree = json_object("".join(chain.from_iterable(lines_of(path))), where)
    meta = tree.get("meta")
    if not isinstance(meta, dict) or meta.get("metric", "sum") not in ("sum", "all", ["sum"]):
        expected = "expected an object in 'meta', with the metric 'sum'"
        raise DataError(f"{where}: {expected}, found {meta!r:.200}")
    items = [_item(item, at) for at, item in _objects(tree, "items", where)]
    predictions = []
    for at, prediction in _objects(tree, "predictions", where):
        formula = prediction.get("formula")
        if not isinstance(formula, str):
            raise DataError(f"{at}: expected an object with a formula")
        for item in items:
            regions = {
                (name, number): 0.0
                for name, contents in item.conditions.items()
                for number in (ALL, *contents)
            }
            holds(formula, regions, f"{at}, item {item.number}")
        predictions.append(formula)
    return Suite(str(meta.get("name", Path(path).stem)), predictions, items, where)


def syntaxgym(
    model: Model,
    suite: str | Path | Suite,
    *,
    oov: str = "unk",
    **options: Any,
) -> SuiteResult:
    """Results of a SyntaxGym test suite, each sentence scored by itself.

    Args:
        model: The model.
        suite: Its JSON file, or what `read_suite` made of it.
        oov: Unknown words are read as `<unk>` ("unk") or refused ("error").
        **options: As `minimal_pairs` takes them.

    Raises:
        DataError: The suite is malformed, an unknown word is refused, or a sentence has no words.
    """
    settings = SurprisalOptions(context="sentence", **options)
    checked_value("oov", oov, str, choices=("unk", "error"))
    if not isinstance(suite, Suite):
        suite = read_suite(suite)
    scoring = model.scoring_of(settings, full=False)
    read_sentence = SentenceReader(model, settings)
    sentences = []
    region_edges = []  # of each sentence, the first token of each region, and how many tokens
    for item in suite.items:
        for name, regions in item.conditions.items():
            where = f"{suite.path}, item {item.number}, condition {name!r}"
            texts = list(regions.values())
            nonempty = [text.strip() for text in texts if text.strip()]
            sentence = read_sentence(" ".join(nonempty), oov, where)
            sentences.append(sentence)
            region_edges.append(sentence.starts[region_starts(sentence, texts, where)])
    scored = zip(sentences, region_edges, sentence_nats(scoring, sentences), strict=True)
    results = []
    for item in suite.items:
        surprisals = {}
        unknown = 0
        for name, regions in item.conditions.items():
            sentence, edges, nats = next(scored)
            bits = nats / math.log(2)
            unknown += int(sentence.oov.sum())
            for region, (start, stop) in zip(regions, pairwise(edges), strict=True):
                surprisals[name, region] = float(bits[start:stop].sum())
            surprisals[name, ALL] = float(bits.sum())
        predictions = [holds(formula, surprisals) for formula in suite.predictions]
        results.append(ItemResult(item.number, surprisals, predictions, unknown))
    return SuiteResult(suite, results)


def _objects(
    tree: dict[str, Any],
    name: str,
    where: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in errors, object) of each object in a list, which is not empty. Raises DataError."""
    values = tree.get(name)
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: expected a list in {name!r} that is not empty")
    for place, value in enumerate(values, 1):
        at = f"{where}, {name.removesuffix('s')} {place}"
        if not isinstance(value, dict):
            raise DataError(f"{at}: expected an object, found {type(value).__name__}")
        yield at, value


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
            number = _number(region.get("region_number"))
            if not number or number in regions or not isinstance(region.get("content"), str):
                raise DataError(
                    f"{at}: expected a region_number from 1, not twice, and a content for each "
                    "region"
                )
            regions[number] = region["content"]
        conditions[name] = regions
    return Item(_number(tree.get("item_number")), conditions)


def _number(value: Any) -> int:
    """A whole number from 1, which some suites write as text; 0 for anything else."""
    text = str(value) if isinstance(value, str | int) else ""
    if text.isascii() and text.isdigit():
        return int(text[:18])
    return 0
