"""Pictures of a sweep: validation perplexity against each field, and all fields at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.report.figure import BLUE, ORANGE, PALE, drawable, figure, label, perplexity_axis, save

Points = Sequence[tuple[Mapping[str, Any], float]]  # (values by field, validation perplexity), the best first


def slice_plot(points: Points, path: Path) -> Path:
    """Draws one panel for each field, with all points in each.

    Args:
        points: at least one, the best first; all with the same fields.
        path: where to write the picture; its ending chooses the format.

    Returns:
        The path.

    Raises:
        RunDirError: The picture cannot be written.
    """
    scales = scales_of(points)
    columns = min(len(scales), 3)
    rows = -(-len(scales) // columns)
    with figure(1.2 + 3 * columns, 0.4 + 2.8 * rows) as drawn:
        panels = drawn.subplots(rows, columns, squeeze=False, sharey=True).flat
        y = drawable([perplexity for _, perplexity in points])
        for axes, (name, scale) in zip(panels, scales.items(), strict=False):
            axes.scatter(scale.places, y, c=np.arange(len(y)), cmap="viridis", s=18)
            axes.scatter(scale.places[:1], y[:1], facecolors="none", edgecolors=ORANGE, s=90, linewidths=1.5)
            axes.set(xlabel=label(name), xscale="log" if scale.log else "linear", xlim=_limits(scale))
            if scale.ticks:
                axes.set_xticks(*zip(*scale.ticks.items(), strict=True))
        for axes in list(panels)[len(scales) :]:
            axes.set_axis_off()
        perplexity_axis(drawn.axes[0], y)
        drawn.axes[0].set(ylabel="validation perplexity")
        return save(drawn, path)


def parallel_plot(points: Points, path: Path) -> Path:
    """Draws each point as a line over parallel axes (Inselberg, 1985): one a field, the last for the perplexity.

    Args:
        points: at least one, the best first; all with the same fields.
        path: where to write the picture; its ending chooses the format.

    Returns:
        The path.

    Raises:
        RunDirError: The picture cannot be written.
    """
    scales = scales_of(points)
    y = Scale(drawable([perplexity for _, perplexity in points]), {}, log=True)
    with figure(2 + 1.8 * len(scales), 4) as drawn:
        axes = drawn.subplots()
        lines = np.array([_draw_scale(axes, place, scale) for place, scale in enumerate([*scales.values(), y])])
        for rank in reversed(range(len(points))):
            axes.plot(
                lines[:, rank],
                color=ORANGE if rank == 0 else BLUE,
                alpha=1 if rank == 0 else 0.15 + 0.5 * (1 - rank / len(points)),
                linewidth=2.5 if rank == 0 else 1.2,
            )
        axes.set_xticks(range(len(scales) + 1), [*map(label, scales), "validation\nperplexity"])
        axes.set_yticks([])
        axes.grid(False)
        axes.set(xlim=(-0.1, len(scales) + 0.4), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        return save(drawn, path)


@dataclass(frozen=True)
class Scale:
    """Where one field's values lie on an axis."""

    places: np.ndarray  # [points]
    ticks: dict[float, str]  # of all values, where they are few or no numbers
    log: bool


def scales_of(points: Points) -> dict[str, Scale]:
    """The scale of each field, by name."""
    return {name: _scale([values[name] for values, _ in points]) for name in points[0][0]}


def _scale(values: Sequence[Any]) -> Scale:
    if not all(type(value) in (int, float) for value in values):
        names = list(dict.fromkeys(map(_named, sorted(values, key=repr))))
        return Scale(
            np.array([names.index(_named(value)) for value in values], float),
            {float(place): label(name) for place, name in enumerate(names)},
            log=False,
        )
    places = np.array(values, float)
    distinct = np.unique(places)
    return Scale(
        places,
        {float(value): f"{value:.4g}" for value in distinct} if len(distinct) <= 6 else {},
        log=bool(places.min() > 0 and places.max() >= 8 * places.min()),
    )


def _named(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _limits(scale: Scale) -> tuple[float, float]:
    """An axis's ends: a margin beyond all values, also those of points that have no perplexity."""
    low, high = scale.places.min(), scale.places.max()
    if scale.log:
        return low * (low / high) ** 0.05, high * (high / low) ** 0.05
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _draw_scale(axes: Any, place: int, scale: Scale) -> np.ndarray:
    """Draws one of the parallel axes, from 0 to 1; the points' heights on it [points]."""
    x = np.log(scale.places) if scale.log else scale.places
    low, high = (np.nanmin(x), np.nanmax(x)) if np.isfinite(x).any() else (np.nan, np.nan)

    def height(values: Any) -> Any:
        return (values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.5)

    ends = np.unique(np.exp([low, high]) if scale.log else [low, high])
    for value, text in (scale.ticks or {float(end): f"{end:.4g}" for end in ends if np.isfinite(end)}).items():
        axes.text(
            place + 0.03, height(np.log(value) if scale.log else np.float64(value)), text, fontsize=8, va="center"
        )
    axes.axvline(place, color=PALE, linewidth=1)
    return height(x)
