"""What a report page shows, as plain data: made by `jaxlm/runs/report_data.py` and `jaxlm/sweeps/report_file.py`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.report.curve import Results, Row
from jaxlm.report.word_map import WordMap


@dataclass(frozen=True)
class RunRecord(Results):
    """A run without its parameters."""

    path: str
    preset: str
    seed: int
    fields: Sequence[tuple[str, str, str, str]]  # (section, field, value, unit) of the whole config
    corpus: Mapping[str, Any]  # name, sha256, vocab_sha256 and description
    sessions: Sequence[Mapping[str, Any]]  # command, versions, devices and platform of each process that trained it
    checkpoints: Sequence[tuple[int, int, float | None]]  # (windows trained, epoch, validation perplexity)
    timing: Sequence[Row]  # one an epoch

    @property
    def settings(self) -> dict[str, str]:
        """The config without its seed: runs of equal settings differ by chance alone."""
        return {name: value for _, name, value, _ in self.fields if name != "seed"}

    @property
    def unknown(self) -> dict[str, float]:
        """The share of `<unk>` among the tokens of each split that the metrics name."""
        rows = [*self.epochs[-1:], *self.tests[-1:]]
        return {name[8:]: value for row in rows for name, value in row.items() if name.startswith("unknown_")}


@dataclass(frozen=True)
class ScoredText:
    """Words with the surprisal of each, in bits; `<eos>` ends a line."""

    title: str
    words: Sequence[str]
    bits: Sequence[float]

    @property
    def known(self) -> list[float]:
        """The surprisals of the words that are scored."""
        return [bits for bits in self.bits if math.isfinite(bits)]


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
    status: str  # of its members; counted where theirs differ
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


def by_corpus(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """The runs, those of one corpus together."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(str(run.corpus.get("sha256")), []).append(run)
    return list(found.values())
