"""The results of runs: those that differ in their seed alone together, and published numbers beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.report.page.contents import RunRecord

# Test perplexities of TensorFlow 1's tutorial (Zaremba et al. 2014), by preset.
PUBLISHED = {
    "small": ("published (small)", 115.5),
    "zaremba-small": ("published (small)", 115.5),
    "zaremba-medium": ("published (medium)", 83.5),
    "zaremba-large": ("published (large)", 78.5),
}
PENN_TREEBANK = "ptb"  # the corpus's name


@dataclass(frozen=True)
class Group:
    """Runs of one config, whose seeds differ; perplexities are (mean, standard deviation), nan where unknown."""

    runs: list[RunRecord]
    settings: dict[str, str]  # where the groups differ
    valid: tuple[float, float]
    test: tuple[float, float]


def groups(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs of one corpus by their configs, the lowest mean validation perplexity first."""
    together: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for run in runs:
        together.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    found = [
        Group(
            members,
            {name: members[0].settings.get(name, "") for name in differing},
            mean([run.valid_perplexity for run in members]),
            mean([run.test_perplexity for run in members]),
        )
        for members in together.values()
    ]
    return sorted(found, key=lambda group: (math.isnan(group.valid[0]), group.valid[0]))


def mean(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation) of those that are known; nan where there is none, or one alone."""
    known = [value for value in values if not math.isnan(value)]
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            float(np.mean(known)) if known else math.nan,
            float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
        )


def published(runs: Sequence[RunRecord]) -> list[tuple[str, float]]:
    """(name, test perplexity) of the published models that the runs' presets stand for, on Penn Treebank alone."""
    return list(
        dict.fromkeys(
            (f"{PUBLISHED[run.preset][0]} {PUBLISHED[run.preset][1]}", PUBLISHED[run.preset][1])
            for run in runs
            if run.corpus.get("name") == PENN_TREEBANK and run.preset in PUBLISHED
        )
    )
