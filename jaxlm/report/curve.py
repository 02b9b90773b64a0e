"""The learning curve of a run, drawn from its metrics alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.figure import BLUE, GREEN, INK, ORANGE, PALE, drawable, figure, label, perplexity_axis, save

_Row = dict[str, Any]  # a line of the metrics


def learning_curve(rows: Sequence[_Row], path: Path) -> Path:
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
    windows, epochs, tests = ([row for row in rows if row["kind"] == kind] for kind in ("window", "epoch", "test"))
    if not epochs:
        raise JaxlmError(
            f"{path} needs the results of a finished epoch, and there are {len(windows)} windows and none: "
            "train one epoch first"
        )
    tests = [row for row in tests if row.get("checkpoint") != "best"][-1:]  # the run's result: its last parameters'
    x = window_ends(windows, epochs)
    ends = dict(zip([row["epoch"] for row in windows], x.tolist(), strict=True))  # of each epoch's last window
    at = [ends.get(row["epoch"], row["epoch"]) for row in epochs]
    with figure(8, 5.2) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        upper.plot(*_smooth(x, windows, epochs[0]), color=BLUE, alpha=0.3, linewidth=1)
        _draw_perplexities(upper, at, epochs, tests)
        title = f"{epochs[-1].get('preset', 'training')} on {epochs[-1].get('corpus', 'its corpus')}"
        upper.set_title(label(title), loc="left", weight="bold", fontsize=11)
        _draw_rates(lower, x, np.array([row["learning_rate"] for row in windows], float))
        lower.set(xlim=(0, max([1, *at, *x[-1:]]) * 1.02), xlabel="epoch")
        lower.xaxis.get_major_locator().set_params(integer=True)
        drawn.align_ylabels()
        return save(drawn, path)


def _draw_perplexities(axes: Any, at: Sequence[float], epochs: list[_Row], tests: list[_Row]) -> None:
    """Training and validation at the epochs' ends, the test and the floor as levels."""
    train, valid, test = (
        drawable([row.get(f"{name}_perplexity", math.nan) for row in part])
        for name, part in (("train", epochs), ("valid", epochs), ("test", tests))
    )
    floors = {name: value for row in epochs + tests for name, value in row.items() if name.startswith("floor")}
    floor = drawable([floors[name] for name in sorted(floors, reverse=True)[:1]])  # floor_valid if there is one
    axes.plot(at, train, "o-", color=BLUE, markersize=4, label=f"train {train[-1]:.2f}")
    axes.plot(at, valid, "o-", color=ORANGE, markersize=4, label=f"validation {valid[-1]:.2f}")
    for name, levels, colour, style in (("test", test, GREEN, "--"), ("floor", floor, PALE, ":")):
        for level in levels:
            axes.axhline(level, color=colour, linestyle=style, linewidth=1.5, label=f"{name} {level:.2f}")
    perplexity_axis(axes, np.concatenate([train, valid, test, floor]))
    axes.set(ylabel="perplexity")
    axes.legend(loc="upper right", labelcolor="linecolor")


def _draw_rates(axes: Any, x: np.ndarray, rates: np.ndarray) -> None:
    """The learning rate of each window, on a log scale."""
    rates = np.where((rates > 1e-30) & (rates < 1e30), rates, np.nan)
    marks = np.unique(rates[np.isfinite(rates)])
    axes.step(x, rates, color=INK, where="pre", linewidth=1.2)
    axes.set(ylabel="learning\nrate", yscale="log")
    axes.set_yticks([*marks[:1], *marks[-1:]], [f"{mark:.1g}" for mark in (*marks[:1], *marks[-1:])])
    axes.minorticks_off()


def window_ends(windows: list[_Row], epochs: list[_Row]) -> np.ndarray:
    """Where each window ends, in epochs; an unfinished epoch is taken to be as long as the longest."""
    epoch = np.array([row["epoch"] for row in windows], float)
    own, first, which, sizes = np.unique(epoch, return_index=True, return_inverse=True, return_counts=True)
    within = np.arange(1, len(windows) + 1) - first[which]
    finished = np.isin(own, [row["epoch"] for row in epochs])
    return epoch - 1 + within / np.where(finished, sizes, max(sizes, default=1))[which]


def _smooth(x: np.ndarray, windows: list[_Row], epoch: _Row) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity averaged over a thirtieth of an epoch's windows; empty where the metrics do not have it.

    A cost is a sum over its window's steps. The steps of windows that do not say how many they are follow from the
    summed costs of one epoch (a row of the metrics) and its perplexity.
    """
    cost = np.array([row["cost"] for row in windows], float)
    steps = np.array([row.get("steps", math.nan) for row in windows], float)
    own = (np.array([row["epoch"] for row in windows]) == epoch["epoch"]) & np.isfinite(cost)
    perplexity = epoch.get("train_perplexity", 0)
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
