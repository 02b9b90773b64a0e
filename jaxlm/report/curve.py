"""Curves of runs, drawn from their metrics alone: perplexities, gradient norms and learning rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.figure import (
    INK,
    PALETTE,
    drawable,
    figure,
    label,
    log_axis,
    marks,
    perplexity_axis,
    save,
)
from jaxlm.units import perplexity_text

Row = dict[str, Any]  # a line of the metrics or of the timing
MOST_POINTS = 400  # of a line of windows


@dataclass(frozen=True)
class Results:
    """A run's name, unlike that of any other run in the picture, and the lines of its metrics by kind."""

    name: str
    windows: Sequence[Row]
    epochs: Sequence[Row]
    tests: Sequence[Row]
    bptt_length: int  # the steps of a window whose line does not say otherwise

    @property
    def valid_perplexity(self) -> float:
        """Validation perplexity of the last epoch; nan without an epoch."""
        if self.epochs:
            return self.epochs[-1].get("valid_perplexity", math.nan)
        return math.nan

    def tested(self, best: bool = False) -> Row:
        """The line of the last parameters' test, or of the best checkpoint's; empty where they were not tested."""
        found = [row for row in self.tests if (row.get("checkpoint") == "best") == best]
        if found:
            return found[-1]
        return {}

    def test_perplexity(self, best: bool = False) -> float:
        """Test perplexity of the last parameters, or of the best checkpoint; nan where they were not tested."""
        return self.tested(best).get("test_perplexity", math.nan)

    def window_ends(self) -> np.ndarray:
        """Where each window ends, in epochs; an unfinished epoch is taken to be as long as the longest."""
        epoch = np.array([row["epoch"] for row in self.windows], float)
        own, first, which, sizes = np.unique(
            epoch, return_index=True, return_inverse=True, return_counts=True
        )
        within = np.arange(1, len(epoch) + 1) - first[which]
        finished = np.isin(own, [row["epoch"] for row in self.epochs])
        return epoch - 1 + within / np.where(finished, sizes, max(sizes, default=1))[which]


def by_kind(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """The windows, epochs and tests among the lines of a run's metrics."""
    windows, epochs, tests = (
        [row for row in rows if row["kind"] == kind] for kind in ("window", "epoch", "test")
    )
    return windows, epochs, tests


def learning_curve(rows: Sequence[Row], bptt_length: int, path: Path) -> Path:
    """Draws the perplexities and the learning rate of a run from its metrics' rows, and returns the picture's path.

    Raises RunDirError if the picture cannot be written, and JaxlmError if no epoch has finished.
    """
    run = Results("", *by_kind(rows), bptt_length)
    if not run.epochs:
        found = f"there are {len(run.windows)} windows without one"
        raise JaxlmError(
            f"a learning curve needs a finished epoch, and {found}: train one epoch first"
        )
    with figure(8, 5.2) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        draw_perplexities(upper, [run])
        upper.legend(labelcolor="markeredgecolor")  # (an estimate is white within)
        title = f"{run.epochs[-1].get('preset', 'training')} on {run.epochs[-1].get('corpus', 'its corpus')}"
        upper.set_title(label(title), loc="left", weight="bold", fontsize=11)
        draw_windows(lower, [run], "learning_rate")
        rates = lower.lines[0].get_ydata()
        ends = sorted({np.nanmin(rates), np.nanmax(rates)}) if np.isfinite(rates).any() else []
        lower.set_yticks(ends, [f"{rate:.3g}" for rate in ends])
        upper.set_xlabel("")
        lower.set_ylabel("learning\nrate")
        drawn.align_ylabels()
        return save(drawn, path)


def draw_perplexities(
    axes: Any, runs: Sequence[Results], levels: Sequence[tuple[str, float]] = ()
) -> None:
    """Draws each run's training (dashed, triangles), validation (solid, circles) and test (a diamond).

    A run alone has a colour for each split, and the perplexity of its windows behind them; several have a colour each.
    Dotted is the floor of a generated corpus; `levels` are other (name, perplexity) to compare with.
    """
    alone = len(runs) == 1
    shown = []
    for place, run in enumerate(runs):
        colours = PALETTE[:3] if alone else (PALETTE[place % len(PALETTE)],) * 3
        at = np.array([row["epoch"] for row in run.epochs], float)
        estimated = np.array([bool(row.get("train_estimated")) for row in run.epochs], bool)
        train, valid = (
            drawable([row.get(f"{split}_perplexity", math.nan) for row in run.epochs])
            for split in ("train", "valid")
        )
        if alone:
            axes.plot(*window_series(run, "perplexity"), color=PALETTE[0], alpha=0.3, linewidth=1)
        splits = [
            ("train", at, train),
            ("validation", at, valid),
            ("test", at[-1:], drawable([run.test_perplexity()])),
        ]
        for (split, x, y), colour, style in zip(splits, colours, ("^--", "o-", "D"), strict=True):
            known = np.isfinite(y)
            points = zip(x[known], y[known], strict=True)
            titles = [
                f"{run.name} {split}, epoch {epoch:.4g}: {value:.2f}".strip()
                for epoch, value in points
            ]
            (line,) = axes.plot(
                x[known], y[known], style, color=colour, markersize=5, gid=marks(titles)
            )
            if known.any() and (alone or split == "validation"):
                line.set_label(f"{split} {perplexity_text(y[-1])}" if alone else label(run.name))
            shown.append(y)
        if estimated.any():
            name = "train, estimated from the words drawn" if alone else None
            axes.plot(
                at[estimated],
                train[estimated],
                "^",
                color=colours[0],
                mfc="white",
                markersize=5,
                label=name,
            )
    rows = [row for run in runs for row in (*run.epochs, *run.tests)]
    floors = {
        name: value for row in rows for name, value in row.items() if name.startswith("floor_")
    }
    floor = [
        (f"floor of {name[6:]}", floors[name], ":") for name in sorted(floors, reverse=True)[:1]
    ]
    for name, level, style in [*floor, *((name, level, "--") for name, level in levels)]:
        if level >= 1:
            axes.axhline(
                level, color=INK, linestyle=style, linewidth=1.2, label=f"{name} {level:.2f}"
            )
            shown.append(drawable([level]))
    perplexity_axis(axes, np.concatenate(shown))
    axes.set(ylabel="perplexity")
    epoch_axis(axes, runs)


def draw_windows(axes: Any, runs: Sequence[Results], name: str) -> None:
    """Draws one of the windows' series of each run on a log scale: `grad_norm` or `learning_rate`."""
    for place, run in enumerate(runs):
        style = "steps-pre" if name == "learning_rate" else "default"
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(
            *window_series(run, name),
            color=colour,
            drawstyle=style,
            linewidth=1.2,
            gid=marks([run.name]),
        )
    axes.set(ylabel=name.replace("_", " ").replace("grad ", "gradient "))
    log_axis(axes, "y")
    epoch_axis(axes, runs)


def epoch_axis(axes: Any, runs: Sequence[Results]) -> None:
    """Makes x the epochs, from 0 to the last window, with ticks at whole numbers."""
    ends = [
        end
        for run in runs
        for end in (*run.window_ends()[-1:], *(row["epoch"] for row in run.epochs))
    ]
    axes.set(xlim=(0, max([1.0, *ends]) * 1.02), xlabel="epoch")
    axes.locator_params("x", integer=True)


def window_series(run: Results, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, means) over stretches of a thirtieth of an epoch's windows, or longer ones in long runs.

    The name is "grad_norm", "learning_rate" (of the first window of each stretch) or "perplexity". A mean is nan where
    a stretch has no finite value.
    """
    x = run.window_ends()
    count = len(run.windows)
    first = sum(row["epoch"] == run.windows[0]["epoch"] for row in run.windows) if count else 0
    starts = np.arange(0, count, max(first // 30, count // MOST_POINTS, 1))
    values = np.array([row["cost" if name == "perplexity" else name] for row in run.windows], float)
    steps = [
        row.get("steps", run.bptt_length) if name == "perplexity" else 1 for row in run.windows
    ]
    weights = np.where(
        np.isfinite(values), np.array(steps, float), 0
    )  # (a cost is summed over the window's steps)
    if not count:
        return x, values
    with np.errstate(all="ignore"):
        sums, totals = (
            np.add.reduceat(part, starts)
            for part in (np.where(np.isfinite(values), values, 0), weights)
        )
        means = values[starts] if name == "learning_rate" else sums / totals
        means = (
            drawable(np.exp(means))
            if name == "perplexity"
            else np.where(abs(np.log(means)) < 70, means, np.nan)
        )
    return x[np.append(starts[1:], count) - 1], means
