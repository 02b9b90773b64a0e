"""What a sweep reports, as plain values: its trials (points) and their members (runs)."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from jaxlm.base.units import mean_and_deviation, measure_name, measured
from jaxlm.config.config import PRESETS, Config, preset
from jaxlm.config.settings import TOKEN_FIELDS

# The columns of a sweep's table that stand between the space's fields and the epochs.
COLUMNS = (
    "seed",
    "status",
    "valid_perplexity",
    "test_perplexity",
    "seconds",
    "run_dir",
    "note",
)


@dataclass(frozen=True)
class MemberResult:
    """One run of a sweep: a trial's values with one seed.

    Its status is running, done, pruned, diverged, failed (it cannot be trained, as with a batch too
    large for the corpus) or damaged (no checkpoint is intact; a resumed sweep tries again).
    """

    number: int  # the trial's
    values: dict[str, Any]  # the trial's, of the fields of the space
    seed: int
    status: str = "running"
    valid_perplexities: tuple[float, ...] = ()  # of each finished epoch
    test_perplexity: float | None = None  # of the last parameters, once the member is done
    seconds: float = 0.0  # of training, beside the other members of the group
    run_dir: Path | None = None  # if it is kept on this machine
    note: str | None = None  # why the member ended early

    def __post_init__(self) -> None:
        numbers = (*self.valid_perplexities, self.seconds, self.test_perplexity or 0.0)
        if not (
            type(self.number) is type(self.seed) is int
            and all(isinstance(number, int | float) for number in numbers)
        ):
            raise ValueError(
                f"trial {self.number!r} seed {self.seed!r} is not what a sweep records"
            )

    @property
    def valid_perplexity(self) -> float:
        """Of the last epoch, whose parameters are kept and tested; nan before."""
        if self.valid_perplexities:
            return self.valid_perplexities[-1]
        return math.nan


@dataclass(frozen=True)
class Trial:
    """A point of a sweep's space and its members, one a seed.

    Results are (mean, standard deviation) over the members, in the measure of their tokens
    (`units.measure_name`), nan where unknown.
    """

    number: int
    values: Mapping[str, Any]
    status: str  # of its members; counted where theirs differ
    seeds: int
    valid: tuple[float, float]
    test: tuple[float, float]
    valid_by_epoch: Sequence[float]  # of its first seed
    members: Sequence[MemberResult] = ()
    measure: str = "perplexity"

    @property
    def done(self) -> bool:
        """Whether every member was trained to its end."""
        return self.status == "done"


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep. `pandas.DataFrame(sweep.rows())` is its table."""

    config: Config
    members: list[MemberResult] = field(default_factory=list)
    run_dir: Path | None = None
    stopped_by: int | None = None  # the signal's number
    data_dir: str | None = None  # the folder of Penn Treebank's files, where it was given
    importances: dict[str, float] = field(default_factory=dict)  # each field's, if they are known

    @property
    def tokens(self) -> str:
        """The tokens whose measure results have: characters where the trials' tokens differ."""
        if self.members and self.members[0].values.keys() & TOKEN_FIELDS:
            return "characters"
        return self.config.data.tokens

    @property
    def trials(self) -> list[Trial]:
        """Best first, by the mean of the last validation; unfinished ones last."""
        trials = []
        for number, group in groupby(self.members, lambda member: member.number):
            members = list(group)
            first = members[0]
            counts = Counter(member.status for member in members)
            status = first.status
            if len(counts) > 1:
                status = ", ".join(f"{count} {status}" for status, count in counts.items())
            trials.append(
                Trial(
                    number,
                    first.values,
                    status,
                    seeds=len(members),
                    valid=mean_and_deviation(
                        self._measured(member.valid_perplexity for member in members)
                    ),
                    test=mean_and_deviation(
                        self._measured(member.test_perplexity for member in members)
                    ),
                    valid_by_epoch=self._measured(first.valid_perplexities),
                    members=members,
                    measure=measure_name(self.tokens),
                )
            )
        return sorted(
            trials, key=lambda trial: (not trial.done, math.isnan(trial.valid[0]), trial.valid[0])
        )

    def _measured(self, perplexities: Iterable[float | None]) -> list[float]:
        """Perplexities in the measure of the sweep's tokens, nan for None."""
        return [
            math.nan if perplexity is None else measured(perplexity, self.tokens)
            for perplexity in perplexities
        ]

    @property
    def best(self) -> MemberResult | None:
        """The best seed of the best trial that is done; None before one is."""
        for trial in self.trials:
            if trial.done:
                return min(trial.members, key=lambda member: member.valid_perplexity)
        return None

    @property
    def damaged(self) -> list[MemberResult]:
        """Members without an intact checkpoint: a resumed sweep tries them again."""
        return [member for member in self.members if member.status == "damaged"]

    def command(self, member: MemberResult) -> str:
        """The command that trains a member alone.

        Args:
            member: One of the sweep's.

        Returns:
            `jaxlm train` with the preset's flag, and one for each difference from the preset.
        """
        config = self.config.replace(**{"seed": member.seed, **member.values})
        base = preset(config.preset if config.preset in PRESETS else "small")
        words = ["jaxlm", "train", "--preset", base.preset]
        if self.data_dir:
            words.append(f"--data-dir={self.data_dir}")
        for name, value in config.changes_from(base).items():
            words.append(_flag(name.replace("_", "-"), value))
        return shlex.join(words)

    def rows(self) -> list[dict[str, Any]]:
        """A flat mapping for each member: trial, values, `COLUMNS`, validation of each epoch."""
        epochs = max((len(member.valid_perplexities) for member in self.members), default=0)
        rows = []
        for member in self.members:
            row: dict[str, Any] = {"trial": member.number}
            for name, value in member.values.items():
                row[name] = value_text(value) if isinstance(value, tuple) else value
            for name in COLUMNS:
                value = getattr(member, name)
                row[name] = str(value) if isinstance(value, Path) else value
            for epoch, value in zip_longest(range(1, epochs + 1), member.valid_perplexities):
                row[f"valid_perplexity_{epoch}"] = value
            rows.append(row)
        return rows


def value_text(value: Any) -> str:
    """A field's value as `--set` takes it.

    >>> value_text((16, 8)), value_text(None), value_text(0.5)
    ('16x8', 'none', '0.5')
    """
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return "none"
    return str(value)


def _flag(name: str, value: Any) -> str:
    """A field's flag of `jaxlm train`."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return f"--{name}={','.join(map(str, value))}"
    return f"--{name}={value_text(value)}"
