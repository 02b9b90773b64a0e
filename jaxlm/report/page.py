"""The report page: one file of HTML with its style, script, data and pictures inside, which loads nothing.

`page.html` is its Jinja template: every value is escaped, and control characters become visible. The content security
policy names the script by its hash and forbids everything else.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np

from jaxlm.config.config import PRESETS, Config
from jaxlm.data.corpus import MOST_UNKNOWN
from jaxlm.fields import setting_text
from jaxlm.hashed_json import finite
from jaxlm.report.curve import Results, Row, draw_perplexities, draw_windows, epoch_axis
from jaxlm.report.figure import PALETTE, drawable, figure, marks, svg
from jaxlm.report.sweep_plots import (
    PERPLEXITY,
    TrialRecord,
    draw_epochs,
    draw_parallel,
    draw_slice,
    value_text,
)
from jaxlm.report.word_map import WordMap, drawn_map
from jaxlm.terminal import printable
from jaxlm.units import mean_and_deviation, spread

MOST_LINES = 24  # runs in a chart; the tables hold all
MOST_BITS = 16.0  # the end of the scale of colours


@dataclass(frozen=True)
class RunRecord(Results):
    """A run without its parameters."""

    path: str
    config: Config
    corpus: Mapping[str, Any]  # name, sha256, vocab_sha256 and description
    sessions: Sequence[
        Mapping[str, Any]
    ]  # command, versions, devices and platform of each process that trained it
    checkpoints: Sequence[
        tuple[int, int, float | None]
    ]  # (windows trained, epoch, validation perplexity)
    timing: Mapping[int, Row]  # seconds and words_per_second of each epoch

    @property
    def settings(self) -> dict[str, str]:
        """The config without its seed: runs of equal settings differ by chance alone."""
        fields = {
            name: setting_text(value)
            for _, name, _, value in self.config.every_field()
            if name != "seed"
        }
        return {**self.config.kinds, **fields}

    @property
    def unknown(self) -> dict[str, float]:
        """The share of `<unk>` among the tokens of each split that the metrics name."""
        rows = [*self.epochs[-1:], *self.tests[-1:]]
        return {
            name[8:]: value
            for row in rows
            for name, value in row.items()
            if name.startswith("unknown_")
        }


@dataclass(frozen=True)
class ModelView:
    """What the parameters of one checkpoint say; `notes` names what could not be computed, and why."""

    run: str
    checkpoint: str
    word_map: WordMap | None
    texts: Mapping[
        str, Sequence[tuple[str, float]]
    ]  # title -> words, `<eos>` at a line's end, with bits of surprisal
    samples: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class SweepRecord:
    """A sweep: its trials, the best first, and the command that trains the best one alone."""

    name: str
    corpus: Mapping[str, Any]
    trials: Sequence[TrialRecord]
    command: str | None = None
    model: ModelView | None = None


def _together(
    runs: Sequence[RunRecord], key: Callable[[RunRecord], Hashable]
) -> list[list[RunRecord]]:
    found: dict[Hashable, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return list(found.values())


@dataclass(frozen=True)
class Seeds:
    """Runs of one config, whose seeds differ; perplexities are (mean, standard deviation), nan where unknown."""

    runs: list[RunRecord]
    settings: dict[str, str]  # where the groups differ
    valid: tuple[float, float]
    test: tuple[float, float]


def render(
    title: str,
    runs: Sequence[RunRecord] = (),
    models: Sequence[ModelView] = (),
    sweeps: Sequence[SweepRecord] = (),
) -> str:
    """The page as HTML: a section for each corpus's runs, each sweep and each model, which is one of a run."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    sections: list[dict[str, Any]] = []
    payload: dict[str, list[dict[str, Any]]] = {"maps": [], "sweeps": []}

    def add_model(title: str, model: ModelView) -> None:
        words = model.word_map
        name = f"map-{len(payload['maps'])}"
        picture = None
        if words is not None:
            near = [[(printable(word), cosine) for word, cosine in row] for row in words.neighbors]
            payload["maps"].append(
                {"id": name, "words": [*map(printable, words.words)], "neighbors": near}
            )
            with drawn_map(words) as drawn:
                picture = svg(drawn, name)
        sections.append(
            {"kind": "model", "title": title, "model": model, "map": picture, "map_id": name}
        )

    together = _together(runs, lambda run: str(run.corpus.get("sha256")))
    for place, some in enumerate(together):
        pictures = _run_pictures(some[:MOST_LINES], place)
        name = some[0].corpus.get("name", "its corpus")
        estimated = any(row.get("train_estimated") for run in some for row in run.epochs)
        facts = {"groups": groups(some), "published": published(some), "estimated": estimated}
        sections.append(
            {
                "kind": "runs",
                "title": f"Runs on {name}",
                "runs": some,
                "pictures": pictures,
                **facts,
            }
        )
        for model in models:
            if model.run in [run.name for run in some]:
                add_model(f"Model of {model.run}", model)
    for place, sweep in enumerate(sweeps):
        name = f"sweep-{place}"
        pictures, axes = _sweep_pictures(sweep, name)
        if axes:
            payload["sweeps"].append({"id": name, "axes": axes})
        facts = {"sweep": sweep, "sweep_id": name, "axes": axes, "pictures": pictures}
        sections.append({"kind": "sweep", "title": f"Sweep {sweep.name}", **facts})
        if sweep.model:
            add_model(f"Best model of {sweep.name}", sweep.model)

    def text(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        return printable(str(value))

    jinja = Environment(
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["lines"] = lambda value: Markup(escape(printable(value, keep_newlines=True)))
    jinja.tests["finite"] = math.isfinite
    own = files("jaxlm.report")
    page, style, script = (
        (own / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values: dict[str, Any] = {
        one.__name__: one for one in (colour, rounded, setting_text, speeds, spread, value_text)
    }
    values |= {"most_lines": MOST_LINES, "most_unknown": MOST_UNKNOWN, "nan": math.nan}
    values |= {
        "title": title,
        "sections": sections,
        "corpora": len(together),
        "payload": finite(payload),
    }
    return jinja.from_string(page).render(values, style=style, script=script, digest=digest)


def groups(runs: Sequence[RunRecord]) -> list[Seeds]:
    """The runs of one corpus by their configs and ends, the lowest mean validation perplexity first."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    found = []
    several_ends = len({*map(_finished, runs)}) > 1
    for members in _together(runs, lambda run: (_finished(run), *sorted(run.settings.items()))):
        settings = {name: members[0].settings.get(name, "") for name in differing}
        if several_ends:
            settings["finished"] = _finished(members[0])
        valid = mean_and_deviation([run.valid_perplexity for run in members])
        found.append(
            Seeds(
                members,
                settings,
                valid,
                mean_and_deviation([run.test_perplexity() for run in members]),
            )
        )
    return sorted(found, key=lambda group: (math.isnan(group.valid[0]), group.valid[0]))


def _finished(run: RunRecord) -> str:
    """Whether a run was tested, and after how many windows where `--steps`, which is in no config, cut it."""
    cut = not run.config.train.patience and len(run.epochs) < run.config.train.epochs
    steps = run.tested().get("step", 0) if cut else 0
    if run.tests:
        if steps:
            return f"after {steps:,} windows"
        return "yes"
    return "no"


def published(runs: Sequence[RunRecord]) -> list[tuple[str, float]]:
    """(name, test perplexity) of the published models that the runs' presets stand for, on Penn Treebank alone."""
    presets = dict.fromkeys(run.config.preset for run in runs if run.corpus.get("name") == "ptb")
    known = {preset: PRESETS.get(preset, {}).get("published") for preset in presets}
    return [(f"published ({preset})", value) for preset, value in known.items() if value]


def speeds(run: RunRecord) -> list[dict[str, Any]]:
    """A row for each epoch: windows, mean and largest finite gradient norm, learning rate, words/s and seconds."""
    found = []
    for epoch, windows in groupby(run.windows, lambda row: row["epoch"]):
        own = list(windows)
        norms = [row["grad_norm"] for row in own if math.isfinite(row["grad_norm"])] or [math.nan]
        row = {
            "epoch": epoch,
            "windows": len(own),
            "mean": float(np.mean(norms)),
            "largest": max(norms),
        }
        found.append({**row, "learning_rate": own[0]["learning_rate"], **run.timing.get(epoch, {})})
    return found


def colour(bits: float) -> str:
    """The style of a word with this surprisal; empty for inf and nan."""
    if math.isfinite(bits):
        return f"--s:{min(max(bits / MOST_BITS, 0), 1) * 100:.0f}%"
    return ""


def rounded(value: float | None, digits: int = 4) -> str:
    """A number in a table; empty for None and nan."""
    if value is None or math.isnan(value):
        return ""
    if abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,g}"
    return f"{value:.3g}"


def _picture(
    name: str, draw: Callable[[Any], object], width: float = 5.6, height: float = 3.6
) -> str:
    """One plot as SVG; `draw` is given its axes."""
    with figure(width, height) as drawn:
        draw(drawn.subplots())
        return svg(drawn, name)


def _run_pictures(runs: Sequence[RunRecord], place: int) -> dict[str, str]:
    def perplexities(axes: Any) -> None:
        draw_perplexities(axes, runs, published(runs))
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2)

    def speed(axes: Any) -> None:
        for at, run in enumerate(runs):
            rows = [(epoch, row["words_per_second"]) for epoch, row in sorted(run.timing.items())]
            titles = [f"{run.name}, epoch {epoch}: {words:,.0f} words/s" for epoch, words in rows]
            line = np.array(rows, float).reshape(-1, 2).T
            axes.plot(*line, "o-", color=PALETTE[at % len(PALETTE)], gid=marks(titles))
        axes.set(ylabel="words per second", ylim=(0, None))
        epoch_axis(axes, runs)

    found = {
        "Learning curves": _picture(f"curves {place}", perplexities, height=3.6 + 0.1 * len(runs)),
        "Gradient norm": _picture(
            f"norms {place}", lambda axes: draw_windows(axes, runs, "grad_norm"), height=2.4
        ),
        "Learning rate": _picture(
            f"rates {place}", lambda axes: draw_windows(axes, runs, "learning_rate"), height=2.4
        ),
    }
    if any(run.timing for run in runs):
        found["Words per second"] = _picture(f"speed {place}", speed, height=2.4)
    return found


def _sweep_pictures(sweep: SweepRecord, name: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The pictures: of all fields, of the epochs, of each field; fields for the script; none without two results."""
    trials = [trial for trial in sweep.trials if np.isfinite(drawable(trial.valid[:1])).all()]
    if len(trials) < 2:
        return {}, []
    fields = list(trials[0].values)
    wide = max(5.6, 1.6 * len(fields) + 2)
    found = {
        "Parallel coordinates": _picture(
            f"{name} all", lambda axes: draw_parallel(axes, trials), wide
        ),
        "Learning curves": _picture(f"{name} epochs", lambda axes: draw_epochs(axes, trials)),
    }
    for place, field in enumerate(fields):
        draw = partial(draw_slice, trials=trials, field=field)
        found[f"{place + 1}: {field}"] = _picture(f"{name} field {place}", draw, height=3)
    axes = []
    keys = [str(trial.number) for trial in trials]
    for field in (*fields, PERPLEXITY):
        values = [{**trial.values, PERPLEXITY: trial.valid[0]}[field] for trial in trials]
        numeric = all(type(value) in (int, float) for value in values)
        texts = values if numeric else [printable(value_text(value)) for value in values]
        choices, ends = ([], (min(values), max(values))) if numeric else (sorted(set(texts)), ())
        axes.append(
            {
                "name": field,
                "choices": choices,
                "values": dict(zip(keys, texts, strict=True)),
                "ends": ends,
            }
        )
    return found, axes
