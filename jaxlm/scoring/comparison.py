"""The better of two models on one text, by a bootstrap over its lines; of groups, over seeds too.

Letters: `L` lines of the text, `S` models of a group.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from jaxtyping import Float, Int

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import shown
from jaxlm.config.protocols import Plain, protocol_of
from jaxlm.data.windows import batch
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.reading import OneStream, check_converged
from jaxlm.scoring.token_scores import NATS_ALONE

BOOTSTRAPS = 10_000  # samples of the lines of a text, and of seeds, with replacement
AT_ONCE = 10  # of them in memory


class Comparison(NamedTuple):
    """Two models, or two groups of models, on one text, in mean nats a line.

    Attributes:
        text: The name of the text.
        lines: Lines L of the text.
        nats: Of the first model; of a group the mean of its models.
        other_nats: Of the other.
        difference: The other's less the first's: below zero the other is better.
        low_95: Lower end of the interval that holds the difference of 95% of the bootstrap samples.
        high_95: Its upper end.
        seeds_paired: Whether each model was drawn with the one of equal seed in the other group.
    """

    text: str
    lines: int
    nats: float
    other_nats: float
    difference: float
    low_95: float
    high_95: float
    seeds_paired: bool


class _Lines(NamedTuple):
    """A text as a model reads it: its name, its lines without white space, the nats of each [L]."""

    name: str
    texts: list[str]
    nats: np.ndarray


def compare(
    model: LanguageModel | Sequence[LanguageModel],
    other: LanguageModel | Sequence[LanguageModel],
    split: str = "test",
    *,
    text: str | Path | None = None,
    protocol: str | Plain | None = None,
) -> Comparison:
    """Compares two models, or two groups of seeds, on one text by a paired bootstrap.

    The text is read as one stream from `<eos>`. Tokens may differ, since nats of whole lines are
    compared. Lines must be equal except for white space and composed letters
    (Koehn 2004, aclanthology.org/W04-3250).

    Every bootstrap sample draws L lines, the same for all models. Of a group of S models it draws
    S - 1, which makes the variance of the mean over seeds unbiased (Rao and Wu 1988). Models of
    equal seeds are drawn together where both groups have the same seeds, each once; else each
    group is drawn by itself.

    Args:
        model: The first model, as `load` returns it, or a group of them, which differ in the seed.
        other: The second model or group.
        split: train, valid or test, of each model's own corpus.
        text: A file of text in place of a split.
        protocol: How each model reads the text; plain by default.

    Returns:
        Mean nats a line of each, their difference, and its 95% interval.

    Raises:
        DataError: The texts differ, cannot be read, or have fewer than two lines.
        Diverged: Dynamic evaluation learnt at too high a rate.
    """
    first_group = sorted(_group(model), key=_seed)
    other_group = sorted(_group(other), key=_seed)
    seeds = [_seed(lm) for lm in first_group]
    paired = seeds == [_seed(lm) for lm in other_group] and len(set(seeds)) == len(seeds)
    protocol = protocol_of(protocol)
    models = [*first_group, *other_group]
    texts = [_lines_of(lm, protocol, split, text) for lm in models]
    for lm, lines in zip(models, texts, strict=True):
        _check_one_text(models[0], texts[0], lm, lines)
    nats_of_all = np.stack([lines.nats for lines in texts])
    nats, other_nats = np.split(nats_of_all, [len(first_group)])
    low, high = np.quantile(_differences(nats, other_nats, paired), (0.025, 0.975))
    means = nats.mean(), other_nats.mean()
    difference = (other_nats.mean(0) - nats.mean(0)).mean()
    numbers = map(float, (*means, difference, low, high))
    return Comparison(texts[0].name, nats.shape[1], *numbers, seeds_paired=paired)


def _differences(
    nats: Float[np.ndarray, "S L"],
    other_nats: Float[np.ndarray, "S2 L"],
    paired: bool,
) -> Float[np.ndarray, " samples"]:
    """The difference between two groups, in mean nats a line, in each bootstrap sample."""
    line_generator = np.random.default_rng(0)
    seed_generator = np.random.default_rng(1)
    L = nats.shape[1]

    def drawn_seeds(models: int) -> Int[np.ndarray, "samples drawn"]:
        return seed_generator.integers(models, size=(AT_ONCE, max(models - 1, 1)))

    differences = []
    for _ in range(BOOTSTRAPS // AT_ONCE):
        seeds = drawn_seeds(len(nats))
        other_seeds = seeds if paired else drawn_seeds(len(other_nats))
        difference = other_nats[other_seeds].mean(1) - nats[seeds].mean(1)
        lines = line_generator.integers(L, size=(AT_ONCE, L))
        differences.append(np.take_along_axis(difference, lines, 1).mean(1))
    return np.concatenate(differences)


def _group(models: LanguageModel | Sequence[LanguageModel]) -> list[LanguageModel]:
    """The models of a group. Raises JaxlmError where there are none, or one is no model."""
    group: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    for lm in group:
        if not isinstance(lm, LanguageModel):
            raise JaxlmError(
                f"compare takes models, as jaxlm.load returns them; one is {shown(lm)}"
            )
    if not group:
        raise JaxlmError("compare takes groups of at least one model; one group is empty")
    return group


def _seed(lm: LanguageModel) -> int:
    return lm.config.train.seed


def _check_one_text(
    model: LanguageModel,
    lines: _Lines,
    other: LanguageModel,
    other_lines: _Lines,
) -> None:
    """Raises DataError where two models do not read the same lines."""
    pairs = zip_longest(lines.texts, other_lines.texts)
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


def _lines_of(
    lm: LanguageModel,
    protocol: Plain,
    split: str,
    text: str | Path | None,
) -> _Lines:
    """The text as a model reads it; the nats of a line include its end."""
    name, ids, *_ = lm.read(split, text)
    ids = np.append(lm.vocab.eos, batch(ids, 1)[:, 0])
    starts = np.flatnonzero(ids[:-1] == lm.vocab.newline_id)
    if len(starts) < 2:
        raise DataError(
            f"expected at least 2 lines to draw from, found {len(starts)} in {name}: "
            "add lines to it"
        )
    nats = OneStream(lm.reader_of(protocol), NATS_ALONE)([ids]).nats.astype(np.float64)
    check_converged(protocol, name, nats.sum(), len(nats))
    lines = np.split(ids[1:], starts[1:])
    texts = [normalize("NFC", lm.vocab.decode_text(line)) for line in lines]
    return _Lines(name, ["".join(text.split()) for text in texts], np.add.reduceat(nats, starts))
