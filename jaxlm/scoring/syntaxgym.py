"""SyntaxGym's test suites (Gauthier et al. 2020): items, conditions and regions, and formulas over surprisals."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import DataError
from jaxlm.scoring import formulas
from jaxlm.scoring.formulas import Formula
from jaxlm.scoring.sentences import Encoded, SentenceReader, check_choice, in_regions, sentence_nats
from jaxlm.scoring.stimuli import json_file
from jaxlm.scoring.token_scores import Scoring


class Item(NamedTuple):
    """One item: for each condition the content of its regions, by number and in their order."""

    number: int
    conditions: dict[str, dict[int, str]]


@dataclass(frozen=True)
class Suite:
    """A test suite."""

    name: str
    predictions: list[Formula]
    items: list[Item]
    path: str = "the suite"


@dataclass(frozen=True)
class ItemResult:
    """An item's surprisals by (condition, region), in bits, and which predictions hold; unknown words are counted."""

    number: int
    surprisals: dict[formulas.Region, float]
    predictions: list[bool]
    oov: int

    @property
    def correct(self) -> bool:
        """Whether every prediction holds."""
        return all(self.predictions)


@dataclass(frozen=True, repr=False)
class SuiteResult:
    """A suite's results."""

    suite: Suite
    items: list[ItemResult]

    def __repr__(self) -> str:
        return f"SuiteResult({self.suite.name!r}, accuracy {self.accuracy:.3f} on {len(self.items):,} items)"

    @property
    def accuracy(self) -> float:
        """The share of items of which every prediction holds."""
        return sum(item.correct for item in self.items) / len(self.items)

    @property
    def by_prediction(self) -> list[float]:
        """The share of items of which each prediction holds."""
        return [sum(held) / len(self.items) for held in zip(*(item.predictions for item in self.items), strict=True)]


def read_suite(path: str | Path) -> Suite:
    """Reads a suite. Raises DataError, with the file and the place of what is malformed."""
    tree, where = json_file(path), str(path)
    meta = tree.get("meta")
    if not isinstance(meta, dict):
        raise DataError(f"{where}: expected an object in 'meta', with the suite's name")
    if meta.get("metric", "sum") not in ("sum", "all", ["sum"]):
        raise DataError(f"{where}: expected the metric 'sum', found {meta['metric']!r}")
    predictions = []
    for place, prediction in enumerate(_objects(tree, "predictions", where), 1):
        at = f"{where}, prediction {place}"
        if not isinstance(prediction.get("formula"), str):
            raise DataError(f"{at}: expected an object with a formula")
        predictions.append(formulas.parse(prediction["formula"], at))
    items = [_item(item, f"{where}, item {place}") for place, item in enumerate(_objects(tree, "items", where), 1)]
    for item in items:
        for place, formula in enumerate(predictions, 1):
            for condition, region in sorted(formula.regions):
                if condition not in item.conditions or (region and region not in item.conditions[condition]):
                    named = f"region {region} of condition {condition!r}" if region else f"condition {condition!r}"
                    raise DataError(f"{where}, prediction {place} names {named}, and item {item.number} has none")
    return Suite(str(meta.get("name", Path(path).stem)), predictions, items, where)


def score_suite(scoring: Scoring, read: SentenceReader, suite: Suite, oov: str = "unk") -> SuiteResult:
    """Scores a suite, each sentence by itself.

    Raises DataError where an unknown word is refused (`oov="error"`), or a sentence has no words.
    """
    check_choice("oov", oov, ("unk", "error"))
    sentences: list[Encoded] = []
    for item in suite.items:
        for name, regions in item.conditions.items():
            where = f"{suite.path}, item {item.number}, condition {name!r}"
            sentence = read(" ".join(regions.values()), oov, where)
            if not sentence.tokens:
                raise DataError(f"{where} has no words")
            sentences.append(in_regions(sentence, [*regions.values()], where))
    bits = [nats / math.log(2) for nats in sentence_nats(scoring, sentences)]
    ranges = ((found, *span) for found, one in zip(bits, sentences, strict=True) for span in pairwise(one.starts))
    sums = (float(found[start:stop].sum()) for found, start, stop in ranges)
    unknown = (int(sentence.oov.sum()) for sentence in sentences)
    results = []
    for item in suite.items:
        found = {(name, region): next(sums) for name, regions in item.conditions.items() for region in regions}
        holds = [formula.holds(found) for formula in suite.predictions]
        results.append(ItemResult(item.number, found, holds, sum(next(unknown) for _ in item.conditions)))
    return SuiteResult(suite, results)


def _objects(tree: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    value = tree.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list in {name!r} that is not empty")
    for place, one in enumerate(value, 1):
        if not isinstance(one, dict):
            raise DataError(
                f"{where}, {name.removesuffix('s')} {place}: expected an object, found {type(one).__name__}"
            )
    return value


def _item(tree: dict[str, Any], where: str) -> Item:
    conditions: dict[str, dict[int, str]] = {}
    for condition in _objects(tree, "conditions", where):
        name = condition.get("condition_name")
        if not isinstance(name, str) or name in conditions:
            raise DataError(f"{where}: expected a condition_name for each condition, none of them twice")
        regions: dict[int, str] = {}
        for region in _objects(condition, "regions", f"{where}, condition {name!r}"):
            number = _whole(region.get("region_number"))
            if number is None or number < 1 or number in regions or not isinstance(region.get("content"), str):
                wanted = "a region_number from 1, not twice, and a content for each region"
                raise DataError(f"{where}, condition {name!r}: expected {wanted}")
            regions[number] = region["content"]
        conditions[name] = regions
    return Item(_whole(tree.get("item_number")) or 0, conditions)


def _whole(value: Any) -> int | None:
    """A whole number, which some suites write as text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:18])
    return value if type(value) is int else None
