"""Curves of runs, drawn from their metrics alone: perplexities, gradient norms, learning rates, speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.figure import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALETTE,
    drawable,
    figure,
    label,
    log_axis,
    marks,
    perplexity_axis,
    save,
)
from jaxlm.report.units import perplexity_text

Row = dict[str, Any]  # a line of the metrics or of the timing
MOST_POINTS = 400  # of one line of windows


@dataclass(frozen=True)
class Results:
    """A run's name and the lines of its metrics, by kind.

    Attributes:
        name: unlike that of any other run in the picture.
        windows, epochs, tests: lines of the metrics.
    """

    name: str
    windows: Sequence[Row]
    epochs: Sequence[Row]
    tests: Sequence[Row]

    @property
    def valid_perplexity(self) -> float:
        """Validation perplexity of the last epoch; nan without an epoch."""
        return self.epochs[-1].get("valid_perplexity", math.nan) if self.epochs else math.nan

    @property
    def estimated(self) -> bool:
        """Whether a training perplexity is an estimate, from the words drawn for a sampled softmax."""
        return any(row.get("train_estimated") for row in self.epochs)

    def test_perplexity(self, best: bool = False) -> float:
        """Test perplexity of the last parameters, or of the best checkpoint; nan where they were not tested."""
        found = [row for row in self.tests if (row.get("checkpoint") == "best") == best and "test_perplexity" in row]
        return found[-1]["test_perplexity"] if found else math.nan


def by_kind(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """The windows, epochs and tests among the lines of a run's metrics."""
    windows, epochs, tests = ([row for row in rows if row["kind"] == kind] for kind in ("window", "epoch", "test"))
    return windows, epochs, tests


def learning_curve(rows: Sequence[Row], path: Path) -> Path:
    """Draws perplexities and learning rate over a run's epochs.

    Args:
        rows: of the run's metrics.
        path: where to write the picture; its ending chooses the format.

    Returns:
        The picture's path.

    Raises:
        RunDirError: The picture cannot be written.
        JaxlmError: No epoch has finished.
    """
    run = Results("", *by_kind(rows))
    if not run.epochs:
        raise JaxlmError(
            f"{path} needs the results of a finished epoch, and there are {len(run.windows)} windows and none: "
            "train one epoch first"
        )
    with figure(8, 5.2) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        draw_perplexities(upper, [run])
        upper.legend(labelcolor="linecolor")
        title = f"{run.epochs[-1].get('preset', 'training')} on {run.epochs[-1].get('corpus', 'its corpus')}"
        upper.set_title(label(title), loc="left", weight="bold", fontsize=11)
        draw_windows(lower, [run], "learning_rate")
        lower.lines[0].set_color(INK)
        rates = lower.lines[0].get_ydata()
        ends = np.unique(rates[np.isfinite(rates)])[[0, -1]] if np.isfinite(rates).any() else []
        lower.set_yticks([*ends], [f"{rate:.1g}" for rate in ends])
        lower.minorticks_off()
        upper.set_xlabel("")
        lower.set_ylabel("learning\nrate")
        drawn.align_ylabels()
        return save(drawn, path)


def draw_perplexities(axes: Any, runs: Sequence[Results], levels: Sequence[tuple[str, float]] = ()) -> None:
    """Draws each run's training (dashed, triangles), validation (solid, circles) and test (a diamond).

    A run alone has a colour for each split, and the perplexity of its windows behind them; several have a colour each.

    Args:
        axes: of matplotlib.
        runs: on one corpus.
        levels: (name, perplexity), drawn beside the floor of a generated corpus.
    """
    shown = []
    for place, run in enumerate(runs):
        colours = (BLUE, ORANGE, GREEN) if len(runs) == 1 else (PALETTE[place % len(PALETTE)],) * 3
        at = epoch_ends(run)
        train, valid = (
            drawable([row.get(f"{split}_perplexity", math.nan) for row in run.epochs]) for split in ("train", "valid")
        )
        test = drawable([run.test_perplexity()])
        if len(runs) == 1:
            axes.plot(*_smooth(window_ends(run.windows, run.epochs), run), color=BLUE, alpha=0.3, linewidth=1)
        estimated = np.array([bool(row.get("train_estimated")) for row in run.epochs], bool)
        ends = _ends("train", train), _ends("validation", valid), _ends("test", test)
        for part, x, y, colour, style, text in (
            ("train", at, train, colours[0], "^--", ends[0]),
            ("validation", at, valid, colours[1], "o-", ends[1] if len(runs) == 1 else label(run.name)),
            ("test", at[-1:], test, colours[2], "D", ends[2]),
        ):
            known = np.isfinite(y)
            titles = [
                f"{run.name} {part}, epoch {e:.4g}: {p:.2f}".strip() for e, p in zip(x[known], y[known], strict=True)
            ]
            (line,) = axes.plot(x[known], y[known], style, color=colour, markersize=5, gid=marks(titles))
            if known.any() and (len(runs) == 1 or part == "validation"):
                line.set_label(text)
            shown.append(y)
        if (estimated & np.isfinite(train)).any():
            name = "train, estimated from the words drawn" if len(runs) == 1 else None
            line = axes.plot(at[estimated], train[estimated], "^", color=colours[0], mfc="white", markersize=5)[0]
            line.set_label(name)
    for (name, level), style in zip([*_floor(runs), *levels], [":", *["--"] * len(levels)], strict=False):
        axes.axhline(level, color=INK, linestyle=style, linewidth=1.2, label=f"{name} {level:.2f}")
        shown.append(drawable([level]))
    perplexity_axis(axes, np.concatenate(shown))
    axes.set(ylabel="perplexity")
    epoch_axis(axes, runs)


def draw_windows(axes: Any, runs: Sequence[Results], name: str) -> None:
    """Draws one of the windows' series of each run on a log scale: `grad_norm` or `learning_rate`."""
    for place, run in enumerate(runs):
        x, y = window_series(run, name)
        style = "steps-pre" if name == "learning_rate" else "default"
        y = np.where((y > 1e-30) & (y < 1e30), y, np.nan)
        axes.plot(x, y, color=PALETTE[place % len(PALETTE)], drawstyle=style, linewidth=1.2, gid=marks([run.name]))
    axes.set(ylabel=name.replace("_", " ").replace("grad ", "gradient "))
    log_axis(axes, "y")
    epoch_axis(axes, runs)


def window_ends(windows: Sequence[Row], epochs: Sequence[Row]) -> np.ndarray:
    """Where each window ends, in epochs; an unfinished epoch is taken to be as long as the longest."""
    epoch = np.array([row["epoch"] for row in windows], float)
    own, first, which, sizes = np.unique(epoch, return_index=True, return_inverse=True, return_counts=True)
    within = np.arange(1, len(windows) + 1) - first[which]
    finished = np.isin(own, [row["epoch"] for row in epochs])
    return epoch - 1 + within / np.where(finished, sizes, max(sizes, default=1))[which]


def epoch_ends(run: Results) -> np.ndarray:
    """Where each finished epoch ends: at its last window, if the metrics have its windows."""
    ends = dict(zip([row["epoch"] for row in run.windows], window_ends(run.windows, run.epochs).tolist(), strict=True))
    return np.array([ends.get(row["epoch"], row["epoch"]) for row in run.epochs], float)


def window_series(run: Results, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, means) of at most `MOST_POINTS` stretches of windows; nan where a stretch has no finite value."""
    x = window_ends(run.windows, run.epochs)
    values = np.array([row[name] for row in run.windows], float)
    values[~np.isfinite(values)] = np.nan
    if not len(x):
        return x, values
    starts = np.linspace(0, len(x), min(MOST_POINTS, len(x)), endpoint=False).astype(int)
    if name == "learning_rate":
        return x[np.append(starts[1:], len(x)) - 1], values[starts]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sums, counts = (np.add.reduceat(part, starts) for part in (np.nan_to_num(values), np.isfinite(values) * 1.0))
        return x[np.append(starts[1:], len(x)) - 1], sums / counts


def epoch_axis(axes: Any, runs: Sequence[Results]) -> None:
    """Makes x the epochs, from 0 to the last window, with ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    last = max([1.0, *(end for run in runs for end in (*epoch_ends(run), *window_ends(run.windows, run.epochs)[-1:]))])
    axes.set(xlim=(0, last * 1.02), xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _ends(name: str, values: np.ndarray) -> str:
    return f"{name} {perplexity_text(values[-1])}" if len(values) else name


def _floor(runs: Sequence[Results]) -> list[tuple[str, float]]:
    """The true source's perplexity, on validation text if it is known there."""
    rows = [row for run in runs for row in (*run.epochs, *run.tests)]
    found = {name: value for row in rows for name, value in row.items() if name.startswith("floor_")}
    return [(f"floor of {name[6:]}", found[name]) for name in sorted(found, reverse=True)[:1] if found[name] >= 1]


def _smooth(x: np.ndarray, run: Results) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity averaged over a thirtieth of an epoch's windows; empty where the metrics do not have it.

    A cost is a sum over its window's steps. The steps of windows that do not say how many they are follow from the
    summed costs of one epoch (a row of the metrics) and its perplexity.
    """
    cost = np.array([row["cost"] for row in run.windows], float)
    steps = np.array([row.get("steps", math.nan) for row in run.windows], float)
    own = (np.array([row["epoch"] for row in run.windows]) == run.epochs[0]["epoch"]) & np.isfinite(cost)
    perplexity = run.epochs[0].get("train_perplexity", 0)
    if not own.any() or not 1 < perplexity < math.inf:
        return np.empty(0), np.empty(0)
    with np.errstate(over="ignore"):
        total = cost[own].sum() / math.log(perplexity)
    if unknown := np.isnan(steps[own]).sum():
        default = (total - np.nansum(steps[own])) / unknown
        if not 0.5 < default < 1e6:
            return np.empty(0), np.empty(0)
        steps = np.where(np.isnan(steps), round(default), steps)
    span = max(int(own.sum()) // 30, 1)
    sums, lengths = (np.convolve(values, np.ones(span), "valid") for values in (np.nan_to_num(cost), steps))
    mean = np.exp(np.minimum(sums / np.maximum(lengths, 1), 100))
    stride = max(len(mean) // 2000, 1)
    return x[span - 1 :][::stride], drawable(mean[::stride])
