"""Rescores a recogniser's n-best lists by language models, with weights tuned for word error.

The best hypothesis of an utterance has the lowest weighted sum of its costs: those that the list
gives, the nats of each model, and its number of words. A weight is tuned by exact search: as it
grows the best hypothesis changes at a few points alone, between which the errors are constant (Och
2003, aclanthology.org/P03-1021). One weight is tuned after the other.

Letters: `H` hypotheses, `F` costs.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.data.text import lines_of
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.model import SentenceReader
from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.word_nats import sentence_nats

MOST = 100.0  # of a weight
_NARROWEST = 1e-9  # of intervals: rounding parts lines that meet at one point


class Hypothesis(NamedTuple):
    """One line of a list.

    Attributes:
        utterance: The name of what was said.
        costs: Its scores, in nats: lower is better.
        text: Its words, with spaces between.
    """

    utterance: str
    costs: tuple[float, ...]
    text: str


def read_nbest(path: str | Path, costs: int) -> list[Hypothesis]:
    """Reads lines `UTTERANCE-N COST ... WORD ...`, as of Kaldi's archives joined by their keys.

    Args:
        path: The file.
        costs: How many costs follow the key.

    Raises:
        DataError: A line is malformed, or a key stands twice.
    """
    hypotheses = []
    keys = set()
    for number, line in enumerate(chain.from_iterable(lines_of(path)), 1):
        key, *rest = line.split() or [""]
        utterance, dash, place = key.rpartition("-")
        new_key = dash and place.isdecimal() and key not in keys
        try:
            numbers = tuple(map(float, rest[:costs]))
        except ValueError:
            numbers = ()
        if not new_key or len(numbers) != costs or not all(map(math.isfinite, numbers)):
            expected = f"expected UTTERANCE-N, new each time, {costs} costs and words"
            raise DataError(f"{path}, line {number}: {expected}; found {line.strip()!r:.80}")
        keys.add(key)
        hypotheses.append(Hypothesis(utterance, numbers, " ".join(rest[costs:])))
    return hypotheses


def costs_of(hypotheses: Sequence[Hypothesis], models: Iterable[LanguageModel]) -> np.ndarray:
    """The costs of each hypothesis: its own, the nats of each model, and its words [H, F].

    Raises:
        DataError: A model cannot read a text.
    """
    columns = [np.array([hypothesis.costs for hypothesis in hypotheses], float)]
    for lm in models:
        # A hypothesis may be empty, which sentences of a stream may be.
        read_sentence = SentenceReader(lm, SurprisalOptions(context="stream"))
        texts = [hypothesis.text for hypothesis in hypotheses]
        sentences = [read_sentence(text, "unk", repr(text)) for text in texts]
        nats = sentence_nats(lm.scorer(full=False), sentences, eos=True)
        columns.append(np.array([[word_nats.sum()] for word_nats in nats]))
    columns.append(np.array([[len(hypothesis.text.split())] for hypothesis in hypotheses], float))
    return np.concatenate(columns, 1)


def best(hypotheses: Sequence[Hypothesis], totals: np.ndarray) -> list[int]:
    """The place of each utterance's hypothesis of the lowest total [H]; of equal ones the first."""
    return [int(places[totals[places].argmin()]) for places in _of_utterances(hypotheses)]


def _of_utterances(hypotheses: Sequence[Hypothesis]) -> list[np.ndarray]:
    """The places of each utterance's hypotheses."""
    places: dict[str, list[int]] = {}
    for place, hypothesis in enumerate(hypotheses):
        places.setdefault(hypothesis.utterance, []).append(place)
    return [np.array(of_utterance) for of_utterance in places.values()]


def word_errors(words: Sequence[str], reference: Sequence[str]) -> int:
    """Words to insert, remove or replace (Levenshtein 1966)."""
    row = list(range(len(reference) + 1))
    for number, word in enumerate(words, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(reference, 1):
            change = before + (word != other)
            before = row[place]
            row[place] = min(change, before + 1, row[place - 1] + 1)
    return row[-1]


def errors_of(hypotheses: Sequence[Hypothesis], path: str | Path) -> np.ndarray:
    """The word errors of each hypothesis, int [H].

    Args:
        hypotheses: The hypotheses.
        path: What was said: lines `UTTERANCE WORD ...`.

    Raises:
        DataError: The file cannot be read, lacks an utterance, or has one twice.
    """
    lines = [line.split() for line in chain.from_iterable(lines_of(path)) if line.strip()]
    references = {words[0]: words[1:] for words in lines}
    if len(references) < len(lines):
        raise DataError(f"{path} has an utterance twice: expected lines UTTERANCE WORD ...")
    missing = {hypothesis.utterance for hypothesis in hypotheses} - references.keys()
    if missing:
        raise DataError(f"{path} lacks {len(missing):,} utterances, as {min(missing)!r:.80}")
    errors = []
    for hypothesis in hypotheses:
        reference = references[hypothesis.utterance]
        errors.append(word_errors(hypothesis.text.split(), reference))
    return np.array(errors)


def tuned(
    hypotheses: Sequence[Hypothesis],
    costs: np.ndarray,
    errors: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """The weights [F] of the costs, changed one after the other while the errors become fewer.

    Only the ratios of weights count, so the first weight stays.

    Args:
        hypotheses: The hypotheses.
        costs: Their costs [H, F].
        errors: Their word errors [H].
        weights: Where the search begins [F].
    """
    weights = weights.copy()
    utterances = _of_utterances(hypotheses)
    fewest = errors[best(hypotheses, costs @ weights)].sum()
    before = fewest + 1
    while fewest < before:
        before = fewest
        for place in range(1, len(weights)):
            slopes = costs[:, place]
            constant = costs @ weights - slopes * weights[place]
            low = -MOST if place == len(weights) - 1 else 0.0  # A cost of words may be a reward.
            count, weight = _best_weight(constant, slopes, errors, utterances, low)
            if count < fewest:
                fewest = count
                weights[place] = weight
    return weights


def _stretches(constant: np.ndarray, slopes: np.ndarray, lowest: float) -> list[tuple[float, int]]:
    """Which hypothesis of an utterance is the best, by the weight of one cost.

    Args:
        constant: The total of each hypothesis without that cost.
        slopes: That cost of each hypothesis.
        lowest: The lowest weight; the highest is `MOST`.

    Returns:
        (the weight from which on it is the best, its place) of each best hypothesis, by weight.
    """
    best = np.lexsort((slopes, constant + lowest * slopes))[0]
    stretches = [(lowest, int(best))]
    while True:
        # As the weight grows, only a hypothesis of a lower cost can overtake the best one.
        flatter = np.flatnonzero(slopes < slopes[best])
        overtakes_at = (constant[flatter] - constant[best]) / (slopes[best] - slopes[flatter])
        order = np.lexsort((slopes[flatter], overtakes_at))
        if not len(order) or overtakes_at[order[0]] >= MOST:
            return stretches
        best = flatter[order[0]]
        stretches.append((float(overtakes_at[order[0]]), int(best)))


def _best_weight(
    constant: np.ndarray,
    slopes: np.ndarray,
    errors: np.ndarray,
    utterances: Sequence[np.ndarray],
    low: float,
) -> tuple[int, float]:
    """The fewest errors that a weight can give, and the middle of the widest interval that does.

    The arguments are those of `_stretches`, of all utterances, whose rows are `utterances`.
    """
    total = 0
    weights: list[float] = []  # from which the errors change
    changes: list[int] = []
    for rows in utterances:
        stretches = _stretches(constant[rows], slopes[rows], low)
        best_errors = errors[rows][[place for _, place in stretches]]
        total += int(best_errors[0])
        weights += [weight for weight, _ in stretches[1:]]
        changes += np.diff(best_errors).tolist()
    order = np.argsort(weights)
    edges = np.array(weights)[order].tolist() or [1.0]
    counts = total + np.cumsum([0, *np.array(changes, int)[order]])
    # The first and the last interval have no end: a weight is not far from the others.
    starts = [max(low, edges[0] - 1), *sorted(weights)]
    widths = np.diff([*starts, edges[-1] + 1])
    counts = np.where(widths > _NARROWEST, counts, counts.max() + 1)
    place = np.lexsort((-widths, counts))[0]
    return int(counts[place]), float(starts[place] + widths[place] / 2)
