"""The charts of runs and words as Vega-Lite's JSON; their colours are the page's own (CSS variables).

No text of a file enters an expression: it stands in the data alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.report.curve import window_ends
from jaxlm.report.page.contents import RunRecord, WordMap
from jaxlm.terminal import printable

Spec = dict[str, Any]
PALETTE = [f"var(--c{place})" for place in range(8)]
MOST_POINTS = 3000  # of all lines of a chart
LABEL = 60  # letters of a name
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded from it
ZOOM = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.ctrlKey || event.metaKey]"},
    "bind": "scales",
}
_LEGEND = {"name": "shown", "select": {"type": "point", "fields": ["run"]}, "bind": "legend"}
_OPACITY = {"condition": {"param": "shown", "value": 1}, "value": 0.12}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'  # the page's, to be measured
CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": "var(--rule)"},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--rule)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "bottom",
        "columns": {"signal": "max(1, floor(width / 200))"},
        "labelLimit": 190,
        "symbolLimit": 60,
    },
    "range": {"category": PALETTE},
}


def learning_curves(runs: Sequence[RunRecord], published: Sequence[tuple[str, float]]) -> Spec:
    """Perplexity over epochs: training, validation and test of each run, with the floor and published results.

    Args:
        runs: of one corpus.
        published: (name, test perplexity) to be drawn as levels.

    Returns:
        The specification.
    """
    points = []
    for run in runs:
        for split in ("train", "validation"):
            key = "valid_perplexity" if split == "validation" else "train_perplexity"
            points += [
                {"run": _label(run.name), "split": split, "epoch": row["epoch"], "perplexity": row[key]}
                for row in run.epochs
                if _drawable(row.get(key))
            ]
        if _drawable(run.test_perplexity) and run.epochs:
            points.append(
                {
                    "run": _label(run.name),
                    "split": "test",
                    "epoch": run.epochs[-1]["epoch"],
                    "perplexity": run.test_perplexity,
                }
            )
    levels = [{"name": name, "perplexity": value} for name, value in [*_floor(runs), *published] if _drawable(value)]
    y = {
        "field": "perplexity",
        "type": "quantitative",
        "title": "perplexity",
        "axis": {"format": ",~g"},
        "scale": {"type": "log", "nice": False, "padding": 12},
    }
    x = {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "scale": {"zero": False, "nice": False, "padding": 14},
        "axis": {"tickMinStep": 1, "format": "d"},
    }
    splits = ["train", "validation", "test"]
    colour = {"field": "run", "type": "nominal", "title": "run"}
    tooltip = [{"field": "run"}, {"field": "split"}, {"field": "epoch"}, {"field": "perplexity", "format": ",.2f"}]
    line = {
        "transform": [{"filter": "datum.split !== 'test'"}],
        "mark": {"type": "line", "strokeWidth": 2},
        "params": [ZOOM, _LEGEND],
        "encoding": {
            "x": x,
            "y": y,
            "color": colour,
            "opacity": _OPACITY,
            "strokeDash": {
                "field": "split",
                "scale": {"domain": splits, "range": [[5, 4], [1, 0], [1, 3]]},
                "legend": None,
            },
        },
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
            "x": x,
            "y": y,
            "color": colour,
            "opacity": _OPACITY,
            "tooltip": tooltip,
            "shape": {
                "field": "split",
                "scale": {"domain": splits, "range": ["triangle-up", "circle", "diamond"]},
                "title": "split",
            },
        },
    }
    marks = [
        {
            "data": {"values": levels},
            "mark": {"type": "rule", "strokeDash": [2, 4], "color": "var(--ink)", "strokeWidth": 1.5, "clip": True},
            "encoding": {"y": y, "tooltip": [{"field": "name"}, {"field": "perplexity", "format": ",.2f"}]},
        },
        {
            "data": {"values": levels},
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "bottom",
                "dx": 4,
                "dy": -3,
                "color": "var(--ink)",
                "fontSize": 12,
                "clip": True,
                "x": 0,
            },
            "encoding": {"y": y, "text": {"field": "name"}},
        },
    ]
    return _spec(
        {
            "data": {"values": points},
            "height": 380,
            "layer": [line, dots, *(marks if levels else [])],
            "description": "perplexity over epochs",
        }
    )


def gradient_norms(runs: Sequence[RunRecord]) -> Spec:
    """The global norm of the gradient before clipping, averaged over neighbouring windows."""
    return _series(runs, "grad_norm", "gradient norm", log=True)


def learning_rates(runs: Sequence[RunRecord]) -> Spec:
    """The learning rate of each window."""
    return _series(runs, "learning_rate", "learning rate", log=True, interpolate="step-after")


def words_per_second(runs: Sequence[RunRecord]) -> Spec:
    """Words trained in a second, of each epoch."""
    points = [
        {"run": _label(run.name), "epoch": row["epoch"], "value": row["words_per_second"]}
        for run in runs
        for row in run.timing
    ]
    return _lines(points, "words per second", log=False, point=True)


def word_map(words: WordMap) -> Spec:
    """Words where their vectors lie: points all, words as far as there is room (`visible`, which the page sets)."""
    values = [
        {"id": place, "word": _label(word), "x": x, "y": y, "cluster": cluster}
        for place, (word, (x, y), cluster) in enumerate(zip(words.words, words.places, words.clusters, strict=True))
    ]
    axes = {
        name: {"field": name, "type": "quantitative", "axis": None, "scale": {"zero": False, "padding": 30}}
        for name in ("x", "y")
    }
    colour = {"field": "cluster", "type": "nominal", "legend": None}
    seen = "datum.id === picked || near[datum.id]"
    faint = {"condition": [{"test": seen, "value": 1}, {"test": "picked >= 0", "value": 0.15}]}
    dots = {
        "mark": {"type": "circle", "size": 26, "cursor": "pointer", "clip": True},
        "params": [ZOOM],
        "encoding": {**axes, "color": colour, "opacity": {**faint, "value": 0.55}, "tooltip": {"field": "word"}},
    }
    names = {
        "mark": {"type": "text", "dy": -7, "cursor": "pointer", "clip": True},
        "encoding": {
            **axes,
            "text": {"field": "word"},
            "color": colour,
            "size": {"condition": {"test": "datum.id === picked", "value": 20}, "value": 12},
            "opacity": {
                "condition": [
                    {"test": "!visible[datum.id]", "value": 0},
                    {"test": seen, "value": 1},
                    {"test": "picked >= 0", "value": 0.15},
                ],
                "value": 1,
            },
        },
    }
    return _spec(
        {
            "data": {"values": values},
            "height": 560,
            "layer": [dots, names],
            "params": [
                {"name": "picked", "value": -1},
                {"name": "near", "value": {}},
                {"name": "visible", "value": {}},
            ],
            "view": {"stroke": "var(--rule)"},
            "description": "a map of the words",
        }
    )


def window_series(run: RunRecord, name: str, most: int) -> list[tuple[float, float]]:
    """(epoch, mean) of at most `most` stretches of windows; those that are not finite are left out.

    Args:
        run: the run.
        name: cost, grad_norm or learning_rate.
        most: points.

    Returns:
        Points in the order of training.
    """
    if not run.windows:
        return []
    x = window_ends(list(run.windows), list(run.epochs))
    values = np.array([row[name] for row in run.windows], float)
    points = []
    for part in np.array_split(np.arange(len(x)), min(most, len(x))):
        kept = values[part][np.isfinite(values[part])]
        if len(kept):
            mean = float(kept[0] if name == "learning_rate" else kept.mean())
            points.append((round(float(x[part[-1]]), 4), float(f"{mean:.5g}")))
    return points


def _series(runs: Sequence[RunRecord], name: str, title: str, *, log: bool, interpolate: str = "linear") -> Spec:
    most = max(60, MOST_POINTS // max(len(runs), 1) // 3)
    points = [
        {"run": _label(run.name), "epoch": x, "value": y}
        for run in runs
        for x, y in window_series(run, name, most)
        if not log or y > 0
    ]
    return _lines(points, title, log=log, interpolate=interpolate)


def _lines(points: list[Spec], title: str, *, log: bool, interpolate: str = "linear", point: bool = False) -> Spec:
    scale: Spec = {"type": "log", "nice": False, "padding": 8} if log else {"zero": True}
    encoding = {
        "x": {
            "field": "epoch",
            "type": "quantitative",
            "title": "epoch",
            "axis": {"tickMinStep": 1},
            "scale": {"zero": False, "nice": False},
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": None,
            "scale": scale,
            "axis": {"format": "~g" if log else "~s", "tickCount": 5},
        },
        "color": {"field": "run", "type": "nominal", "title": "run", "legend": None},
    }
    tooltip = [
        {"field": "run"},
        {"field": "epoch", "format": ".2f"},
        {"field": "value", "title": title, "format": ",.4~g"},
    ]
    line = {
        "mark": {"type": "line", "interpolate": interpolate, "strokeWidth": 1.5, "clip": True},
        "params": [ZOOM],
        "encoding": encoding,
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1 if point else 0, "clip": True},
        "encoding": {**encoding, "tooltip": tooltip},
    }
    return _spec({"data": {"values": points}, "height": 170, "layer": [line, dots], "description": title})


def _spec(tree: Spec) -> Spec:
    return {"$schema": SCHEMA, "width": "container", "config": CONFIG, **tree}


def _floor(runs: Sequence[RunRecord]) -> list[tuple[str, float]]:
    """The true source's perplexity, of validation where it is known."""
    found = {
        name: value
        for run in runs
        for row in (*run.epochs, *run.tests)
        for name, value in row.items()
        if name.startswith("floor_")
    }
    return [(f"floor of {name[6:]} {found[name]:.2f}", found[name]) for name in sorted(found, reverse=True)[:1]]


def _label(name: str) -> str:
    text = printable(name)
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 1 <= value < 1e30
