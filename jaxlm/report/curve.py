"""Curves of runs, from their metrics alone: perplexities, gradient norms and learning rates."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.base.units import measure_name, measure_text, measured
from jaxlm.config.config import Config
from jaxlm.report.figure import (
    INK,
    PALETTE,
    drawable,
    figure,
    label,
    log_axis,
    marks,
    result_axis,
    save,
)

Row = dict[str, Any]  # a line of the metrics or of the timing
MOST_POINTS = 400  # of a line of windows


@dataclass(frozen=True)
class Results:
    """A run's name, unlike that of any other run in the picture, and its metrics by kind."""

    name: str
    windows: Sequence[Row]
    epochs: Sequence[Row]
    tests: Sequence[Row]
    config: Config
    # Seconds and words_per_second of each epoch.
    timing: Mapping[int, Row] = field(default_factory=dict, kw_only=True)

    @property
    def tokens(self) -> str:
        """The kind of token: words, characters, bytes or subwords."""
        return self.config.data.tokens

    @property
    def valid_perplexity(self) -> float:
        """Validation perplexity of the last epoch; nan without an epoch."""
        if self.epochs:
            return self.epochs[-1].get("valid_perplexity", math.nan)
        return math.nan

    def tested(self, best: bool = False) -> Row:
        """The last line of the test of the last parameters, or of the best checkpoint; or empty."""
        lines = [row for row in self.tests if (row.get("checkpoint") == "best") == best]
        if lines:
            return lines[-1]
        return {}

    def test_perplexity(self, best: bool = False) -> float:
        """Test perplexity of the last parameters, or of the best checkpoint; nan without a test."""
        return self.tested(best).get("test_perplexity", math.nan)

    def measured(self, perplexities: Any) -> np.ndarray:
        """Perplexities in the measure of the run's tokens, nan where they cannot be drawn."""
        return np.array([measured(value, self.tokens) for value in drawable(perplexities)])

    def window_ends(self) -> np.ndarray:
        """Where each window ends, in epochs; an unfinished epoch counts as long as the longest."""
        finished = {row["epoch"] for row in self.epochs}
        sizes = Counter(row["epoch"] for row in self.windows)
        ends = [np.empty(0)]
        for epoch, size in sizes.items():
            length = size if epoch in finished else max(sizes.values())
            ends.append(epoch - 1 + np.arange(1, size + 1) / length)
        return np.concatenate(ends)

    def end(self) -> float:
        """Where the last window or epoch ends, in epochs."""
        ends = [*self.window_ends()[-1:], *(row["epoch"] for row in self.epochs)]
        return max(ends, default=0.0)


def by_kind(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """The windows, epochs and tests among the lines of a run's metrics."""
    windows = [row for row in rows if row["kind"] == "window"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    tests = [row for row in rows if row["kind"] == "test"]
    return windows, epochs, tests


def learning_curve(
    rows: Sequence[Row],
    config: Config,
    path: Path,
) -> Path:
    """Draws the perplexities and the learning rate of a run; of characters and bytes, bits.

    Args:
        rows: The lines of its metrics.
        config: Its config.
        path: The picture to write; its ending is the format.

    Returns:
        The picture's path.

    Raises:
        RunDirError: The picture cannot be written.
        JaxlmError: No epoch has finished.
    """
    run = Results("", *by_kind(rows), config)
    if not run.epochs:
        raise JaxlmError(
            f"a learning curve needs a finished epoch, and there are {len(run.windows)} windows "
            f"without one: train one epoch first"
        )
    last = run.epochs[-1]
    with figure(8, 5.2) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        draw_perplexities(upper, [run])
        upper.legend(labelcolor="markeredgecolor")  # the mark of an estimate is white within
        title = f"{last.get('preset', 'training')} on {last.get('corpus', 'its corpus')}"
        upper.set_title(label(title), loc="left", weight="bold", fontsize=11)
        draw_windows(lower, [run], "learning_rate")
        rates = lower.lines[0].get_ydata()
        rates = rates[np.isfinite(rates)]
        ends = sorted({rates.min(), rates.max()}) if len(rates) else []
        lower.set_yticks(ends, [f"{rate:.3g}" for rate in ends])
        upper.set_xlabel("")
        lower.set_ylabel("learning\nrate")
        drawn.align_ylabels()
        return save(drawn, path)


def draw_perplexities(
    axes: Any,
    runs: Sequence[Results],
    levels: Sequence[tuple[str, float]] = (),
) -> None:
    """Draws each run's training (dashed, triangles), validation (solid, circles), test (a diamond).

    A run alone has a colour for each split, and the perplexity of its windows behind them; several
    have a colour each. Dotted is the floor of a generated corpus.

    Args:
        axes: Where to draw.
        runs: At least one, all of one kind of token, whose measure is drawn.
        levels: (name, perplexity) of others to compare with.
    """
    tokens = runs[0].tokens
    shown = []
    for place, run in enumerate(runs):
        colour = None if len(runs) == 1 else PALETTE[place % len(PALETTE)]
        shown += _draw_run(axes, run, colour)
    floors = {}
    for run in runs:
        for row in (*run.epochs, *run.tests):
            floors |= {name: value for name, value in row.items() if name.startswith("floor_")}
    lines = [(name, level, "--") for name, level in levels]
    if floors:
        split = max(floors)  # valid before test before train
        lines.insert(0, (split.replace("_", " of "), floors[split], ":"))
    for name, level, style in lines:
        if level >= 1:
            y = measured(level, tokens)
            text = f"{name} {measure_text(level, tokens)}"
            axes.axhline(y, color=INK, linestyle=style, linewidth=1.2, label=text)
            shown.append(runs[0].measured([level]))
    values = np.concatenate(shown)
    result_axis(axes, values, measure_name(tokens))
    axes.set(ylabel=measure_name(tokens))
    epoch_axis(axes, runs)


def _draw_run(
    axes: Any,
    run: Results,
    colour: str | None,
) -> list[np.ndarray]:
    """Draws a run in its colour, or in one for each split if it is alone; the values drawn."""
    colours = PALETTE[:3] if colour is None else (colour,) * 3
    if colour is None:
        x, perplexities = window_series(run, "perplexity")
        axes.plot(x, run.measured(perplexities), color=PALETTE[0], alpha=0.3, linewidth=1)
    epochs = [row["epoch"] for row in run.epochs]
    train = [row.get("train_perplexity", math.nan) for row in run.epochs]
    valid = [row.get("valid_perplexity", math.nan) for row in run.epochs]
    splits = [
        ("train", epochs, train, "^--"),
        ("validation", epochs, valid, "o-"),
        ("test", [run.end()], [run.test_perplexity()], "D"),
    ]
    drawn = []
    for (split, x, perplexities, style), split_colour in zip(splits, colours, strict=True):
        y = run.measured(perplexities)
        has_value = np.isfinite(y)
        drawn.append(y)
        titles = [
            f"{run.name} {split}, epoch {epoch:.4g}: {value:.2f}".strip()
            for epoch, value in zip(np.array(x)[has_value], y[has_value], strict=True)
        ]
        (line,) = axes.plot(x, y, style, color=split_colour, markersize=5, gid=marks(titles))
        if has_value.any() and colour is None:
            line.set_label(f"{split} {measure_text(perplexities[-1], run.tokens)}")
        elif has_value.any() and split == "validation":
            line.set_label(label(run.name))
    estimated = [row for row in run.epochs if row.get("train_estimated")]
    if estimated:
        y = run.measured([row["train_perplexity"] for row in estimated])
        (line,) = axes.plot([row["epoch"] for row in estimated], y, "^", color=colours[0])
        line.set(markerfacecolor="white", markersize=5)
        if colour is None:
            line.set_label("train, estimated from the words drawn")
    return drawn


def draw_windows(
    axes: Any,
    runs: Sequence[Results],
    name: str,
) -> None:
    """Draws one of the windows' series on a log scale.

    Args:
        axes: Where to draw.
        runs: Whose windows.
        name: `grad_norm` or `learning_rate`.
    """
    style = "steps-pre" if name == "learning_rate" else "default"
    for place, run in enumerate(runs):
        axes.plot(
            *window_series(run, name),
            color=PALETTE[place % len(PALETTE)],
            drawstyle=style,
            linewidth=1.2,
            gid=marks([run.name]),
        )
    axes.set(ylabel=name.replace("_", " ").replace("grad ", "gradient "))
    log_axis(axes, "y")
    epoch_axis(axes, runs)


def draw_speeds(axes: Any, runs: Sequence[Results]) -> None:
    """Draws how many tokens a second each run's epochs trained.

    Args:
        axes: Where to draw.
        runs: At least one, all of one kind of token.
    """
    tokens = runs[0].tokens
    for place, run in enumerate(runs):
        epochs = sorted(run.timing)
        speeds = [run.timing[epoch]["words_per_second"] for epoch in epochs]
        titles = [
            f"{run.name}, epoch {epoch}: {speed:,.0f} {tokens}/s"
            for epoch, speed in zip(epochs, speeds, strict=True)
        ]
        axes.plot(epochs, speeds, "o-", color=PALETTE[place % len(PALETTE)], gid=marks(titles))
    axes.set(ylabel=f"{tokens} per second", ylim=(0, None))
    epoch_axis(axes, runs)


def epoch_axis(axes: Any, runs: Sequence[Results]) -> None:
    """Makes x the epochs of the runs, from 0 to the last window, with ticks at whole numbers."""
    axes.set(xlim=(0, max([1.0, *(run.end() for run in runs)]) * 1.02), xlabel="epoch")
    axes.locator_params("x", integer=True)


def window_series(run: Results, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches of a thirtieth of an epoch's windows, or longer ones in long runs.

    Args:
        run: Whose windows.
        name: `grad_norm`, `perplexity`, or `learning_rate` (of the first window of each stretch).

    Returns:
        Where the stretches end, in epochs [n], and the means [n], nan where a stretch has no finite
        value.
    """
    ends = run.window_ends()
    windows_of_epoch = sum(row["epoch"] == run.windows[0]["epoch"] for row in run.windows)
    size = max(windows_of_epoch // 30, len(ends) // MOST_POINTS, 1)
    starts = np.arange(0, len(ends), size)
    column = "cost" if name == "perplexity" else name
    values = np.array([row[column] for row in run.windows], float)
    counts = np.isfinite(values).astype(int)
    if name == "perplexity":  # a cost is summed over the window's steps
        length = run.config.train.bptt_length
        counts *= np.array([row.get("steps", length) for row in run.windows], int)
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(np.where(counts, values, 0), starts)
        means = sums / np.add.reduceat(counts, starts)
        if name == "learning_rate":
            means = values[starts]
        if name == "perplexity":
            means = drawable(np.exp(means))
        else:  # matplotlib cannot draw an axis from 1e-30 to 1e30
            means = np.where(abs(np.log(means)) < 70, means, np.nan)
    return ends[np.minimum(starts + size, len(ends)) - 1], means
