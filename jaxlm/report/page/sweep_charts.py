"""The charts of a sweep: parallel coordinates, and a slice for each field; what is brushed filters the table."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.report.figure import drawable
from jaxlm.report.page.charts import CONFIG, FONT, MOST_POINTS, SCHEMA, ZOOM, Spec
from jaxlm.report.page.contents import TrialRecord
from jaxlm.report.sweep_plots import Scale, scales_of
from jaxlm.terminal import printable

PERPLEXITY = "validation perplexity"
_KEPT = "kept === null || kept[datum.trial]"
_COLOURS = ["#f2700f", "#9a6ad6", "#3f7fd0"]  # the best first; each is seen on white and on black


def axes_of(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """An axis for each field, and the last for the validation perplexity.

    Args:
        trials: at least one, all with the same fields.

    Returns:
        Of each: name; values and places (from 0 to 1) of the trials, None where a trial has no place; categories, as
        [text, place], of a field that is no number; low, high and log, of one that is; ticks, as [place, text].
    """
    points = [(trial.values, trial.valid[0]) for trial in trials]
    found = [_axis(name, scale, [trial.values[name] for trial in trials]) for name, scale in scales_of(points).items()]
    perplexity = drawable([trial.valid[0] for trial in trials])
    return [*found, _axis(PERPLEXITY, Scale(perplexity, {}, log=True), perplexity.tolist())]


def parallel_coordinates(trials: Sequence[TrialRecord], axes: Sequence[dict[str, Any]]) -> Spec:
    """Each trial as a line over parallel axes (Inselberg, 1985), in Vega's JSON; a drag along an axis is a `brush`."""
    last = axes[-1]
    points = [
        {"trial": trial.number, "axis": place, "y": axis["places"][at], "perplexity": last["values"][at]}
        for at, trial in enumerate(trials)
        for place, axis in enumerate(axes)
        if axis["places"][at] is not None and last["values"][at] is not None
    ]
    ticks = [{"axis": place, "y": y, "text": text} for place, axis in enumerate(axes) for y, text in axis["ticks"]]
    line = {
        "type": "line",
        "from": {"data": "of_trial"},
        "encode": {
            "enter": {
                "x": {"scale": "x", "field": "axis"},
                "y": {"scale": "y", "field": "y"},
                "stroke": {"scale": "colour", "field": "perplexity"},
                "tooltip": {
                    "signal": "{'trial': datum.trial, 'validation perplexity': format(datum.perplexity, ',.2f')}"
                },
            },
            "update": {
                "opacity": [{"test": _KEPT, "value": 0.85}, {"value": 0.06}],
                "strokeWidth": [{"test": "datum.trial === best", "value": 4}, {"value": 1.8}],
            },
        },
    }
    centre = {"scale": "x", "field": "axis"}
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "description": "parallel coordinates of the trials",
        "height": 320,
        "width": 300,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": 8,
        "background": "transparent",
        "config": {"background": "transparent"},
        "signals": [
            {
                "name": "width",
                "init": "containerSize()[0] || 300",
                "on": [{"events": "window:resize", "update": "containerSize()[0] || width"}],
            },
            {"name": "kept", "value": None},
            {"name": "ranges", "value": []},
            {"name": "best", "value": trials[0].number},
            {
                "name": "down",
                "value": None,
                "on": [{"events": "@hit:pointerdown", "update": "{axis: datum.axis, y: y()}"}],
            },
            {
                "name": "brush",
                "value": None,
                "on": [
                    {
                        "events": "[@hit:pointerdown, window:pointerup] > window:pointermove!",
                        "update": "{axis: down.axis, low: clamp(invert('y', max(down.y, y())), 0, 1), "
                        "high: clamp(invert('y', min(down.y, y())), 0, 1)}",
                    },
                    {"events": "@hit:dblclick", "update": "{axis: datum.axis, low: null, high: null}"},
                ],
            },
        ],
        "data": [
            {"name": "points", "values": points},
            {"name": "ticks", "values": ticks},
            {"name": "axes", "values": [{"axis": place, "name": axis["name"]} for place, axis in enumerate(axes)]},
            {
                "name": "brushes",
                "transform": [
                    {"type": "sequence", "start": 0, "stop": len(axes), "as": "axis"},
                    {"type": "formula", "as": "range", "expr": "ranges[datum.axis]"},
                    {"type": "filter", "expr": "datum.range"},
                ],
            },
        ],
        "scales": [
            {"name": "x", "type": "point", "domain": list(range(len(axes))), "range": "width", "padding": 0.35},
            {"name": "y", "type": "linear", "domain": [0, 1], "range": "height"},
            {
                "name": "colour",
                "type": "log",
                "domain": {"data": "points", "field": "perplexity"},
                "range": _COLOURS,
                "interpolate": "lab",
            },
        ],
        "marks": [
            {
                "type": "rule",
                "from": {"data": "axes"},
                "encode": {
                    "update": {
                        "x": centre,
                        "y": {"value": 0},
                        "y2": {"signal": "height"},
                        "stroke": {"value": "var(--ink)"},
                        "opacity": {"value": 0.5},
                    }
                },
            },
            {
                "type": "group",
                "interactive": False,
                "from": {"facet": {"name": "of_trial", "data": "points", "groupby": "trial"}},
                "marks": [line],
            },
            {
                "type": "text",
                "from": {"data": "ticks"},
                "interactive": False,
                "encode": {
                    "update": {
                        "x": {**centre, "offset": 5},
                        "y": {"scale": "y", "field": "y"},
                        "text": {"field": "text"},
                        "baseline": {"value": "middle"},
                        "fill": {"value": "var(--ink)"},
                        "fontSize": {"value": 12},
                        "font": {"value": FONT},
                    }
                },
            },
            {
                "type": "text",
                "from": {"data": "axes"},
                "interactive": False,
                "encode": {
                    "update": {
                        "x": centre,
                        "y": {"value": -12},
                        "text": {"field": "name"},
                        "align": {"value": "center"},
                        "limit": {"signal": f"width / {len(axes)} - 4"},
                        "fill": {"value": "var(--ink)"},
                        "fontSize": {"value": 12},
                        "fontWeight": {"value": "bold"},
                        "font": {"value": FONT},
                    }
                },
            },
            {
                "type": "rect",
                "from": {"data": "brushes"},
                "interactive": False,
                "encode": {
                    "update": {
                        "xc": centre,
                        "width": {"value": 22},
                        "y": {"signal": "scale('y', datum.range[1])", "offset": -3},
                        "y2": {"signal": "scale('y', datum.range[0])", "offset": 3},
                        "fill": {"value": "var(--accent)"},
                        "fillOpacity": {"value": 0.3},
                        "stroke": {"value": "var(--accent)"},
                    }
                },
            },
            {
                "type": "rect",
                "name": "hit",
                "from": {"data": "axes"},
                "encode": {
                    "update": {
                        "xc": centre,
                        "width": {"value": 36},
                        "y": {"value": 0},
                        "y2": {"signal": "height"},
                        "fill": {"value": "transparent"},
                        "cursor": {"value": "ns-resize"},
                    }
                },
            },
        ],
    }


def slice_of(trials: Sequence[TrialRecord], axis: dict[str, Any], perplexities: dict[str, Any]) -> Spec:
    """Validation perplexity against one field, in Vega-Lite's JSON; a drag is a `brush`."""
    names = [text for text, _ in axis["categories"] or ()]  # (which stand in the data as their places)
    points = [
        {
            "trial": trial.number,
            "name": value,
            "value": names.index(value) if names else value,
            "perplexity": perplexities["values"][at],
        }
        for at, (trial, value) in enumerate(zip(trials, axis["values"], strict=True))
        if perplexities["values"][at] is not None
    ]
    x: Spec = {"field": "value", "title": axis["name"]}
    x |= (
        {"type": "ordinal", "axis": {"labelAngle": 0, "labelLimit": 90, "labelExpr": "names[datum.value]"}}
        if (names)
        else {
            "type": "quantitative",
            "axis": {"format": "~g", "tickCount": 4},
            "scale": {"nice": False, "padding": 10, **({"type": "log"} if axis["log"] else {"zero": False})},
        }
    )
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 200,
        "config": CONFIG,
        "description": "validation perplexity over one field",
        "data": {"values": points},
        "params": [
            {"name": "kept", "value": None},
            {"name": "names", "value": names},
            {"name": "brush", "select": {"type": "interval"}},
        ],
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": {
            "x": x,
            "y": {
                "field": "perplexity",
                "type": "quantitative",
                "title": PERPLEXITY,
                "axis": {"format": ",~g", "tickCount": 4},
                "scale": {"type": "log", "nice": False, "padding": 10},
            },
            "color": {
                "field": "perplexity",
                "type": "quantitative",
                "legend": None,
                "scale": {"type": "log", "range": _COLOURS, "interpolate": "lab"},
            },
            "opacity": {"condition": {"test": _KEPT, "value": 0.95}, "value": 0.08},
            "tooltip": [
                {"field": "trial"},
                {"field": "name", "title": axis["name"]},
                {"field": "perplexity", "format": ",.2f"},
            ],
        },
    }


def epochs_of(trials: Sequence[TrialRecord]) -> Spec:
    """Validation perplexity over the epochs of each trial's first seed, in Vega-Lite's JSON."""
    points = [
        {"trial": trial.number, "epoch": epoch, "perplexity": value}
        for trial in trials
        for epoch, value in enumerate(drawable(trial.valid_by_epoch).tolist(), 1)
        if math.isfinite(value)
    ]
    points = points[: 4 * MOST_POINTS]
    ends = {trial.number: trial.valid[0] for trial in trials}
    for point in points:
        point["end"] = ends[point["trial"]]
    encoding = {
        "x": {
            "field": "epoch",
            "type": "quantitative",
            "axis": {"tickMinStep": 1, "format": "d"},
            "scale": {"zero": False, "nice": False, "padding": 10},
        },
        "y": {
            "field": "perplexity",
            "type": "quantitative",
            "title": PERPLEXITY,
            "axis": {"format": ",~g"},
            "scale": {"type": "log", "nice": False, "padding": 10},
        },
        "detail": {"field": "trial"},
        "color": {
            "field": "end",
            "type": "quantitative",
            "legend": None,
            "scale": {"type": "log", "range": _COLOURS, "interpolate": "lab"},
        },
        "opacity": {"condition": {"test": _KEPT, "value": 0.85}, "value": 0.06},
    }
    tooltip = [{"field": "trial"}, {"field": "epoch"}, {"field": "perplexity", "format": ",.2f"}]
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 280,
        "config": CONFIG,
        "description": "validation perplexity over the epochs of the trials",
        "data": {"values": points},
        "params": [{"name": "kept", "value": None}],
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.8, "clip": True}, "params": [ZOOM], "encoding": encoding},
            {
                "mark": {"type": "point", "filled": True, "size": 40, "clip": True},
                "encoding": {**encoding, "tooltip": tooltip},
            },
        ],
    }


def _axis(name: str, scale: Scale, values: Sequence[Any]) -> dict[str, Any]:
    categories = not all(type(value) in (int, float) for value in values)
    x = np.log(scale.places) if scale.log else np.asarray(scale.places, float)
    some = x[np.isfinite(x)]
    low, high = (float(some.min()), float(some.max())) if len(some) else (0.0, 0.0)
    ends = (math.exp(low), math.exp(high)) if scale.log else (low, high)

    def place(value: float) -> float | None:
        if not math.isfinite(value):
            return None
        return round((value - low) / (high - low), 6) if high > low else 0.5

    named = scale.ticks or {end: f"{end:.4g}" for end in ends}
    ticks = {text: place(math.log(value) if scale.log else value) for value, text in named.items()}
    own = (
        [named[float(value)] for value in scale.places]
        if categories
        else [float(value) if math.isfinite(value) else None for value in scale.places]
    )
    return {
        "name": printable(name),
        "values": own,
        "places": [place(float(value)) for value in x],
        "categories": [[text, height] for text, height in ticks.items()] if categories else None,
        "low": ends[0],
        "high": ends[1],
        "log": scale.log,
        "ticks": [[height, text] for text, height in ticks.items() if height is not None],
    }
