"""What a sweep comes to: its trials (points of the space), their members (runs, one a seed), and its files."""

import csv
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.presets import PRESETS, preset
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, finite, reason
from jaxlm.report.sweep_plots import parallel_plot, slice_plot

# damaged: no checkpoint is intact; a resumed sweep tries it again. failed: it cannot be trained, as with a batch that
# is too large for the corpus.
STATUSES = ("running", "done", "pruned", "diverged", "failed", "damaged")


@dataclass(frozen=True)
class MemberResult:
    """One run of a sweep: a trial's values with one seed.

    `valid_perplexities` are those of its epochs. `test_perplexity` is that of the last parameters, where it is done.
    `seconds` are those of its training, beside the other members of its group. `note` says why it ended early.
    """

    number: int  # the trial's
    values: dict[str, Any]
    seed: int
    status: str  # one of STATUSES
    valid_perplexities: tuple[float, ...] = ()
    test_perplexity: float | None = None
    seconds: float = 0.0
    run_dir: Path | None = None
    note: str | None = None

    @property
    def valid_perplexity(self) -> float:
        """That of the last epoch, whose parameters are kept and tested; nan before."""
        return self.valid_perplexities[-1] if self.valid_perplexities else math.nan

    def to_json(self) -> dict[str, Any]:
        """What a study keeps of it, beside its trial's number and values."""
        return {name: getattr(self, name) for name in _KEPT}

    @staticmethod
    def from_json(number: int, values: dict[str, Any], seed: int, run_dir: Path | None, tree: Any) -> "MemberResult":
        """The member whose `to_json` is `tree`. Raises JaxlmError where it is anything else."""

        def is_number(value: Any) -> bool:
            return type(value) is float or (type(value) is int and abs(value) < 2**53)

        found = MemberResult(number, values, seed, "running", run_dir=run_dir)
        if not isinstance(tree, Mapping) or not tree.keys() <= set(_KEPT):
            raise JaxlmError(f"trial {number} seed {seed} has a record that no sweep wrote")
        valid = tree.get("valid_perplexities", ())
        checks = {
            "status": tree.get("status", "running") in STATUSES,
            "valid_perplexities": isinstance(valid, list | tuple) and all(map(is_number, valid)),
            "test_perplexity": tree.get("test_perplexity") is None or is_number(tree["test_perplexity"]),
            "seconds": is_number(tree.get("seconds", found.seconds)),
            "note": isinstance(tree.get("note"), str | None),
        }
        if wrong := [name for name, right in checks.items() if not right]:
            raise JaxlmError(f"trial {number} seed {seed} has a {wrong[0]} that no sweep wrote")
        return MemberResult(**{**vars(found), **tree, "valid_perplexities": tuple(valid)})


_KEPT = ("status", "valid_perplexities", "test_perplexity", "seconds", "note")


@dataclass(frozen=True)
class Trial:
    """A point of the space and its members: mean and standard deviation over the seeds (nan for one seed)."""

    number: int
    values: dict[str, Any]
    members: list[MemberResult]
    valid: tuple[float, float]
    test: tuple[float, float]

    @property
    def done(self) -> bool:
        """Whether every member was trained to its end."""
        return all(member.status == "done" for member in self.members)

    @property
    def status(self) -> str:
        """The members' status, counted where they differ."""
        counts = {
            status: sum(member.status == status for member in self.members)
            for status in dict.fromkeys(member.status for member in self.members)
        }
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to. `pandas.DataFrame(sweep.rows())` is its table."""

    config: Config
    members: list[MemberResult] = field(default_factory=list)
    run_dir: Path | None = None
    stopped_by: int | None = None  # the signal's number

    @property
    def trials(self) -> list[Trial]:
        """Best first: by the mean of the last epoch's validation perplexity; those not done come after."""
        by_number: dict[int, list[MemberResult]] = {}
        for member in self.members:
            by_number.setdefault(member.number, []).append(member)
        found = [
            Trial(
                number,
                members[0].values,
                members,
                _mean([one.valid_perplexity for one in members]),
                _mean([one.test_perplexity for one in members if one.test_perplexity is not None]),
            )
            for number, members in by_number.items()
        ]
        return sorted(found, key=lambda trial: (not trial.done, math.isnan(trial.valid[0]), trial.valid[0]))

    @property
    def best(self) -> MemberResult | None:
        """The best seed of the trial with the lowest validation perplexity (the seeds' mean); None if none is done."""
        best = [trial for trial in self.trials if trial.done][:1]
        return min(best[0].members, key=lambda member: member.valid_perplexity) if best else None

    @property
    def damaged(self) -> list[MemberResult]:
        """Members without an intact checkpoint: a resumed sweep tries them again."""
        return [member for member in self.members if member.status == "damaged"]

    def command(self, member: MemberResult) -> str:
        """The command that trains one of the members alone."""
        config = self.config.replace(**{"seed": member.seed, **member.values})
        return shlex.join(["jaxlm", "train", *_flags(config)])

    def rows(self) -> list[dict[str, Any]]:
        """A flat mapping for each member: values, seed, status, perplexities, seconds, run directory."""
        most = max((len(member.valid_perplexities) for member in self.members), default=0)
        return [
            {
                "trial": member.number,
                **{
                    name: shown(value) if isinstance(value, tuple) else value
                    for name, value in member.values.items()
                    if name != "seed"
                },
                "seed": member.seed,
                "status": member.status,
                "valid_perplexity": member.valid_perplexity,
                "test_perplexity": member.test_perplexity,
                "seconds": round(member.seconds, 3),
                "run_dir": None if member.run_dir is None else str(member.run_dir),
                "note": member.note,
                **{
                    f"valid_perplexity_{epoch}": value
                    for epoch, value in enumerate(
                        [*member.valid_perplexities, *[None] * (most - len(member.valid_perplexities))], 1
                    )
                },
            }
            for member in self.members
        ]


def write(sweep: Sweep, path: Path) -> list[Path]:
    """Writes sweep.csv, sweep.json and, once two trials are done, the pictures into the sweep's directory.

    Returns:
        The paths of what was written.

    Raises:
        RunDirError: The directory cannot be written.
    """
    text = io.StringIO()
    rows = sweep.rows()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    best = sweep.best
    tree = {
        "config": json.loads(sweep.config.to_json()),
        "best": None if best is None else best.number,
        "command": None if best is None else sweep.command(best),
        "members": [{**asdict(member), "run_dir": str(member.run_dir)} for member in sweep.members],
    }
    try:
        with Folder.open(path) as folder:
            folder.write("sweep.csv", text.getvalue().encode(errors="surrogateescape"))
            folder.write("sweep.json", (json.dumps(finite(tree), indent=1) + "\n").encode())
    except OSError as error:
        raise RunDirError(
            f"{error.filename or path} cannot be written: {reason(error)}; the runs under it are whole"
        ) from None
    written = [path / "sweep.csv", path / "sweep.json"]
    done = [(trial.values, trial.valid[0]) for trial in sweep.trials if trial.done]
    if len(done) > 1:
        written += [slice_plot(done, path / "slices.png"), parallel_plot(done, path / "parallel.png")]
    return written


def shown(value: Any) -> str:
    """A value of a space as one writes it."""
    return (
        "x".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:.4g}"
        if isinstance(value, float)
        else _text(value)
    )


def _flags(config: Config) -> list[str]:
    """The preset's flag, and one for every kind and field that differs from it."""
    base = preset(config.preset if config.preset in PRESETS else "small")
    kinds = {slot: kind for slot, kind in config.kinds.items() if kind != base.kinds[slot]}
    words = ["--preset", base.preset, *(f"--{slot}={kind}" for slot, kind in kinds.items())]
    usual = {name: value for _, name, _, value in base.replace(**kinds).every_field()}
    for _, name, _, value in config.every_field():
        if value != usual[name]:
            flag = "--" + name.replace("_", "-")
            words.append(
                (flag if value else f"--no-{flag[2:]}")
                if isinstance(value, bool)
                else f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else _text(value)}"
            )
    return words


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        )
