"""Minimal pairs in BLiMP's format (Warstadt et al. 2020, arXiv:1912.00582).

A pair is correct where the good sentence has strictly more log-probability; ties are counted, and
are not correct.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.fields import checked_value
from jaxlm.scoring.model import Model, SentenceReader
from jaxlm.scoring.options import BLOCK, SurprisalOptions
from jaxlm.scoring.sentences import Encoded, blocks
from jaxlm.scoring.stimuli import json_lines
from jaxlm.scoring.word_nats import sentence_nats

Z95 = 1.959963984540054  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Pair:
    """One minimal pair.

    Attributes:
        good: The sentence that should be likelier.
        bad: The other.
        uid: The kind of pair.
        term: The linguistic term of the kind.
        where: Names the pair in an error.
    """

    good: str
    bad: str
    uid: str = ""
    term: str = ""
    where: str = "the pair"


class PairResult(NamedTuple):
    """One pair's log-probabilities.

    Attributes:
        pair: The pair.
        good: Of the good sentence, in nats.
        bad: Of the bad one.
        alike: Whether the sentences differ in unknown words only.
    """

    pair: Pair
    good: float
    bad: float
    alike: bool

    @property
    def correct(self) -> bool:
        """Whether the good sentence is strictly likelier."""
        return self.good > self.bad


class Accuracy(NamedTuple):
    """Of the pairs of a UID, or of all: a row of the table that `jaxlm minimal-pairs` prints.

    Attributes:
        UID: The kind of pair, or "all".
        linguistics_term: The linguistic term of the kind.
        pairs: Pairs that were counted.
        accuracy: The share of them that are correct; nan without pairs.
        low_95: Lower end of Wilson's 95% interval.
        high_95: Its upper end.
        ties: Pairs of equal sentences, which are not correct.
        oov_only: Pairs that differ in unknown words only.
        left_out: Pairs that were not counted.
    """

    UID: str
    linguistics_term: str
    pairs: int
    accuracy: float
    low_95: float
    high_95: float
    ties: int
    oov_only: int
    left_out: int


@dataclass(frozen=True, repr=False, eq=False)
class MinimalPairs:
    """The results of minimal pairs.

    Attributes:
        by_uid: Accuracies by UID, sorted.
        total: Of all pairs.
        results: Of every pair.
    """

    by_uid: list[Accuracy]
    total: Accuracy
    results: list[PairResult]

    def __repr__(self) -> str:
        total = self.total
        pairs = f"{total.pairs:,} pairs of {len(self.by_uid)} UIDs"
        return f"MinimalPairs(accuracy {total.accuracy:.3f} on {pairs})"


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson 1927).

    Args:
        successes: Trials that succeeded.
        n: Trials.

    Returns:
        Its ends; (0, 1) without trials.
    """
    if not n:
        return 0.0, 1.0
    p = successes / n
    square = Z95 * Z95 / n
    middle = p + square / 2
    half = Z95 * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def read_pairs(sources: Iterable[str | Path | Pair]) -> list[Pair]:
    """The pairs of files, and pairs that are given themselves.

    A line of a file is a JSON object with `sentence_good` and `sentence_bad`, and perhaps a `UID`
    (default: the file's name) and a `linguistics_term`.

    Raises:
        DataError: There is no pair, a file cannot be read, or a line is malformed.
    """
    pairs = []
    for source in sources:
        if isinstance(source, Pair):
            pairs.append(source)
            continue
        for where, line in json_lines(source):
            good = line.get("sentence_good", "")
            bad = line.get("sentence_bad", "")
            if not all(isinstance(text, str) and text.split() for text in (good, bad)):
                expected = "expected text in 'sentence_good' and 'sentence_bad'"
                raise DataError(f"{where}: {expected}, found {good!r:.40} and {bad!r:.40}")
            uid = line.get("UID") or Path(source).stem
            term = line.get("linguistics_term") or ""
            pairs.append(Pair(good, bad, str(uid), str(term), where))
    if not pairs:
        raise DataError(
            "there are no pairs: give at least one, or a file that has more than blank lines"
        )
    return pairs


def minimal_pairs(
    model: Model,
    pairs: str | Path | Iterable[str | Path | Pair],
    *,
    oov: str = "unk",
    **options: Any,
) -> MinimalPairs:
    """Accuracy on minimal pairs in BLiMP's format, by UID and in all.

    Each sentence is scored by itself.

    Args:
        model: The model.
        pairs: Files of JSON lines, or pairs.
        oov: Unknown words are read as `<unk>` ("unk") or refused ("error"); "filter" leaves out
            pairs that differ in unknown words only.
        **options: `tokenizer`, `boundary`, `punctuation` and `protocol` of
            `SurprisalOptions`.

    Raises:
        DataError: A file is malformed, an unknown word is refused, or a sentence has no words.
    """
    settings = SurprisalOptions(context="sentence", **options)
    all_pairs = read_pairs([pairs] if isinstance(pairs, str | Path) else pairs)
    checked_value("oov", oov, str, choices=("unk", "error", "filter"))
    scoring = model.scoring_of(settings, full=False)
    read_sentence = SentenceReader(model, settings)
    results: list[PairResult] = []
    for block in blocks(all_pairs, BLOCK):
        sentences = [
            read_sentence(text, oov, f"{pair.where}, {text!r:.80}")
            for pair in block
            for text in (pair.good, pair.bad)
        ]
        log_p = [-float(nats.sum()) for nats in sentence_nats(scoring, sentences)]
        for place, pair in enumerate(block):
            good, bad = sentences[2 * place : 2 * place + 2]
            same_ids = np.array_equal(good.ids, bad.ids)
            alike = same_ids and _unknown_tokens(good) != _unknown_tokens(bad)
            results.append(PairResult(pair, log_p[2 * place], log_p[2 * place + 1], alike))
    by_uid: dict[str, list[PairResult]] = {}
    for result in results:
        by_uid.setdefault(result.pair.uid, []).append(result)
    rows = [
        _accuracy(uid, results_of_uid[0].pair.term, results_of_uid, oov)
        for uid, results_of_uid in sorted(by_uid.items())
    ]
    return MinimalPairs(rows, _accuracy("all", "", results, oov), results)


def _unknown_tokens(sentence: Encoded) -> list[str]:
    return list(compress(sentence.tokens, sentence.oov))


def _accuracy(
    uid: str,
    term: str,
    results: Sequence[PairResult],
    oov: str,
) -> Accuracy:
    counted = [result for result in results if not (result.alike and oov == "filter")]
    correct = sum(result.correct for result in counted)
    pairs = len(counted)
    low, high = wilson_interval(correct, pairs)
    return Accuracy(
        UID=uid,
        linguistics_term=term,
        pairs=pairs,
        accuracy=correct / pairs if pairs else math.nan,
        low_95=low,
        high_95=high,
        ties=sum(result.good == result.bad for result in counted),
        oov_only=sum(result.alike for result in results),
        left_out=len(results) - pairs,
    )
