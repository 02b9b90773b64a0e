"""Interpolated modified Kneser-Ney smoothing of n-gram models.

Chen and Goodman 1999, "An empirical study of smoothing techniques". As KenLM's `lmplz` estimates it
(Heafield et al. 2013, aclanthology.org/P13-2121): an n-gram below the highest order counts the
distinct tokens before it, unless it begins a sentence; three discounts an order come from the
counts of counts; the lowest order is interpolated with the uniform distribution over the
vocabulary.

Letters: `N` tokens, `V` vocabulary, `G` n-grams of one order.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.ngrams.backoff import ABSENT, BackoffModel, Table, with_beginnings

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's --discount_fallback
LEAST_WEIGHT = 1e-99  # of lower orders, where a discount is zero; ARPA files have none below
BYTES_A_TOKEN = 80  # of memory while the n-grams of one order are counted


class _Grams(NamedTuple):
    """The n-grams of one order in a text.

    Attributes:
        keys: Sorted int64 `[G]`, as a `Table` has them.
        counts: How often each occurs, int64 `[G]`.
        last: The position in the text where the first occurrence of each ends, int64 `[G]`.
        places: Of the n-gram that ends at each position of the text, int64 `[N]`; ABSENT where none
            does.
    """

    keys: np.ndarray
    counts: np.ndarray
    last: np.ndarray
    places: np.ndarray


def memory_needed(
    tokens: int,
    order: int,
    vocab_size: int,
) -> int:
    """The most bytes that `estimate` takes for a text without repeated n-grams.

    Args:
        tokens: N.
        order: The most tokens of an n-gram.
        vocab_size: V.
    """
    return BYTES_A_TOKEN * tokens + 32 * (order - 1) * tokens + 24 * vocab_size


def estimate(
    tokens: np.ndarray,
    vocab_size: int,
    order: int,
    end: int | None,
    warn: Callable[[str], object] = lambda _: None,
) -> BackoffModel:
    """The Kneser-Ney model of a text.

    Args:
        tokens: The text, ids `[N]` below V.
        vocab_size: V. Tokens that the text lacks share what the uniform distribution gives them.
        order: The most tokens of an n-gram.
        end: The token that ends a sentence; None: the text is one sentence.
        warn: Called with a sentence where an order has too few n-grams for discounts of its own.

    Returns:
        A model whose probabilities sum to one over the vocabulary after every context.
    """
    stream = with_beginnings(tokens, vocab_size, end)
    grams = _grams_of_orders(stream, vocab_size, order)
    last_places = _kenlm_last_places(stream, grams, end)
    tables: list[Table] = []
    probability = np.full(vocab_size + 1, 1 / vocab_size)
    for level, current in enumerate(grams, start=1):
        longer = grams[level] if level < order else None
        counts = _adjusted_counts(current, longer, level, vocab_size)
        counts_for_discounts = counts.copy()
        if level <= len(last_places):
            last = last_places[level - 1]
            counts_for_discounts[last] = current.counts[last]
        discounts = _discounts(counts_for_discounts)
        if discounts is None:
            discounts = np.array([0.0, *FALLBACK_DISCOUNTS])
            warn(
                f"the text has too few {level}-grams for Kneser-Ney's discounts: "
                f"{', '.join(map(str, FALLBACK_DISCOUNTS))} are taken"
            )
        discount = discounts[np.minimum(counts, 3)]
        context = current.keys // (vocab_size + 1)
        contexts = 1
        lower = probability
        if level > 1:
            shorter = grams[level - 2]
            contexts = len(shorter.keys)
            lower = probability[shorter.places[current.last]]
        total = np.bincount(context, counts, contexts)
        held_back = np.bincount(context, discount, contexts)
        weight = np.divide(held_back, total, out=np.ones(contexts), where=total > 0)
        probability = (counts - discount) / total[context] + weight[context] * lower
        with np.errstate(divide="ignore"):
            log_probability = np.log(probability)
        if level == 1:
            log_probability[vocab_size] = 0.0  # the beginning of a sentence is never predicted
        else:
            log_backoff = np.log(np.maximum(weight, LEAST_WEIGHT))
            tables[-1] = tables[-1]._replace(log_backoff=log_backoff)
        tables.append(Table(current.keys, log_probability, np.zeros(len(counts))))
    return BackoffModel(vocab_size, end, tuple(tables))


def _grams_of_orders(
    stream: np.ndarray,
    vocab_size: int,
    order: int,
) -> list[_Grams]:
    """The n-grams of every order; none has the beginning of a sentence in a place but its first."""
    counts = np.bincount(stream, minlength=vocab_size + 1)
    grams = [_Grams(np.arange(vocab_size + 1), counts, np.zeros(0, np.int64), stream)]
    for _ in range(1, order):
        before = np.concatenate([[ABSENT], grams[-1].places[:-1]])
        positions = np.flatnonzero((before >= 0) & (stream != vocab_size))
        keys = before[positions] * (vocab_size + 1) + stream[positions]
        unique, first, inverse, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        places = np.full(len(stream), ABSENT)
        places[positions] = inverse
        grams.append(_Grams(unique, counts, positions[first], places))
    return grams


def _kenlm_last_places(
    stream: np.ndarray,
    grams: Sequence[_Grams],
    end: int | None,
) -> list[int]:
    """The n-gram of each lower order that KenLM reads last, for whose discounts occurrences count.

    KenLM numbers words as they come in the text, after `<s>` and `</s>`, and sorts n-grams by their
    last words, then by those before (`AdjustCounts::Run` of lm/builder/adjust_counts.cc).
    """
    vocab_size = len(grams[0].keys) - 1
    numbers = np.zeros(vocab_size + 1, int)
    numbers[stream[::-1]] = np.arange(len(stream), 0, -1)  # each token's first occurrence stays
    numbers[vocab_size] = ABSENT
    if end is not None:
        numbers[end] = 0
    positions = np.arange(len(stream))
    places = []
    for back, of_order in enumerate(grams[:-1]):
        before = numbers[stream[positions - back]]
        positions = positions[before == before.max()]
        place = int(of_order.places[positions[0]])
        if place == ABSENT:
            break  # nothing stands before the beginning of a sentence
        places.append(place)
    return places


def _adjusted_counts(
    grams: _Grams,
    longer: _Grams | None,
    level: int,
    vocab_size: int,
) -> np.ndarray:
    """Kneser-Ney's counts `[G]`: of distinct tokens before an n-gram, or of occurrences.

    Occurrences count in the highest order, and where an n-gram begins a sentence: nothing stands
    before it.
    """
    if longer is None:
        counts = grams.counts.copy()
    else:
        before = np.bincount(grams.places[longer.last], minlength=len(grams.keys))
        counts = np.where(before > 0, before, grams.counts)
    if level == 1:
        counts[vocab_size] = 0
    return counts


def _discounts(counts: np.ndarray) -> np.ndarray | None:
    """What is taken from counts of 0, 1, 2 and 3 or more (Chen and Goodman's equation 26).

    None where the counts of counts give no discounts between zero and the count.
    """
    of_counts = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not of_counts[1:4].all():
        return None
    y = of_counts[1] / (of_counts[1] + 2 * of_counts[2])
    steps = np.arange(4)
    discounts = np.zeros(4)
    discounts[1:] = steps[1:] - (steps[1:] + 1) * y * of_counts[2:5] / of_counts[1:4]
    if ((discounts < 0) | (discounts > steps)).any():
        return None
    return discounts
