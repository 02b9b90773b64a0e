"""Pictures of a sweep: the validation result against each field, all fields, and the epochs.

Not by `optuna.visualization`: its plots go through pyplot and change its style for the whole
process, put perplexities on a linear axis, which one diverged trial fills, and have no keys for the
filters of the report page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.units import number_text
from jaxlm.report.figure import (
    ORANGE,
    PALE,
    PALETTE,
    drawable,
    figure,
    label,
    log_axis,
    marks,
    result_axis,
    save,
)
from jaxlm.report.sweep_results import Trial, value_text

Trials = Sequence[Trial]  # at least one, the best first, all with the same fields


@dataclass(frozen=True)
class Scale:
    """Where one field's values lie on an axis."""

    places: np.ndarray  # [trials]
    names: list[str]  # of each trial's value
    ticks: dict[float, str]  # of all values, if they are few or no numbers
    log: bool


def slice_plot(trials: Trials, path: Path) -> Path:
    """Writes a picture with one panel for each field, and all trials in each.

    Args:
        trials: What is drawn.
        path: The file.

    Returns:
        The path.

    Raises:
        RunDirError: The file cannot be written.
    """
    fields = list(trials[0].values)
    with figure(1.2 + 3 * len(fields), 3.2) as drawn:
        panels = drawn.subplots(1, len(fields), squeeze=False, sharey=True)[0]
        for axes, field in zip(panels, fields, strict=True):
            draw_slice(axes, trials, field)
            axes.label_outer()
        return save(drawn, path)


def parallel_plot(trials: Trials, path: Path) -> Path:
    """Writes a picture of parallel axes, one for each field.

    Args:
        trials: What is drawn.
        path: The file.

    Returns:
        The path.

    Raises:
        RunDirError: The file cannot be written.
    """
    with figure(2 + 1.8 * len(trials[0].values), 4) as drawn:
        draw_parallel(drawn.subplots(), trials)
        return save(drawn, path)


def draw_slice(
    axes: Any,
    trials: Trials,
    field: str,
) -> None:
    """Draws the validation result against one field.

    Args:
        axes: Where to draw; each mark has its trial's number as its key.
        trials: What is drawn.
        field: One of the space's.
    """
    scale = scale_of([trial.values[field] for trial in trials])
    measure = trials[0].measure
    y = _results(trials)
    ranks: dict[str, list[int]] = {}  # of each colour, the worst first
    for rank in reversed(range(len(y))):
        if np.isfinite(y[rank]):
            ranks.setdefault(_colour(rank, len(y)), []).append(rank)
    for colour, members in ranks.items():
        titles = [
            f"{field} {scale.names[rank]}, {result_name(trials)} {number_text(measure, y[rank])}"
            for rank in members
        ]
        gid = marks(titles, [str(trials[rank].number) for rank in members])
        size = 7 if colour == ORANGE else 5
        axes.plot(scale.places[members], y[members], "o", color=colour, markersize=size, gid=gid)
    axes.set(xlabel=label(field), ylabel=result_name(trials))
    axes.margins(x=0.08)
    if scale.log:
        log_axis(axes, "x")
    if scale.ticks:
        axes.set_xticks(list(scale.ticks), list(scale.ticks.values()))
    result_axis(axes, y, measure)


def draw_parallel(axes: Any, trials: Trials) -> None:
    """Draws each trial as a line over parallel axes (Inselberg 1985), the result's the last.

    Args:
        axes: Where to draw; each line has its trial's number as its key.
        trials: What is drawn.
    """
    fields = list(trials[0].values)
    measure = trials[0].measure
    y = _results(trials)
    scales = [scale_of([trial.values[field] for trial in trials]) for field in fields]
    scales.append(
        Scale(y, [number_text(measure, value) for value in y], {}, log=measure == "perplexity")
    )
    heights = np.array([_draw_scale(axes, place, scale) for place, scale in enumerate(scales)])
    names = [*map(label, fields), result_name(trials)]
    for rank in reversed(range(len(trials))):
        values = [f"{name} {scale.names[rank]}" for name, scale in zip(names, scales, strict=True)]
        axes.plot(
            heights[:, rank],
            "o-",
            color=_colour(rank, len(y)),
            markersize=3,
            linewidth=2.5 if rank == 0 else 1.2,
            gid=marks([", ".join(values)], [str(trials[rank].number)]),
        )
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes.set_yticks([])
    axes.grid(False)
    axes.set(xlim=(-0.1, len(fields) + 0.4), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)


def draw_epochs(axes: Any, trials: Trials) -> None:
    """Draws the validation result over the epochs of each trial.

    Args:
        axes: Where to draw; each line has its trial's number as its key.
        trials: What is drawn.
    """
    measure = trials[0].measure
    lines = [drawable(trial.valid_by_epoch, measure) for trial in trials]
    for rank in reversed(range(len(trials))):
        number = trials[rank].number
        axes.plot(
            np.arange(1, len(lines[rank]) + 1),
            lines[rank],
            "o-",
            color=_colour(rank, len(trials)),
            markersize=3,
            gid=marks([f"trial {number}"], [str(number)]),
        )
    axes.set(xlabel="epoch", ylabel=result_name(trials))
    axes.locator_params("x", integer=True)
    result_axis(axes, np.concatenate(lines), measure)


def _results(trials: Trials) -> np.ndarray:
    """The validation results [trials], nan where one has no place on the axis."""
    return drawable([trial.valid[0] for trial in trials], trials[0].measure)


def result_name(trials: Trials) -> str:
    """What the trials are ranked by, such as "validation perplexity"."""
    return f"validation {trials[0].measure}"


def scale_of(values: Sequence[Any]) -> Scale:
    """The scale of one field's values: numbers where they are, others in alphabetical order."""
    if not all(type(value) in (int, float) for value in values):
        names = [label(value_text(value)) for value in values]
        sorted_names, places = np.unique(names, return_inverse=True)
        ticks: dict[float, str] = dict(enumerate(sorted_names.tolist()))
        return Scale(places.astype(float), names, ticks, log=False)
    places = np.array(values, float)
    names = [f"{value:.4g}" for value in places]
    ticks = dict(zip(places.tolist(), names, strict=True))
    if len(ticks) > 6:
        ticks = {}
    log = bool(places.min() > 0 and places.max() >= 8 * places.min())
    return Scale(places, names, ticks, log)


def _colour(rank: int, count: int) -> str:
    """Orange for the best of `count` trials; blue, teal and grey for thirds of the others."""
    if rank == 0:
        return ORANGE
    return (PALETTE[0], PALETTE[7], PALE)[3 * rank // count]


def _draw_scale(
    axes: Any,
    place: int,
    scale: Scale,
) -> np.ndarray:
    """Draws one of the parallel axes, from 0 to 1; the trials' heights on it [trials]."""
    axes.axvline(place, color=PALE, linewidth=1)
    places = np.log(scale.places) if scale.log else scale.places
    finite = places[np.isfinite(places)]
    span = np.ptp(finite) if len(finite) else 0
    heights = np.where(np.isnan(places), np.nan, 0.5)
    if span:
        heights = (places - finite.min()) / span
    names = dict(zip(heights.tolist(), scale.names, strict=True))
    for height, name in names.items():
        if np.isfinite(height) and (scale.ticks or height in (0, 0.5, 1)):
            axes.text(place + 0.03, height, name, fontsize=8, va="center")
    return heights
