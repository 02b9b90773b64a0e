"""Minimal pairs in BLiMP's format (Warstadt et al. 2020, arXiv:1912.00582): is the good sentence the likelier one?

A pair is correct where the good sentence has strictly more log-probability; ties are counted, and are not correct.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.errors import DataError
from jaxlm.fields import checked_value
from jaxlm.scoring.sentences import BLOCK, SentenceReader, blocks, sentence_nats
from jaxlm.scoring.stimuli import json_object, lines_of, source
from jaxlm.scoring.token_scores import Scoring

Z95 = 1.959963984540054  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Pair:
    """One minimal pair, and where it stands."""

    good: str
    bad: str
    uid: str = ""
    term: str = ""
    where: str = "the pair"


class PairResult(NamedTuple):
    """One pair's log-probabilities in nats; `alike`: the sentences differ in unknown words only."""

    pair: Pair
    good: float
    bad: float
    alike: bool

    @property
    def correct(self) -> bool:
        return self.good > self.bad


class Accuracy(NamedTuple):
    """Of the pairs of a UID, or of all: a row of the table that `jaxlm minimal-pairs` prints.

    `accuracy` is nan without pairs; its 95% interval is Wilson's. `ties` are not correct, `oov_only` pairs differ in
    unknown words only, and pairs that are `left_out` are not among `pairs`.
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


@dataclass(frozen=True, repr=False)
class MinimalPairs:
    """Accuracies by UID, sorted; of all pairs; and every pair's result."""

    by_uid: list[Accuracy]
    total: Accuracy
    results: list[PairResult]

    def __repr__(self) -> str:
        total = self.total
        return f"MinimalPairs(accuracy {total.accuracy:.3f} on {total.pairs:,} pairs of {len(self.by_uid)} UIDs)"


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson 1927); (0, 1) without trials."""
    if not n:
        return 0.0, 1.0
    p = successes / n
    square = Z95 * Z95 / n
    middle = p + square / 2
    half = Z95 * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def read_pairs(given: Iterable[str | Path | Pair]) -> list[Pair]:
    """Pairs as they are, and those of files: JSON lines with `sentence_good` and `sentence_bad`, perhaps others.

    The pair of a line may have a `UID` (default: the file's name) and a `linguistics_term`. Raises DataError where
    there is no pair, a file cannot be read, or a line is malformed; with file, line and column.
    """
    pairs = []
    for path in given:
        if isinstance(path, Pair):
            pairs.append(path)
            continue
        for number, line in enumerate(chain.from_iterable(lines_of(path)), 1):
            if not line.strip():
                continue
            where = f"{source(path)}, line {number}"
            tree = json_object(line, where)
            good, bad = (tree.get(name, "") for name in ("sentence_good", "sentence_bad"))
            if not all(isinstance(text, str) and text.split() for text in (good, bad)):
                found = f"{good!r:.40} and {bad!r:.40}"
                raise DataError(
                    f"{where}: expected text in 'sentence_good' and 'sentence_bad', found {found}"
                )
            uid = tree.get("UID") or Path(path).stem
            term = tree.get("linguistics_term") or ""
            pairs.append(Pair(good, bad, str(uid), str(term), where))
    if not pairs:
        raise DataError(
            "there are no pairs: give at least one, or a file that has more than blank lines"
        )
    return pairs


def _accuracy(name: str, term: str, results: Sequence[PairResult], oov: str) -> Accuracy:
    counted = [one for one in results if not (one.alike and oov == "filter")]
    correct = sum(one.correct for one in counted)
    ties = sum(one.good == one.bad for one in counted)
    n = len(counted)
    alike = sum(one.alike for one in results)
    share = correct / n if n else math.nan
    return Accuracy(
        name, term, n, share, *wilson_interval(correct, n), ties, alike, len(results) - n
    )


def score_pairs(
    scoring: Scoring, read: SentenceReader, pairs: Iterable[Pair], oov: str, eos: bool
) -> MinimalPairs:
    """Scores pairs, each sentence by itself, and counts; `oov` and `eos` as in `LanguageModel.minimal_pairs`.

    Raises DataError where an unknown word is refused, or a sentence has no words.
    """
    checked_value("oov", oov, str, choices=("unk", "error", "filter"))
    results: list[PairResult] = []
    for block in blocks(pairs, BLOCK):
        texts = [
            (text, f"{pair.where}, {text!r:.80}")
            for pair in block
            for text in (pair.good, pair.bad)
        ]
        sentences = [read(text, oov, where) for text, where in texts]
        unique = {
            one.ids.tobytes(): one for one in sentences
        }  # equal sentences get equal numbers: a tie is one
        nats = sentence_nats(scoring, [*unique.values()], eos)
        log_p = {key: -float(part.sum()) for key, part in zip(unique, nats, strict=True)}
        for pair, good, bad in zip(block, sentences[::2], sentences[1::2], strict=True):
            unknown, others = ([*compress(one.tokens, one.oov)] for one in (good, bad))
            alike = np.array_equal(good.ids, bad.ids) and unknown != others
            p_good, p_bad = (log_p[one.ids.tobytes()] for one in (good, bad))
            results.append(PairResult(pair, p_good, p_bad, alike))
    by_uid: dict[str, list[PairResult]] = {}
    for result in results:
        by_uid.setdefault(result.pair.uid, []).append(result)
    rows = [_accuracy(uid, found[0].pair.term, found, oov) for uid, found in sorted(by_uid.items())]
    return MinimalPairs(rows, _accuracy("all", "", results, oov), results)
