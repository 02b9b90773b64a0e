"""Which of two models predicts a text better: a paired bootstrap over lines (Koehn 2004, aclanthology.org/W04-3250)."""

from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.config.protocols import Plain, protocol_of
from jaxlm.errors import DataError
from jaxlm.scoring.evaluation import TrainedModel, nats_by_block

SAMPLES = 10_000  # of the lines, with replacement


class Comparison(NamedTuple):
    """Two models on one text, in mean nats a line.

    Attributes:
        nats, other_nats: of the first model and of the other.
        difference: the other's less the first's, so that below zero the other is better.
        low_95, high_95: the interval that holds the difference of 95% of the bootstrap's samples.
    """

    text: str
    lines: int
    nats: float
    other_nats: float
    difference: float
    low_95: float
    high_95: float


def compare(
    model: TrainedModel,
    other: TrainedModel,
    split: str = "test",
    *,
    text: str | Path | None = None,
    data_dir: str | Path | None = None,
    protocol: str | Plain | None = None,
) -> Comparison:
    """The difference between two models on a split of their corpora or on a file, read as one stream from `<eos>`.

    Tokens may differ, since nats of a whole line are compared. Lines must be equal except for white space.

    Args:
        model, other: as `load` returns them.
        split: of each model's own corpus.
        text: a file, in place of a split.
        data_dir, protocol: as `LanguageModel.evaluate` takes them.

    Raises:
        DataError: the texts differ, or cannot be read.
    """

    def line_nats(lm: TrainedModel) -> tuple[str, list[str], np.ndarray]:
        """A text's name, its lines without white space, and the nats of each line [L], its end included."""
        name, ids, *_ = lm.read(split, text=text, data_dir=data_dir)
        if not len(ids):
            raise DataError(f"{name} is empty: expected at least one word")
        ids = np.append(lm.vocab.eos, ids)
        nats = [*nats_by_block(lm.reader_of(protocol_of(protocol), data_dir=data_dir), ids)]
        starts = np.flatnonzero(ids[:-1] == lm.vocab.eos)
        lines = ["".join(lm.vocab.decode_text(line).split()) for line in np.split(ids[1:], starts[1:])]
        return name, lines, np.add.reduceat(np.concatenate(nats).astype(np.float64), starts)

    (name, lines, nats), (_, others, other_nats) = line_nats(model), line_nats(other)
    for number, (line, its) in enumerate(zip_longest(lines, others), 1):
        if line != its:
            raise DataError(
                f"the two runs do not read one text: line {number:,} is {line!r:.60} to the first and {its!r:.60} to "
                f"the other; compare runs on a text that leaves the same words unknown to both"
            )
    difference, rng, L = other_nats - nats, np.random.default_rng(0), len(nats)
    means = [difference[rng.integers(L, size=L)].mean() for _ in range(SAMPLES)]
    interval = np.quantile(means, (0.025, 0.975))
    return Comparison(name, L, *map(float, (nats.mean(), other_nats.mean(), difference.mean(), *interval)))
