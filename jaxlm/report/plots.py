"""Pictures of a run: the learning curve and a map of the embedding. Reads metrics and arrays only.

Draws on a `Figure` of its own, with Agg and no pyplot: no display is needed and nobody's backend changes.
"""

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.report.metrics import read_metrics

_INK, _PALE = "#374151", "#9ca3af"
_BLUE, _ORANGE, _GREEN = "#2563eb", "#ea580c", "#059669"
_STYLE: dict[Any, Any] = {
    "text.usetex": False, "text.parse_math": False, "text.color": _INK,
    "font.family": "DejaVu Sans", "font.size": 9,
    "axes.labelcolor": _INK, "axes.edgecolor": "#d1d5db", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef1", "xtick.color": _INK, "ytick.color": _INK,
    "legend.frameon": False}
_CLUSTERS = (_BLUE, _ORANGE, _GREEN, "#dc2626", "#7c3aed", "#854d0e", "#db2777", "#0891b2", "#65a30d", "#475569")


def learning_curve(run_dir: Path, path: Path | None = None) -> Path:
    """Perplexities and learning rate over a run's epochs, out of its metrics; written to RUN/curve.png by default.

    Raises JaxlmError where no epoch has finished, and where a file cannot be read or written.
    """
    rows = read_metrics(run_dir)
    windows, epochs, tests = ([row for row in rows if row["kind"] == kind] for kind in ("window", "epoch", "test"))
    if not epochs:
        raise JaxlmError(f"expected a finished epoch in {Path(run_dir) / 'metrics.jsonl'}, found {len(windows)} "
                         "windows and no epoch's result: train one epoch first")
    tests = [row for row in tests if row.get("checkpoint") != "best"][-1:]  # the last parameters' is the run's
    x, cost, rate = _series(windows)
    ends = dict(zip([row["epoch"] for row in windows], x.tolist(), strict=True))  # each epoch's last window
    at = [ends.get(row["epoch"], row["epoch"]) for row in epochs]
    train, valid, test = (_shown([row.get(f"{name}_perplexity", math.nan) for row in part])
                          for name, part in (("train", epochs), ("valid", epochs), ("test", tests)))
    floors = {name: value for row in epochs + tests for name, value in row.items() if name.startswith("floor")}
    floor = _shown([floors[name] for name in sorted(floors, reverse=True)[:1]])  # floor_valid where there is one

    with _figure((8, 5.2)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        upper.plot(*_smooth(x, cost, epochs[0]), color=_BLUE, alpha=0.3, linewidth=1)
        upper.plot(at, train, "o-", color=_BLUE, markersize=4, label=f"train {train[-1]:.2f}")
        upper.plot(at, valid, "o-", color=_ORANGE, markersize=4, label=f"validation {valid[-1]:.2f}")
        for name, value, colour, style in (("test", test, _GREEN, "--"), ("floor", floor, _PALE, ":")):
            for level in value:
                upper.axhline(level, color=colour, linestyle=style, linewidth=1.5, label=f"{name} {level:.2f}")
        _log_axis(upper, np.concatenate([train, valid, test, floor]))
        upper.set(ylabel="perplexity")
        title = f"{epochs[-1].get('preset', 'training')} on {epochs[-1].get('corpus', 'its corpus')}"
        upper.set_title(_printable(title), loc="left", weight="bold", fontsize=11)
        upper.legend(loc="upper right", labelcolor="linecolor")
        rate = np.where((rate > 1e-30) & (rate < 1e30), rate, np.nan)
        marks = np.unique(rate[np.isfinite(rate)])
        lower.step(x, rate, color=_INK, where="pre", linewidth=1.2)
        lower.set(ylabel="learning\nrate", xlabel="epoch", xlim=(0, max([1, *at, *x[-1:]]) * 1.02), yscale="log")
        lower.set_yticks([*marks[:1], *marks[-1:]], [f"{mark:.1g}" for mark in (*marks[:1], *marks[-1:])])
        lower.minorticks_off()
        lower.xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        return _save(figure, Path(path or Path(run_dir) / "curve.png"))


def embedding_map(embedding: np.ndarray, words: Sequence[str], path: Path, *, count: int = 400,
                  method: Literal["tsne", "pca"] = "tsne", seed: int = 0) -> Path:
    """The `count` most frequent words where their vectors lie, in colours of their clusters; embedding [V, E].

    Rows are in order of frequency, as ids are. t-SNE (van der Maaten and Hinton, 2008) keeps neighbours by cosine
    together, PCA keeps the two widest directions; a label that would lie on another moves aside.
    Raises JaxlmError for an unknown method, too few words and numbers that are not finite.
    """
    vectors = np.asarray(embedding, np.float64)[:count]
    if method not in ("tsne", "pca"):
        raise JaxlmError(f"method is tsne or pca; it is {method!r}")
    if vectors.ndim != 2 or min(vectors.shape) < 2 or len(vectors) < 5 or len(words) < len(vectors):
        raise JaxlmError(f"a map needs at least 5 words with vectors of at least 2 numbers, and a word for each; "
                         f"it has {len(words)} words and the vectors' shape is {vectors.shape}")
    if not np.isfinite(vectors).all() or (np.ptp(vectors, axis=0) == 0).all():
        raise JaxlmError("the embedding's vectors are not finite, or all the same: map one that was trained")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, clusters = _project(vectors, method, seed)

    width, height, margin = 2100, 1500, 50  # pixels, which are the axes' units too
    span = np.maximum(np.ptp(places, axis=0), 1e-12)
    places = margin + (places - places.min(axis=0)) / span * (np.array([width, height - margin]) - 2 * margin)
    with _figure((width / 150, height / 150)) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        labels = [axes.text(*place, _printable(word), color=_CLUSTERS[cluster], fontsize=7.5, ha="center",
                            va="center")
                  for place, word, cluster in zip(places, words, clusters, strict=False)]
        sizes = np.array([label.get_window_extent().size for label in labels]) + np.array([8, 2])
        for label, place in zip(labels, _spread(places, sizes), strict=True):
            label.set_position(place)
        name = {"tsne": "t-SNE", "pca": "PCA"}[method]
        axes.text(20, height - 25, f"The {len(labels)} most frequent words in the embedding ({name})", fontsize=11,
                  weight="bold", va="center")
        return _save(figure, Path(path))


def slice_plot(points: Sequence[tuple[Mapping[str, Any], float]], path: Path) -> Path:
    """A sweep's points, (values, validation perplexity): one panel for each field, all points in each.

    Raises RunDirError where the picture cannot be written.
    """
    names = list(points[0][0])
    columns = min(len(names), 3)
    with _figure((1.2 + 3 * columns, 0.4 + 2.8 * -(-len(names) // columns))) as figure:
        panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False, sharey=True).flat
        y = _shown([perplexity for _, perplexity in points])
        for axes, name in zip(panels, names, strict=False):
            x, ticks, log = _axis([values[name] for values, _ in points])
            axes.scatter(x, y, c=np.arange(len(y)), cmap="viridis", s=18)
            axes.scatter(x[:1], y[:1], facecolors="none", edgecolors=_ORANGE, s=90, linewidths=1.5)
            axes.set(xlabel=name, xscale="log" if log else "linear")
            if ticks:
                axes.set_xticks(*zip(*ticks.items(), strict=True))
        for axes in list(panels)[len(names):]:
            axes.set_axis_off()
        _log_axis(figure.axes[0], y)
        figure.axes[0].set(ylabel="validation perplexity")
        return _save(figure, path)


def parallel_plot(points: Sequence[tuple[Mapping[str, Any], float]], path: Path) -> Path:
    """The same points as lines over parallel axes, one for each field and the last for the perplexity (Inselberg)."""
    names = list(points[0][0])
    y = _shown([perplexity for _, perplexity in points])
    axes_of = [_axis([values[name] for values, _ in points]) for name in names]
    with _figure((2 + 1.8 * len(names), 4)) as figure:
        axes = figure.subplots()
        scaled = []
        for place, (x, ticks, log) in enumerate([*axes_of, (y, {}, True)]):
            x = np.log(x) if log else x
            low, high = np.nanmin(x), np.nanmax(x)
            scaled.append((x - low) / (high - low) if high > low else np.full(len(x), 0.5))
            labels = ticks or {float(np.exp(end) if log else end): "" for end in (low, high)}
            for value, label in labels.items():
                height = (np.log(value) if log else value) - low
                axes.text(place + 0.03, height / (high - low) if high > low else 0.5, label or f"{value:.4g}",
                          fontsize=8, va="center")
            axes.axvline(place, color=_PALE, linewidth=1)
        for rank in reversed(range(len(y))):
            axes.plot([line[rank] for line in scaled], color=_ORANGE if rank == 0 else _BLUE,
                      alpha=1 if rank == 0 else 0.15 + 0.5 * (1 - rank / len(y)), linewidth=2.5 if rank == 0 else 1.2)
        axes.set_xticks(range(len(names) + 1), [*map(_printable, names), "validation\nperplexity"])
        axes.set_yticks([])
        axes.grid(False)
        axes.set(xlim=(-0.1, len(names) + 0.4), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        return _save(figure, path)


def _axis(values: Sequence[Any]) -> tuple[np.ndarray, dict[float, str], bool]:
    """Places on an axis, the ticks of those that are no numbers or few, and whether it is logarithmic."""
    if not all(type(value) in (int, float) for value in values):
        names = list(dict.fromkeys("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in
                                   sorted(values, key=repr)))
        places = [names.index("x".join(map(str, v)) if isinstance(v, tuple) else str(v)) for v in values]
        return np.array(places, float), {float(place): _printable(name) for place, name in enumerate(names)}, False
    x = np.array(values, float)
    log = bool(x.min() > 0 and x.max() >= 8 * x.min())
    distinct = np.unique(x)
    return x, {float(value): f"{value:.4g}" for value in distinct} if len(distinct) <= 6 else {}, log


def _series(windows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each window's end in epochs, its cost and its learning rate."""
    epoch, cost, rate = (np.array([row[name] for row in windows], float)
                         for name in ("epoch", "cost", "learning_rate"))
    _, first, which, sizes = np.unique(epoch, return_index=True, return_inverse=True, return_counts=True)
    within = np.arange(1, len(windows) + 1) - first[which]
    return epoch - 1 + within / max(sizes, default=1), cost, rate


def _smooth(x: np.ndarray, cost: np.ndarray, epoch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity averaged over a thirtieth of an epoch's windows; empty where the metrics do not tell it.

    A cost is a sum over the window's steps; how many they are follows from one epoch's costs and perplexity.
    """
    own, perplexity = cost[(np.ceil(x) == epoch["epoch"]) & np.isfinite(cost)], epoch.get("train_perplexity", 0)
    steps = own.mean() / math.log(perplexity) if len(own) and perplexity > 1 else math.nan
    if not 0.5 < steps < 1e6:
        return np.empty(0), np.empty(0)
    span = max(len(own) // 30, 1)
    sums = np.convolve(np.nan_to_num(cost), np.ones(span), "valid")
    mean = np.exp(np.minimum(sums / span / round(steps), 100))
    stride = max(len(mean) // 2000, 1)
    return x[span - 1:][::stride], _shown(mean[::stride])


def _shown(perplexities: Sequence[float] | np.ndarray) -> np.ndarray:
    """The same, with a gap where a value has no place on the axis."""
    values = np.array(perplexities, float)
    return np.where((values >= 1) & (values < 1e30), values, np.nan)


def _log_axis(axes: Any, values: np.ndarray) -> None:
    """A log scale around the values, with round numbers written out."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    if np.isfinite(values).any():
        axes.set_ylim(np.nanmin(values) / 1.08, np.nanmax(values) * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _project(vectors: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [n, 2] and clusters [n] of unit vectors [n, E]."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    projection = (PCA(2, random_state=seed) if method == "pca" else
                  TSNE(metric="cosine", init="pca", random_state=seed, perplexity=min(20, (len(vectors) - 1) / 3)))
    clustering = KMeans(min(len(_CLUSTERS), len(vectors)), random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # on few words threads cost more than they bring
        warnings.simplefilter("ignore")  # such as fewer distinct vectors than clusters
        return projection.fit_transform(vectors), clustering.fit_predict(vectors)


def _spread(places: np.ndarray, sizes: np.ndarray, rounds: int = 200) -> np.ndarray:
    """Centres moved aside, each by little, until boxes of those sizes lie apart or the rounds are over."""
    places = places.copy()
    for _ in range(rounds):
        apart = [np.subtract.outer(column, column) for column in places.T]
        close = [np.abs(gap) < np.add.outer(size, size) / 2 for gap, size in zip(apart, sizes.T, strict=True)]
        i, j = np.nonzero(np.triu(close[0] & close[1], 1))
        if not len(i):
            break
        gap = places[i] - places[j]
        overlap = (sizes[i] + sizes[j]) / 2 - np.abs(gap)
        push = np.where(gap < 0, -0.5, 0.5) * overlap * (overlap == overlap.min(axis=1, keepdims=True))
        np.add.at(places, i, push)
        np.add.at(places, j, -push)
    return places


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Any]:
    """An empty figure of so many inches, at 150 dots an inch, in our style; nothing global stays changed."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks shows as a box
        figure = Figure(size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _save(figure: Any, path: Path) -> Path:
    """Writes the picture whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(part, format=path.suffix[1:] or "png")
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise RunDirError(f"cannot write {path}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return path
