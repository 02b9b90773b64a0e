"""The results of a sweep: its trials (points of the space), their members (runs, one a seed), and its files."""

import csv
import fcntl
import io
import json
import math
import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from jaxlm.config.config import KINDS, PRESETS, Config, preset, taken_over
from jaxlm.errors import RunDirError
from jaxlm.files import Folder, explained
from jaxlm.hashed_json import finite, from_hashed_json, to_hashed_json
from jaxlm.report.sweep_plots import TrialRecord, parallel_plot, slice_plot, value_text
from jaxlm.terminal import flag_text
from jaxlm.units import mean_and_deviation

RESULTS = "sweep.json"
MOST_BYTES = 256 << 20  # of sweep.json


@dataclass(frozen=True)
class MemberResult:
    """One run of a sweep: a trial's values with one seed.

    Its status is running, done, pruned, diverged, failed (it cannot be trained, as with a batch too large for the
    corpus) or damaged (no checkpoint is intact; a resumed sweep tries again).
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
        numbers = *self.valid_perplexities, self.seconds, self.test_perplexity or 0.0
        if not (
            type(self.number) is type(self.seed) is int
            and all(isinstance(one, int | float) for one in numbers)
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
class Trial(TrialRecord):
    """A point of the space and its members, one a seed."""

    members: list[MemberResult]

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

    @property
    def trials(self) -> list[Trial]:
        """Best first: by the mean of the last epoch's validation perplexity; unfinished trials last."""
        found = []
        for number, group in groupby(self.members, lambda member: member.number):
            members = [*group]
            first = members[0]
            counts = Counter(one.status for one in members)
            status = (
                first.status
                if len(counts) == 1
                else ", ".join(f"{n} {one}" for one, n in counts.items())
            )
            valid = mean_and_deviation([one.valid_perplexity for one in members])
            test = mean_and_deviation([one.test_perplexity or math.nan for one in members])
            rest = len(members), valid, test, first.valid_perplexities, members
            found.append(Trial(number, first.values, status, *rest))
        return sorted(
            found, key=lambda trial: (not trial.done, math.isnan(trial.valid[0]), trial.valid[0])
        )

    @property
    def best(self) -> MemberResult | None:
        """The best seed of the trial with the lowest mean validation perplexity; None if no trial is done."""
        best = [trial for trial in self.trials if trial.done][:1]
        if best:
            return min(best[0].members, key=lambda member: member.valid_perplexity)
        return None

    @property
    def damaged(self) -> list[MemberResult]:
        """Members without an intact checkpoint: a resumed sweep tries them again."""
        return [member for member in self.members if member.status == "damaged"]

    def command(self, member: MemberResult) -> str:
        """The command that trains one of the members alone: the preset's flag, and one for each difference from it."""
        config = self.config.replace(**{"seed": member.seed, **member.values})
        base = preset(config.preset if config.preset in PRESETS else "small")
        kinds = {slot: kind for slot, kind in config.kinds.items() if kind != base.kinds[slot]}
        words = ["--preset", base.preset, *(f"--{slot}={kind}" for slot, kind in kinds.items())]
        words += [f"--data-dir={self.data_dir}"] * bool(self.data_dir)
        usual = {name: value for _, name, _, value in base.every_field()}
        for slot, kind in kinds.items():  # (the preset with these kinds alone may be refused)
            usual |= vars(
                KINDS[slot][kind](**taken_over(getattr(base, slot), KINDS[slot][kind])[0])
            )
        changed = {
            name.replace("_", "-"): value
            for _, name, _, value in config.every_field()
            if value != usual[name]
        }
        for name, value in changed.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                text = (
                    ",".join(map(str, value))
                    if isinstance(value, tuple)
                    else "none"
                    if value is None
                    else value
                )
                words.append(f"--{name}={text}")
        return shlex.join(["jaxlm", "train", *words])

    def rows(self) -> list[dict[str, Any]]:
        """A flat mapping for each member: values, seed, status, perplexities, seconds, run directory."""
        rows = []
        epochs = max((len(member.valid_perplexities) for member in self.members), default=0)
        names = (
            "seed",
            "status",
            "valid_perplexity",
            "test_perplexity",
            "seconds",
            "run_dir",
            "note",
        )
        for member in self.members:
            values = {
                name: value_text(one) if isinstance(one, tuple) else one
                for name, one in member.values.items()
            }
            results = {
                name: str(one) if isinstance(one := getattr(member, name), Path) else one
                for name in names
            }
            by_epoch = zip_longest(range(1, epochs + 1), member.valid_perplexities)
            each = {f"valid_perplexity_{epoch}": value for epoch, value in by_epoch}
            rows.append({"trial": member.number, **values, **results, **each})
        return rows


def write(sweep: Sweep, path: Path, corpus: dict[str, str]) -> list[Path]:
    """Writes sweep.csv, sweep.json and, once two trials are done, the pictures; their paths. Raises RunDirError."""
    text = io.StringIO()
    rows = sweep.rows()
    best = sweep.best
    table = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    members = [{**asdict(member), "run_dir": str(member.run_dir)} for member in sweep.members]
    tree: dict[str, Any] = {
        "config": json.loads(sweep.config.to_json()),
        "corpus": corpus,
        "data_dir": sweep.data_dir,
    }
    tree |= {
        "best": best and best.number,
        "command": best and sweep.command(best),
        "members": members,
    }
    written = [path / "sweep.csv", path / RESULTS]
    done = [trial for trial in sweep.trials if trial.done]
    writing = explained(RunDirError, f"{path} cannot be written", "the runs under it are whole")
    with writing, Folder.open(path) as folder, folder.append(".claim") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)  # of many processes one writes at a time
        folder.clean()
        folder.write("sweep.csv", text.getvalue().encode(errors="surrogateescape"))
        folder.write(RESULTS, to_hashed_json(finite(tree)).encode())
        if len(done) > 1:
            written += [
                slice_plot(done, path / "slices.png"),
                parallel_plot(done, path / "parallel.png"),
            ]
    return written


def read_sweep(path: Path) -> tuple[Sweep, dict[str, str]]:
    """A sweep and its corpus, from its sweep.json. Raises RunDirError if the file is missing or damaged."""
    remedy = (
        f"`jaxlm sweep {flag_text('--run-dir', path)} --resume` writes it at the end of the sweep"
    )
    with (
        explained(RunDirError, f"{path / RESULTS} cannot be read", remedy),
        Folder.open(path) as folder,
    ):
        tree = from_hashed_json(folder.read(RESULTS, MOST_BYTES))
        try:
            for one in tree["members"]:  # (JSON has no tuples, and null in place of nan)
                one["values"] = {
                    name: tuple(to) if isinstance(to, list) else to
                    for name, to in one["values"].items()
                }
                known = (
                    math.nan if value is None else value for value in one["valid_perplexities"]
                )
                one |= {"valid_perplexities": tuple(known), "run_dir": None}
            config = Config.from_json(json.dumps(tree["config"]))
            members = [MemberResult(**one) for one in tree["members"]]
            return Sweep(config, members, path, data_dir=tree.get("data_dir")), tree["corpus"]
        except (KeyError, TypeError, AttributeError):
            raise ValueError("it is not what this version of jaxlm writes") from None
