"""The part of a page that shows a sweep: its table, and the charts and fields that filter it."""

import math
from typing import Any

from jaxlm.report.page import sweep_charts
from jaxlm.report.page.contents import SweepRecord
from jaxlm.report.page.figures import Figures
from jaxlm.report.page.markup import Markup, element, join, table
from jaxlm.report.page.run_sections import corpus_line
from jaxlm.report.units import spread
from jaxlm.terminal import printable


def sweep_section(sweep: SweepRecord, figures: Figures) -> Markup:
    """The section of one sweep; without two trials that have a result there are no charts.

    Args:
        sweep: what to show.
        figures: where the charts are added.

    Returns:
        The section's content.
    """
    parts: list[object] = [corpus_line(sweep.corpus)]
    if sweep.command:
        parts.append(element("p", "The best trial alone: ", element("code", sweep.command)))
    drawn = [trial for trial in sweep.trials if math.isfinite(trial.valid[0])]
    number = len(figures.payload["sweeps"])
    if len(drawn) > 1:
        axes = sweep_charts.axes_of(drawn)
        name = f"sweeps-{number}"
        slices = [
            {"id": f"{name}-slice-{place}", "axis": place, "spec": sweep_charts.slice_of(drawn, axis, axes[-1])}
            for place, axis in enumerate(axes[:-1])
        ]
        figures.payload["sweeps"].append(
            {
                "id": name,
                "axes": axes,
                "trials": [trial.number for trial in drawn],
                "parallel": sweep_charts.parallel_coordinates(drawn, axes),
                "slices": slices,
                "curves": {"id": f"{name}-curves", "spec": sweep_charts.epochs_of(drawn)},
            }
        )
        parts += [
            _filters(name, axes),
            element(
                "figure",
                element("figcaption", "Parallel coordinates"),
                element("div", id=f"{name}-parallel", cls="chart"),
            ),
            element(
                "p", "Drag along an axis to filter, double-click it to clear it; orange is better.", cls="note screen"
            ),
            figures.placed("Learning curves", f"{name}-curves"),
            element(
                "div",
                *(
                    element(
                        "figure",
                        element("figcaption", axes[one["axis"]]["name"]),
                        element("div", id=one["id"], cls="chart"),
                    )
                    for one in slices
                ),
                cls="grid",
            ),
        ]
    parts.append(_table(sweep, f"sweeps-{number}" if len(drawn) > 1 else None))
    return join(parts)


def _filters(name: str, axes: list[dict[str, Any]]) -> Markup:
    """A choice for each axis, for the keyboard as for the charts."""
    parts = []
    for place, axis in enumerate(axes):
        common = {"data_sweep": name, "data_axis": place}
        if axis["categories"]:
            inputs = [
                element(
                    "label",
                    element("input", type="checkbox", checked=True, value=value, data_bound="choice", **common),
                    f" {value}",
                )
                for value, _ in axis["categories"]
            ]
        else:
            inputs = [
                element(
                    "label",
                    f"{bound} ",
                    element(
                        "input", type="number", step="any", placeholder=f"{axis[end]:.4g}", data_bound=bound, **common
                    ),
                )
                for bound, end in (("from", "low"), ("to", "high"))
            ]
        parts.append(element("fieldset", element("legend", axis["name"]), *inputs))
    return element(
        "form",
        *parts,
        element("button", "Show all", type="button", data_all=name),
        element("output", "", id=f"{name}-count", aria_live="polite"),
        cls="filters",
        data_filters=name,
    )


def _table(sweep: SweepRecord, name: str | None) -> Markup:
    fields = list(sweep.trials[0].values)
    rows = [
        [
            trial.number,
            *(_value(trial.values[field]) for field in fields),
            trial.status,
            trial.seeds,
            spread(*trial.valid),
            spread(*trial.test),
        ]
        for trial in sweep.trials
    ]
    attributes: list[dict[str, object]] = [{"data_trial": trial.number, "data_of": name} for trial in sweep.trials]
    return table(
        ["trial", *fields, "status", "seeds", "validation perplexity", "test perplexity"],
        rows,
        caption="Trials, best first: mean ± standard deviation over the seeds",
        row_attributes=attributes,
    )


def _value(value: Any) -> object:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return value if type(value) in (int, float) else printable("none" if value is None else str(value))
