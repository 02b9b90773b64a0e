"""When words are learnt: a model's age of acquisition beside children's.

Chang and Bergen 2022 (doi.org/10.1162/tacl_a_00444), as BabyLM's evaluation pipeline has it: a
sigmoid is fitted to a word's surprisal over the training, another to the share of children who know
the word over their age. The word is learnt where the curve is halfway.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from jaxlm.base.errors import DataError
from jaxlm.data.text import read_string
from jaxlm.scoring.stimuli import json_object, read_table

MONTHS = range(16, 31)
_CHANCE = math.log2(300_000)  # surprisal at random, in the pipeline's numbers
_MOST_BYTES = 1 << 28
_MOST_TRIES = 1000  # of a fit
_FEWEST = 3  # points of a curve, and words of a correlation


# (words that the model had seen, surprisal in nats) of a word, checkpoint after checkpoint.
Curve = list[tuple[int, float]]


def read_contexts(path: Path) -> list[tuple[str, str]]:
    """(word, the text before it) of a JSON file {word: [{"context": text}, ...]}.

    Words of one letter are left out, as in the pipeline. Raises DataError.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path} is larger than {_MOST_BYTES:,} bytes: expected cdi_childes.json")
    pairs = []
    for word, contexts in json_object(read_string(path), str(path)).items():
        for context in contexts if isinstance(contexts, list) else [None]:
            text = context.get("context") if isinstance(context, dict) else None
            if not isinstance(text, str) or not word.strip():
                value = json.dumps(contexts)
                raise DataError(f"{path}: expected contexts of {word!r:.40}, found {value:.80}")
            if len(word) > 1:
                pairs.append((word.strip(), text))
    return pairs


def read_children(path: Path) -> dict[str, float]:
    """{word: the month in which half of the children know it}, without words that have none.

    Args:
        path: A CSV file with a column `word` and a column of shares for each month, 16 to 30.

    Raises:
        DataError: It is malformed.
    """
    table = read_table(path, "word")
    months = [month for month in MONTHS if str(month) in table.columns]
    if not months:
        raise DataError(f"{path} has no column of a month, such as 16: expected cdi_human.csv")
    shares = np.stack([table.decimals(str(month)) for month in months], 1)
    ages: dict[str, float | None] = {}
    for word, word_shares in zip(table.sentences, shares, strict=True):
        ages.setdefault(word, _age(np.array(months), word_shares))
    return {word: age for word, age in ages.items() if age is not None}


def curve_fitness(curves: Mapping[str, Curve], ages: Mapping[str, float]) -> float:
    """Pearson's correlation of the ages at which a model and children learn words.

    Args:
        curves: By word.
        ages: Of children, as `read_children` returns them.

    Returns:
        The correlation; 0 where fewer than three words have both ages.
    """
    pairs = []
    for word, curve in curves.items():
        learnt = _learnt(curve) if word in ages else None
        if learnt is not None:
            pairs.append((learnt, ages[word]))
    if len(pairs) < _FEWEST:
        return 0.0
    return float(np.corrcoef(np.transpose(pairs))[0, 1])


def _sigmoid(
    x: np.ndarray,
    height: float,
    slope: float,
    middle: float,
    floor: float,
) -> np.ndarray:
    return height / (1 + np.exp(-slope * (x - middle))) + floor


def _crossing(
    x: np.ndarray,
    y: np.ndarray,
    level: float,
    guess: Sequence[float],
    **bounds: Any,
) -> float | None:
    """Where a sigmoid fitted to points reaches a level; None where it does not among them."""
    if len(x) < _FEWEST:
        return None
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # A flat curve is told below.
            curve, _ = curve_fit(_sigmoid, x, y, p0=guess, maxfev=_MOST_TRIES, **bounds)
    except (RuntimeError, ValueError, TypeError):  # No fit; points that are no numbers.
        return None
    height, slope, middle, floor = curve
    if slope <= 0 or height <= 0 or not floor < level < floor + height:
        return None
    place = float(middle - np.log(height / (level - floor) - 1) / slope)
    return place if x[0] <= place <= x[-1] else None


def _age(months: np.ndarray, shares: np.ndarray) -> float | None:
    """The month in which half of the children know a word."""
    has_share = np.isfinite(shares)
    months = months[has_share]
    if not len(months):
        return None
    bounds = ((0, 0, months[0], -0.5), (2.0, 1.0, months[-1], 0.5))
    guess = (1.0, 0.1, months.mean(), 0.0)
    return _crossing(months, shares[has_share], 0.5, guess, bounds=bounds)


def _learnt(curve: Curve) -> float | None:
    """log10 of the words that the model had seen when it was halfway from chance to its best."""
    words, surprisals = np.array(curve).T
    finite = np.isfinite(surprisals)
    if not finite.any():
        return None
    x = np.log10(words[finite] + 1)
    scores = -surprisals[finite]
    guess = (np.ptp(scores), 1.0, x.mean(), scores.min())
    return _crossing(x, scores, -_CHANCE - 0.5 * (-_CHANCE - scores.max()), guess)
