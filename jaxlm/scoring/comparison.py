"""The better of two models on one text, by a bootstrap over its lines."""

from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from jaxlm.config.protocols import Plain, protocol_of
from jaxlm.data.windows import batch
from jaxlm.errors import DataError, JaxlmError
from jaxlm.fields import shown
from jaxlm.scoring.evaluation import check_converged
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.reading import OneStream
from jaxlm.scoring.token_scores import NATS_ALONE

BOOTSTRAPS = 10_000  # samples of the lines of a text, with replacement


class Comparison(NamedTuple):
    """Two models on one text, in mean nats a line.

    Attributes:
        text: The name of the text.
        lines: Lines L of the text.
        nats: Of the first model.
        other_nats: Of the other.
        difference: The other's less the first's: below zero the other is better.
        low_95: Lower end of the interval that holds the difference of 95% of the bootstrap samples.
        high_95: Its upper end.
    """

    text: str
    lines: int
    nats: float
    other_nats: float
    difference: float
    low_95: float
    high_95: float


class _Lines(NamedTuple):
    """A text as a model reads it: its name, its lines without white space, the nats of each [L]."""

    name: str
    texts: list[str]
    nats: np.ndarray


def compare(
    model: LanguageModel,
    other: LanguageModel,
    split: str = "test",
    *,
    text: str | Path | None = None,
    data_dir: str | Path | None = None,
    protocol: str | Plain | None = None,
) -> Comparison:
    """Compares two models on one text by a paired bootstrap over its lines.

    The text is read as one stream from `<eos>`. Tokens may differ, since nats of whole lines are
    compared. Lines must be equal except for white space and composed letters
    (Koehn 2004, aclanthology.org/W04-3250).

    Args:
        model: The first model, as `load` returns it.
        other: The second.
        split: train, valid or test, of each model's own corpus.
        text: A file of text in place of a split.
        data_dir: Where to look for Penn Treebank first.
        protocol: How each model reads the text; plain by default.

    Returns:
        Mean nats a line of each, their difference, and its 95% interval.

    Raises:
        DataError: The two texts differ, cannot be read, or have fewer than two lines.
        Diverged: Dynamic evaluation learnt at too high a rate.
    """
    for lm in (model, other):
        if not isinstance(lm, LanguageModel):
            given = shown(lm)
            raise JaxlmError(f"compare takes models, as jaxlm.load returns them; one is {given}")
    how = protocol_of(protocol)
    first, second = (_line_nats(lm, how, split, text, data_dir) for lm in (model, other))
    pairs = zip_longest(first.texts, second.texts)
    for number, (line, other_line) in enumerate(pairs, 1):
        if line != other_line:
            case = ""
            if model.config.data.lowercase != other.config.data.lowercase:
                case = " in lower case, as one of them reads it,"
            raise DataError(
                f"the two runs do not read one text: line {number:,} is {line!r:.60} to the first "
                f"and {other_line!r:.60} to the other; compare runs on a text{case} that both read "
                "alike (--lines, numbers and marks too) and that leaves the same words unknown to "
                "both"
            )
    difference = second.nats - first.nats
    rng = np.random.default_rng(0)
    L = len(difference)
    means = [difference[rng.integers(L, size=L)].mean() for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(means, (0.025, 0.975))
    numbers = first.nats.mean(), second.nats.mean(), difference.mean(), low, high
    return Comparison(first.name, L, *map(float, numbers))


def _line_nats(
    lm: LanguageModel,
    protocol: Plain,
    split: str,
    text: str | Path | None,
    data_dir: str | Path | None,
) -> _Lines:
    """The text as a model reads it; the nats of a line include its end."""
    name, ids, *_ = lm.read(split, text=text, data_dir=data_dir)
    ids = np.append(lm.vocab.eos, batch(ids, 1)[:, 0])
    starts = np.flatnonzero(ids[:-1] == lm.vocab.newline_id)
    if len(starts) < 2:
        found = f"found {len(starts)} in {name}"
        raise DataError(f"expected at least 2 lines to draw from, {found}: add lines to it")
    reader = lm.reader_of(protocol, data_dir=data_dir)
    nats = OneStream(reader, NATS_ALONE)([ids]).nats.astype(np.float64)
    check_converged(protocol, name, nats.sum(), len(nats))
    lines = np.split(ids[1:], starts[1:])
    texts = [normalize("NFC", lm.vocab.decode_text(line)) for line in lines]
    return _Lines(name, ["".join(text.split()) for text in texts], np.add.reduceat(nats, starts))
