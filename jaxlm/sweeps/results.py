"""What a sweep comes to: its trials, their mean over the seeds, and how one sees them (tables, files, pictures)."""

import csv
import io
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxlm.config.config import PRESETS, Config, every_field, preset
from jaxlm.report.sweep_plots import parallel_plot, slice_plot
from jaxlm.runs import checkpoint


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: a point of the space with one seed."""

    number: int  # the point's
    values: dict[str, Any]
    seed: int
    status: str  # running, done, pruned, diverged or failed
    valid_perplexities: tuple[float, ...] = ()  # of its epochs
    test_perplexity: float | None = None  # with the last parameters; only of those done
    seconds: float = 0.0  # in which it was trained, beside the other members of its group
    run_dir: Path | None = None
    note: str | None = None  # why it ended early

    @property
    def valid_perplexity(self) -> float:
        """That of the last epoch, whose parameters are kept and tested; nan before."""
        return self.valid_perplexities[-1] if self.valid_perplexities else math.nan


@dataclass(frozen=True)
class PointResult:
    """The trials of one point, over its seeds: mean and standard deviation (nan for one seed)."""

    number: int
    values: dict[str, Any]
    trials: list[Trial]
    valid: tuple[float, float]
    test: tuple[float, float]

    @property
    def done(self) -> bool:
        return all(trial.status == "done" for trial in self.trials)

    @property
    def status(self) -> str:
        counts = {status: sum(trial.status == status for trial in self.trials)
                  for status in dict.fromkeys(trial.status for trial in self.trials)}
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to. `pandas.DataFrame(sweep.rows())` is its table."""

    config: Config
    trials: list[Trial] = field(default_factory=list)
    run_dir: Path | None = None
    stopped_by: int | None = None  # the signal's number

    @property
    def points(self) -> list[PointResult]:
        """Best first: by the mean of the last epoch's validation perplexity; those not done come after."""
        by_number: dict[int, list[Trial]] = {}
        for trial in self.trials:
            by_number.setdefault(trial.number, []).append(trial)
        found = [PointResult(number, trials[0].values, trials, _mean([t.valid_perplexity for t in trials]),
                             _mean([t.test_perplexity for t in trials if t.test_perplexity is not None]))
                 for number, trials in by_number.items()]
        return sorted(found, key=lambda point: (not point.done, math.isnan(point.valid[0]), point.valid[0]))

    @property
    def best(self) -> Trial | None:
        """The best seed of the point with the lowest validation perplexity (the seeds' mean); None if none is done."""
        best = [point for point in self.points if point.done][:1]
        return min(best[0].trials, key=lambda trial: trial.valid_perplexity) if best else None

    def command(self, trial: Trial) -> str:
        """The command that trains one of the trials alone."""
        config = self.config.replace(**{"seed": trial.seed, **trial.values})
        base = preset(config.preset if config.preset in PRESETS else "small")
        words = ["jaxlm", "train", "--preset", base.preset]
        for section, item in every_field():
            value = getattr(getattr(config, section), item.name)
            if value != getattr(getattr(base, section), item.name):
                flag = "--" + item.name.replace("_", "-")
                words += ([flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else
                          [f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}"])
        return shlex.join(words)

    def rows(self) -> list[dict[str, Any]]:
        """A flat mapping for each trial: values, seed, status, perplexities, seconds, run directory."""
        most = max((len(trial.valid_perplexities) for trial in self.trials), default=0)
        return [{"trial": trial.number, **{name: shown(value) if isinstance(value, tuple) else value
                                           for name, value in trial.values.items() if name != "seed"},
                 "seed": trial.seed, "status": trial.status, "valid_perplexity": trial.valid_perplexity,
                 "test_perplexity": trial.test_perplexity, "seconds": round(trial.seconds, 3),
                 "run_dir": None if trial.run_dir is None else str(trial.run_dir), "note": trial.note,
                 **{f"valid_perplexity_{epoch}": value for epoch, value in
                    enumerate([*trial.valid_perplexities, *[None] * (most - len(trial.valid_perplexities))], 1)}}
                for trial in self.trials]


def write(sweep: Sweep, folder: Path) -> list[Path]:
    """sweep.csv, sweep.json and, once two trials are done, the pictures; their paths."""
    text = io.StringIO()
    rows = sweep.rows()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    checkpoint.write_bytes(folder / "sweep.csv", text.getvalue().encode())
    best = sweep.best
    tree = {"config": asdict(sweep.config), "best": None if best is None else best.number,
            "command": None if best is None else sweep.command(best),
            "trials": [{**asdict(trial), "run_dir": str(trial.run_dir)} for trial in sweep.trials]}
    checkpoint.write_bytes(folder / "sweep.json", (json.dumps(_finite(tree), indent=1) + "\n").encode())
    written = [folder / "sweep.csv", folder / "sweep.json"]
    points = [(point.values, point.valid[0]) for point in sweep.points if point.done]
    if len(points) > 1:
        written += [slice_plot(points, folder / "slices.png"), parallel_plot(points, folder / "parallel.png")]
    return written


class View:
    """Shows a sweep while it runs: a live table on a terminal, elsewhere a line for each epoch and each end."""

    def __init__(self, console: Console):
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._seen: dict[tuple[int, int], tuple[int, str]] = {}
        self._shown = 0.0

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def due(self) -> bool:
        return time.monotonic() > self._shown + 0.5

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, sweep: Sweep, total: int) -> None:
        """The trials as they stand, of `total` points."""
        self._shown = time.monotonic()
        if self._live:
            self._live.update(_running(sweep, total), refresh=True)
        else:
            for trial in sweep.trials:
                now = len(trial.valid_perplexities), trial.status
                if now != self._seen.get((trial.number, trial.seed), (0, "running")):
                    self.say(_line(trial, self._epochs(sweep, trial)))
                self._seen[trial.number, trial.seed] = now

    @staticmethod
    def _epochs(sweep: Sweep, trial: Trial) -> int:
        return trial.values.get("epochs", sweep.config.train.epochs)

    def summary(self, sweep: Sweep, written: Sequence[Path] = (), most: int = 20) -> None:
        """The best points, what was written, and how to train the winner alone."""
        self.__exit__()
        points, best = sweep.points, sweep.best
        table = Table(*["trial", *(points[0].values if points else ()), "status", "valid perplexity",
                        "test perplexity"], title=f"{len(points)} points, best first", title_justify="left", box=None)
        for point in points[:most]:
            table.add_row(str(point.number), *map(shown, point.values.values()), point.status, _spread(*point.valid),
                          _spread(*point.test))
        self.console.print(table, width=None if self.console.is_terminal else 160)
        if len(points) > most:
            self.say(f"... and {len(points) - most} more")
        for trial in sweep.trials:
            if trial.note:
                self.say(f"trial {trial.number} seed {trial.seed} {trial.status}: {trial.note}")
        if written:
            self.say(f"written: {', '.join(map(str, written))}")
        if best:
            self.say(f"best: trial {best.number}, seed {best.seed}, valid perplexity "
                     f"{_perplexity(best.valid_perplexity)}; train it alone:\n{sweep.command(best)}")
        else:
            self.say("no point came to its end")


def shown(value: Any) -> str:
    """A value of a space as one writes it."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:.4g}" if isinstance(
        value, float) else str(value)


def _running(sweep: Sweep, total: int) -> Group:
    best = sweep.best
    ended = sum(all(trial.status != "running" for trial in point.trials) for point in sweep.points)
    title = f"{ended} of {total} points ended" + ("" if best is None else (
        f"; best so far {_perplexity(best.valid_perplexity)} ({_values(best.values)})"))
    table = Table("trial", "seed", "values", "epochs", "valid perplexity", box=None)
    for trial in [trial for trial in sweep.trials if trial.status == "running"][:30]:
        table.add_row(str(trial.number), str(trial.seed), _values(trial.values),
                      f"{len(trial.valid_perplexities)}/{View._epochs(sweep, trial)}",
                      "" if not trial.valid_perplexities else _perplexity(trial.valid_perplexity))
    return Group(Text(title, style="bold"), table)


def _line(trial: Trial, epochs: int) -> str:
    at = f"trial {trial.number} ({_values(trial.values)}) seed {trial.seed}"
    result = f"epoch {len(trial.valid_perplexities)}/{epochs}, valid perplexity {_perplexity(trial.valid_perplexity)}"
    if trial.status == "running":
        return f"{at}: {result}"
    test = "" if trial.test_perplexity is None else f", test {_perplexity(trial.test_perplexity)}"
    return f"{at}: {trial.status}, {result}{test}" + (f"; {trial.note}" if trial.note else "")


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def _mean(values: Sequence[float]) -> tuple[float, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        return (float(np.mean(values)) if values else math.nan,
                float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def _spread(mean: float, deviation: float) -> str:
    return "" if math.isnan(mean) else _perplexity(mean) + ("" if math.isnan(deviation) else
                                                            f" ± {_perplexity(deviation)}")


def _perplexity(value: float) -> str:
    return f"{value:.2e}" if value >= 1e7 else f"{value:.2f}"


def _finite(tree: Any) -> Any:
    """The same with None for numbers that JSON lacks."""
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
