"""Minimal pairs in BLiMP's format (Warstadt et al. 2020, arXiv:1912.00582): is the good sentence the likelier one?

A pair is correct where the good sentence has strictly more log-probability; ties are counted, and are not correct.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError
from jaxlm.scoring.sentences import blocks, check_choice, encode
from jaxlm.scoring.stimuli import json_lines, text_field
from jaxlm.scoring.token_scores import Scoring

OOV = ("unk", "error", "filter")
Z95 = 1.959963984540054  # the normal distribution's 97.5% point
BLOCK = 1024  # pairs that are read together


@dataclass(frozen=True)
class Pair:
    """One minimal pair, and where it stands."""

    good: str
    bad: str
    uid: str = ""
    term: str = ""
    where: str = "the pair"


@dataclass(frozen=True)
class PairResult:
    """One pair's log-probabilities in nats; `alike`: the sentences differ in unknown words only."""

    pair: Pair
    good: float
    bad: float
    alike: bool
    counted: bool

    @property
    def correct(self) -> bool:
        return self.good > self.bad

    @property
    def tied(self) -> bool:
        return self.good == self.bad


@dataclass(frozen=True)
class Accuracy:
    """Of n pairs: how many are correct or tied, and how many were alike (of which those left out are not among n)."""

    name: str
    term: str
    n: int
    correct: int
    ties: int
    alike: int
    left_out: int

    @property
    def accuracy(self) -> float:
        """nan without pairs."""
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval."""
        return wilson_interval(self.correct, self.n)


@dataclass(frozen=True)
class MinimalPairs:
    """Accuracies by UID, sorted; of all pairs; and every pair's result."""

    by_uid: list[Accuracy]
    total: Accuracy
    results: list[PairResult]


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 1) without trials."""
    if not n:
        return 0.0, 1.0
    p, square = successes / n, z * z / n
    middle, half = p + square / 2, z * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def read_pairs(paths: Iterable[str | Path]) -> list[Pair]:
    """The pairs of JSON lines with `sentence_good` and `sentence_bad`, and perhaps `UID` and `linguistics_term`.

    Raises:
        DataError: a file cannot be read or has no pair, or a line is malformed; with file, line and column.
    """
    pairs = []
    for path in paths:
        for where, tree in json_lines(path):
            good, bad = (text_field(tree, name, where) for name in ("sentence_good", "sentence_bad"))
            pairs.append(
                Pair(
                    good,
                    bad,
                    str(tree.get("UID", "") or Path(path).stem),
                    str(tree.get("linguistics_term") or ""),
                    where,
                )
            )
    if not pairs:
        raise DataError("there are no pairs to score: the files have blank lines only")
    return pairs


def score_pairs(
    scoring: Scoring,
    vocab: Vocab,
    pairs: Sequence[Pair],
    tokenize: Callable[[str], list[str]],
    oov: str = "unk",
    eos: bool = False,
) -> MinimalPairs:
    """Scores pairs and counts.

    Args:
        scoring: how sentences become scores; it must not carry anything from sentence to sentence.
        vocab: the model's.
        pairs: at least one.
        tokenize: a sentence's words.
        oov: unknown words are read as `<unk>`, or refused ("error"); "filter" leaves out those pairs that differ in
            unknown words only.
        eos: whether the `<eos>` after the last word is a part of the sentence.

    Raises:
        DataError: an unknown word is refused, or a sentence has no words.
    """
    check_choice("oov", oov, OOV)
    results: list[PairResult] = []
    for block in blocks(pairs, BLOCK):
        ids = []
        for pair in block:
            for text in (pair.good, pair.bad):
                if not (words := tokenize(text)):
                    raise DataError(f"{pair.where}: the sentence {text!r} has no words of the vocabulary's kind")
                encoded = encode(vocab, words, "error" if oov == "error" else "unk", pair.where).ids
                ids.append(encoded if eos else encoded[:-1])
        unique = {one.tobytes(): one for one in ids}  # equal sentences get equal numbers, so that a tie is one
        scores = scoring(list(unique.values())).nats.astype(float)
        ends = np.cumsum([len(one) - 1 for one in unique.values()])
        log_p = {key: -part.sum() for key, part in zip(unique, np.split(scores, ends[:-1]), strict=True)}
        for pair, good, bad in zip(block, ids[::2], ids[1::2], strict=True):
            alike = np.array_equal(good, bad) and tokenize(pair.good) != tokenize(pair.bad)
            results.append(
                PairResult(pair, log_p[good.tobytes()], log_p[bad.tobytes()], alike, not (alike and oov == "filter"))
            )
    by_uid: dict[str, list[PairResult]] = {}
    for result in results:
        by_uid.setdefault(result.pair.uid, []).append(result)
    return MinimalPairs(
        [_accuracy(uid, found[0].pair.term, found) for uid, found in sorted(by_uid.items())],
        _accuracy("all", "", results),
        results,
    )


def _accuracy(name: str, term: str, results: Sequence[PairResult]) -> Accuracy:
    counted = [result for result in results if result.counted]
    return Accuracy(
        name,
        term,
        len(counted),
        sum(result.correct for result in counted),
        sum(result.tied for result in counted),
        sum(result.alike for result in results),
        len(results) - len(counted),
    )
