"""What a report page shows, as plain data: made by `jaxlm/runs/reporting.py` and `jaxlm/sweeps/reporting.py`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]  # a line of the metrics or of the timing


@dataclass(frozen=True)
class RunRecord:
    """A run without its parameters.

    Attributes:
        name: the directory's name, unlike that of any other run of the page.
        path: the directory.
        preset, seed: the config's.
        fields: (section, field, value, unit) of the whole config.
        corpus: name, sha256, vocab_sha256 and description.
        sessions: the command, versions, devices and platform of each process that trained it.
        checkpoints: (windows trained, epoch, validation perplexity or None) of each.
        windows, epochs, tests: lines of its metrics.
        timing: lines of its timing, one an epoch.
    """

    name: str
    path: str
    preset: str
    seed: int
    fields: tuple[tuple[str, str, str, str], ...]
    corpus: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[tuple[int, int, float | None]]
    windows: Sequence[Row]
    epochs: Sequence[Row]
    tests: Sequence[Row]
    timing: Sequence[Row]

    @property
    def valid_perplexity(self) -> float:
        """That of the last epoch; nan where it has none."""
        return self.epochs[-1].get("valid_perplexity", math.nan) if self.epochs else math.nan

    @property
    def test_perplexity(self) -> float:
        """That of the last parameters; nan where they were not tested."""
        found = [
            row["test_perplexity"] for row in self.tests if row.get("checkpoint") != "best" and "test_perplexity" in row
        ]
        return found[-1] if found else math.nan

    @property
    def settings(self) -> dict[str, str]:
        """The config without its seed: runs that share it differ by chance alone."""
        return {name: value for _, name, value, _ in self.fields if name != "seed"}


@dataclass(frozen=True)
class WordMap:
    """The most frequent words where their vectors lie.

    Attributes:
        words: n words.
        places: (x, y) of each.
        clusters: the cluster of each, from 0.
        neighbors: of each, the nearest words of the whole vocabulary with their cosines.
        method: t-SNE or PCA.
    """

    words: Sequence[str]
    places: Sequence[tuple[float, float]]
    clusters: Sequence[int]
    neighbors: Sequence[Sequence[tuple[str, float]]]
    method: str


@dataclass(frozen=True)
class ScoredText:
    """Words with the surprisal of each, in bits; `<eos>` ends a line."""

    title: str
    words: Sequence[str]
    bits: Sequence[float]


@dataclass(frozen=True)
class ModelView:
    """What the parameters of one checkpoint say; `notes` names what could not be computed, and why."""

    run: str
    checkpoint: str
    word_map: WordMap | None = None
    texts: Sequence[ScoredText] = ()
    samples: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TrialRecord:
    """A point of a sweep's space; perplexities are (mean, standard deviation) over its seeds, nan where unknown."""

    number: int
    values: Mapping[str, Any]
    status: str
    seeds: int
    valid: tuple[float, float]
    test: tuple[float, float]
    valid_by_epoch: Sequence[float]  # of its first seed


@dataclass(frozen=True)
class SweepRecord:
    """A sweep: its trials, the best first, and the command that trains the best one alone."""

    name: str
    path: str
    corpus: Mapping[str, Any]
    trials: Sequence[TrialRecord]
    command: str | None = None
    model: ModelView | None = None


@dataclass(frozen=True)
class Contents:
    """A whole page. `models` holds at most one view a corpus."""

    runs: Sequence[RunRecord] = ()
    models: Sequence[ModelView] = ()
    sweeps: Sequence[SweepRecord] = field(default_factory=tuple)

    @property
    def by_corpus(self) -> list[list[RunRecord]]:
        """The runs, those of one corpus together."""
        found: dict[str, list[RunRecord]] = {}
        for run in self.runs:
            found.setdefault(str(run.corpus.get("sha256")), []).append(run)
        return list(found.values())
