"""Pictures of a sweep: validation perplexity against each field, all fields at once, and over the epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.report.figure import (
    ORANGE,
    PALE,
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

PERPLEXITY = "validation perplexity"


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


Trials = Sequence[TrialRecord]  # at least one, the best first, all with the same fields


@dataclass(frozen=True)
class Scale:
    """Where one field's values lie on an axis."""

    places: np.ndarray  # [trials]
    names: list[str]  # of each trial's value
    ticks: dict[float, str]  # of all values, if they are few or no numbers
    log: bool


def slice_plot(trials: Trials, path: Path) -> Path:
    """Writes a picture with one panel for each field, and all trials in each. Raises RunDirError."""
    fields = list(trials[0].values)
    with figure(1.2 + 3 * len(fields), 3.2) as drawn:
        panels = drawn.subplots(1, len(fields), squeeze=False, sharey=True)[0]
        for axes, field in zip(panels, fields, strict=True):
            draw_slice(axes, trials, field)
            axes.label_outer()
        return save(drawn, path)


def parallel_plot(trials: Trials, path: Path) -> Path:
    """Writes a picture of parallel axes. Raises RunDirError."""
    with figure(2 + 1.8 * len(trials[0].values), 4) as drawn:
        draw_parallel(drawn.subplots(), trials)
        return save(drawn, path)


def draw_slice(axes: Any, trials: Trials, field: str) -> None:
    """Draws validation perplexity against one field; each mark has its trial's number as its key."""
    scale = scale_of([trial.values[field] for trial in trials])
    y = drawable([trial.valid[0] for trial in trials])
    titles = [
        f"{field} {name}, {PERPLEXITY} {value:.2f}"
        for name, value in zip(scale.names, y, strict=True)
    ]
    for at in map(int, np.flatnonzero(np.isfinite(y))[::-1]):  # (the best one last, on top)
        gid = marks([titles[at]], str(trials[at].number))
        size = 7 if at == 0 else 5
        axes.plot(scale.places[at], y[at], "o", color=_colour(at, len(y)), markersize=size, gid=gid)
    if scale.log:
        log_axis(axes, "x")
    axes.set(xlabel=label(field), ylabel=PERPLEXITY)
    axes.margins(x=0.08)
    if scale.ticks:
        axes.set_xticks(*zip(*scale.ticks.items(), strict=True))
    perplexity_axis(axes, y)


def draw_parallel(axes: Any, trials: Trials) -> None:
    """Draws each trial as a line over parallel axes (Inselberg, 1985): one a field, the last for the perplexity."""
    fields = list(trials[0].values)
    y = drawable([trial.valid[0] for trial in trials])
    last = Scale(y, [*map(perplexity_text, y)], {}, log=True)
    scales = [*(scale_of([trial.values[field] for trial in trials]) for field in fields), last]
    heights = np.array([_draw_scale(axes, place, scale) for place, scale in enumerate(scales)])
    names = [*map(label, fields), PERPLEXITY]
    for at, trial in reversed([*enumerate(trials)]):
        title = ", ".join(
            f"{name} {scale.names[at]}" for name, scale in zip(names, scales, strict=True)
        )
        gid = marks([title], str(trial.number))
        width = 2.5 if at == 0 else 1.2
        axes.plot(
            heights[:, at], "o-", color=_colour(at, len(y)), markersize=3, linewidth=width, gid=gid
        )
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes.set_yticks([])
    axes.grid(False)
    axes.set(xlim=(-0.1, len(fields) + 0.4), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)


def draw_epochs(axes: Any, trials: Trials) -> None:
    """Draws validation perplexity over the epochs of each trial."""
    lines = [drawable(trial.valid_by_epoch) for trial in trials]
    for at, (trial, line) in reversed([*enumerate(zip(trials, lines, strict=True))]):
        gid = marks([f"trial {trial.number}"], str(trial.number))
        colour = _colour(at, len(trials))
        axes.plot(np.arange(1, len(line) + 1), line, "o-", color=colour, markersize=3, gid=gid)
    axes.set(xlabel="epoch", ylabel=PERPLEXITY)
    axes.locator_params("x", integer=True)
    perplexity_axis(axes, np.concatenate(lines))


def scale_of(values: Sequence[Any]) -> Scale:
    """The scale of one field's values: numbers lie where they are, anything else in alphabetical order."""
    if not all(type(value) in (int, float) for value in values):
        names = [label(value_text(value)) for value in values]
        order, places = np.unique(names, return_inverse=True)
        return Scale(places.astype(float), names, dict(enumerate(order.tolist())), log=False)
    places = np.array(values, float)
    names = [f"{value:.4g}" for value in places]
    ticks = dict(zip(places.tolist(), names, strict=True))
    log = bool(places.min() > 0 and places.max() >= 8 * places.min())
    return Scale(places, names, ticks if len(ticks) <= 6 else {}, log)


def value_text(value: Any) -> str:
    """A field's value as `--set` takes it: `16x8` for (16, 8)."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return "none"
    return str(value)


def _colour(rank: int, count: int) -> Any:
    """Orange for the best of `count` trials, blue to grey for the others."""
    if rank == 0:
        return ORANGE
    return (PALETTE[0], PALETTE[7], PALE)[3 * rank // count]


def _draw_scale(axes: Any, place: int, scale: Scale) -> np.ndarray:
    """Draws one of the parallel axes, from 0 to 1; the trials' heights on it [trials]."""
    x = np.log(scale.places) if scale.log else scale.places
    _, first = np.unique(x, return_index=True)  # a trial of each value, the least first
    order = [at for at in first if np.isfinite(x[at])]
    low, span = (x[order[0]], np.ptp(x[order])) if order else (0, 0)
    heights = (x - low) / span if span else np.where(np.isnan(x), np.nan, 0.5)
    for at in order if scale.ticks else {*order[:1], *order[-1:]}:
        axes.text(place + 0.03, heights[at], scale.names[at], fontsize=8, va="center")
    axes.axvline(place, color=PALE, linewidth=1)
    return heights
