"""The report page: one file of HTML with its style, script, data and pictures, which loads nothing.

`page.html` is its Jinja template: every value is escaped, and control characters become visible.
The content security policy names the script by its hash and forbids everything else.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import count, groupby
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from jaxlm.base.fields import setting_text
from jaxlm.base.hashed_json import finite
from jaxlm.base.terminal import printable
from jaxlm.base.units import MOST_UNKNOWN, mean_and_deviation, measure_name, measured, number_text
from jaxlm.config.config import PRESETS
from jaxlm.report import live
from jaxlm.report.curve import Results, draw_perplexities, draw_speeds, draw_windows
from jaxlm.report.figure import drawable, figure, svg
from jaxlm.report.live import content_hash
from jaxlm.report.sweep_plots import (
    draw_epochs,
    draw_parallel,
    draw_slice,
    result_name,
)
from jaxlm.report.sweep_results import Trial, value_text
from jaxlm.report.word_map import WordMap, drawn_map

MOST_LINES = 24  # runs in a chart; the tables hold all
MOST_BITS = 16.0  # the end of the scale of colours


T = TypeVar("T")
Section = dict[str, Any]  # what the template needs of a part of the page


@dataclass(frozen=True)
class RunRecord(Results):
    """A run without its parameters, or an n-gram model, whose config counts for its text alone."""

    path: str
    corpus: Mapping[str, Any]  # name, sha256, vocab_sha256 and description
    # Command, versions, devices and platform of each process that trained it.
    sessions: Sequence[Mapping[str, Any]] = ()
    # (Windows trained, epoch, validation perplexity).
    checkpoints: Sequence[tuple[int, int, float | None]] = ()
    order: int = field(default=0, kw_only=True)  # of an n-gram model
    grams: int = field(default=0, kw_only=True)  # how many n-grams it has

    @property
    def title(self) -> str:
        """What it is: the preset's name and what is changed."""
        if self.order:
            return f"{self.order}-gram model of {self.grams:,} n-grams"
        return self.config.title

    @cached_property
    def fields(self) -> list[tuple[str, str, str, str]]:
        """Name, value, unit and section of each field."""
        rows = [
            (name, setting_text(value), spec.unit, section)
            for section, name, spec, value in self.config.every_field()
        ]
        if self.order:
            of_text = [row for row in rows if row[-1] == "data"]
            return [("model", "ngram", "", "kinds"), ("order", str(self.order), "", ""), *of_text]
        return [*((slot, kind, "", "kinds") for slot, kind in self.config.kinds.items()), *rows]

    @cached_property
    def settings(self) -> dict[str, str]:
        """The fields but the seed: runs of equal settings differ by chance alone."""
        return {name: value for name, value, _, _ in self.fields if name != "seed"}

    @property
    def seed(self) -> str:
        """The seed; empty of an n-gram model, which has none."""
        return "" if self.order else str(self.config.train.seed)

    @property
    def unknown(self) -> dict[str, float]:
        """The share of `<unk>` among the tokens of each split that the metrics name."""
        shares = {}
        for row in (*self.epochs[-1:], *self.tests[-1:]):
            for name, value in row.items():
                if name.startswith("unknown_"):
                    shares[name.removeprefix("unknown_")] = value
        return shares

    def quality(self, perplexity: float | None) -> float:
        """A perplexity in the measure of the run's tokens; nan for None."""
        return math.nan if perplexity is None else measured(perplexity, self.tokens)


@dataclass(frozen=True)
class ModelView:
    """What the parameters of one checkpoint say."""

    run: str
    checkpoint: str  # empty: it has none
    word_map: WordMap | None
    # Title -> words, `<eos>` at a line's end, with bits of surprisal.
    texts: Mapping[str, Sequence[tuple[str, float]]]
    samples: Sequence[str]
    notes: Sequence[str]  # what could not be computed, and why
    live: str = ""  # a page that runs the model
    baseline: str = ""  # what an n-gram model makes of the same test split


@dataclass(frozen=True)
class SweepRecord:
    """A sweep: its trials, the best first, and the command that trains the best one alone."""

    name: str
    corpus: Mapping[str, Any]
    trials: Sequence[Trial]
    command: str | None = None
    model: ModelView | None = None
    importances: Mapping[str, float] = field(default_factory=dict)  # of each field, if known


@dataclass(frozen=True)
class Seeds:
    """Runs of one config, whose seeds differ.

    Results are (mean, standard deviation) in the measure of the runs' tokens, nan where unknown.
    """

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
    """The page as HTML: a section for each corpus's runs, each sweep and each model.

    Args:
        title: The page's.
        runs: In any order.
        models: Each of one of the runs.
        sweeps: In any order.
    """
    by_corpus = _grouped(runs, lambda run: str(run.corpus.get("sha256")))
    maps = (f"map-{place}" for place in count())
    sections = []
    for place, members in enumerate(by_corpus):
        sections.append(_runs_section(f"runs-{place}", members))
        names = [run.name for run in members]
        for model in models:
            if model.run in names:
                sections.append(_model_section(next(maps), f"Model of {model.run}", model))
    for place, sweep in enumerate(sweeps):
        sections.append(_sweep_section(f"sweep-{place}", sweep))
        if sweep.model:
            name = f"Best model of {sweep.name}"
            sections.append(_model_section(next(maps), name, sweep.model))
    folder = files("jaxlm.report")
    style, script = ((folder / f"page.{ending}").read_text("utf-8") for ending in ("css", "js"))
    hashes = [content_hash(script)]
    if any(section["model"].live for section in sections if "model" in section):
        hashes.append(content_hash(live.script()))
    return _template().render(
        title=title,
        sections=sections,
        corpora=len(by_corpus),
        payload=finite([section["script"] for section in sections if "script" in section]),
        most_lines=MOST_LINES,
        most_unknown=MOST_UNKNOWN,
        nan=math.nan,
        style=style,
        script=script,
        scripts=hashes,
    )


@cache
def _template() -> Template:
    """The page's HTML, compiled once in a process."""
    jinja = Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["document"] = escape
    jinja.filters["lines"] = lambda value: Markup(escape(printable(value, keep_newlines=True)))
    jinja.tests["finite"] = math.isfinite
    for function in (colour, number_text, rounded, speeds, value_text):
        jinja.globals[function.__name__] = function
    return jinja.from_string((files("jaxlm.report") / "page.html").read_text("utf-8"))


@contextmanager
def _picture(
    section: Section,
    title: str,
    width: float = 5.6,
    height: float = 3.6,
) -> Iterator[Any]:
    """The axes of one plot, which becomes the section's picture of this title."""
    with figure(width, height) as drawn:
        yield drawn.subplots()
        section["pictures"][title] = svg(drawn, f"{section['id']} {title}")


def _runs_section(name: str, runs: list[RunRecord]) -> Section:
    """The runs of one corpus."""
    rows = [row for run in runs for row in (*run.epochs, *run.tests)]
    tokens = runs[0].tokens
    section: Section = {
        "kind": "runs",
        "id": name,
        "title": f"Runs on {runs[0].corpus.get('name', 'its corpus')}",
        "runs": runs,
        "tokens": tokens,
        "measure": measure_name(tokens),
        "pictures": {},
        "groups": groups(runs),
        "published": published(runs),
        "estimated": any(row.get("train_estimated") for row in rows),
        "floor": any(name.startswith("floor_") for row in rows for name in row),
    }
    drawn = [run for run in runs if not run.order][:MOST_LINES]
    if not drawn:
        return section
    counted = [(run.name, run.test_perplexity()) for run in runs if run.order]
    with _picture(section, "Learning curves", height=3.6 + 0.1 * len(drawn)) as axes:
        draw_perplexities(axes, drawn, [*published(drawn), *counted])
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2)
    for title, series in (("Gradient norm", "grad_norm"), ("Learning rate", "learning_rate")):
        with _picture(section, title, height=2.4) as axes:
            draw_windows(axes, drawn, series)
    if any(run.timing for run in drawn):
        with _picture(section, f"{tokens.capitalize()} per second", height=2.4) as axes:
            draw_speeds(axes, drawn)
    return section


def _model_section(name: str, title: str, model: ModelView) -> Section:
    """A model, with its map of words."""
    words = model.word_map
    section: Section = {
        "kind": "model",
        "id": name,
        "title": title,
        "model": model,
        "map": None,
    }
    if words is not None:
        neighbors = [[(printable(word), cosine) for word, cosine in row] for row in words.neighbors]
        names = [printable(word) for word in words.words]
        section["script"] = {"kind": "map", "id": name, "words": names, "neighbors": neighbors}
        with drawn_map(words) as drawn:
            section["map"] = svg(drawn, name)
    return section


def _sweep_section(name: str, sweep: SweepRecord) -> Section:
    """A sweep, with pictures of its trials once two have results."""
    measure = sweep.trials[0].measure if sweep.trials else measure_name()
    section: Section = {
        "kind": "sweep",
        "id": name,
        "title": f"Sweep {sweep.name}",
        "sweep": sweep,
        "measure": measure,
        "pictures": {},
        "axes": [],
    }
    trials = [
        trial for trial in sweep.trials if np.isfinite(drawable(trial.valid[:1], measure)).all()
    ]
    if len(trials) < 2:
        return section
    section["axes"] = _filters(trials)
    section["script"] = {"kind": "sweep", "id": name, "axes": section["axes"]}
    fields = list(trials[0].values)
    with _picture(section, "Parallel coordinates", max(5.6, 1.6 * len(fields) + 2)) as axes:
        draw_parallel(axes, trials)
    with _picture(section, "Learning curves") as axes:
        draw_epochs(axes, trials)
    for place, field_name in enumerate(fields, 1):
        with _picture(section, f"{place}: {field_name}", height=3) as axes:
            draw_slice(axes, trials, field_name)
    return section


def _grouped(values: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Values of equal keys together, in the order in which the keys first occur."""
    by_key: dict[Hashable, list[T]] = {}
    for value in values:
        by_key.setdefault(key(value), []).append(value)
    return list(by_key.values())


def groups(runs: Sequence[RunRecord]) -> list[Seeds]:
    """The runs of one corpus by their configs and ends, the lowest validation result first."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [
        name
        for name in names
        if len({run.settings[name] for run in runs if name in run.settings}) > 1
    ]
    several_ends = len({_finished(run) for run in runs}) > 1
    seeds_of_configs = []
    for members in _grouped(runs, lambda run: (_finished(run), *sorted(run.settings.items()))):
        settings = {name: members[0].settings.get(name, "") for name in differing}
        if several_ends:
            settings["finished"] = _finished(members[0])
        valid = [run.quality(run.valid_perplexity) for run in members]
        test = [run.quality(run.test_perplexity()) for run in members]
        seeds_of_configs.append(
            Seeds(members, settings, mean_and_deviation(valid), mean_and_deviation(test))
        )
    return sorted(seeds_of_configs, key=lambda seeds: (math.isnan(seeds.valid[0]), seeds.valid[0]))


def _finished(run: RunRecord) -> str:
    """Whether a run was tested, and after how many windows where `--steps` cut it."""
    if not run.tests:
        return "no"
    counts = run.config.train
    steps = run.tested().get("step", 0)
    if steps and not counts.patience and len(run.epochs) < counts.epochs:
        return f"after {steps:,} windows"
    return "yes"


def published(runs: Sequence[RunRecord]) -> list[tuple[str, float]]:
    """(name, test perplexity) of the published models that the runs' presets stand for.

    They were tested on Penn Treebank; of runs on other corpora there are none.
    """
    perplexities: dict[str, float] = {}
    for run in runs:
        name = run.config.preset
        perplexity = PRESETS.get(name, {}).get("published")
        is_ptb = run.corpus.get("name") == "ptb"
        if perplexity and is_ptb and not run.config.preset_changes:
            perplexities[f"published ({name})"] = perplexity
    return list(perplexities.items())


def speeds(run: RunRecord) -> list[dict[str, Any]]:
    """A row for each epoch: windows, gradient norms, learning rate, tokens a second and seconds."""
    rows = []
    for epoch, group in groupby(run.windows, lambda row: row["epoch"]):
        windows = list(group)
        norms = [row["grad_norm"] for row in windows if math.isfinite(row["grad_norm"])]
        rows.append(
            {
                "epoch": epoch,
                "windows": len(windows),
                "mean": float(np.mean(norms)) if norms else math.nan,
                "largest": max(norms, default=math.nan),
                "learning_rate": windows[0]["learning_rate"],
                **run.timing.get(epoch, {}),
            }
        )
    return rows


def colour(bits: float) -> str:
    """The style of a word with this surprisal; empty for inf and nan."""
    if math.isfinite(bits):
        return f"--s:{min(max(bits / MOST_BITS, 0), 1) * 100:.0f}%"
    return ""


def rounded(value: float | None, digits: int = 4) -> str:
    """A number in a table.

    Args:
        value: The number.
        digits: How many it has.

    Returns:
        Its text; empty for None and nan.
    """
    if value is None or math.isnan(value):
        return ""
    if abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,g}"
    return f"{value:.3g}"


def _filters(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """What the script filters trials by: each field's choices, or ends, and each trial's value."""
    columns = {name: [trial.values[name] for trial in trials] for name in trials[0].values}
    columns[result_name(trials)] = [trial.valid[0] for trial in trials]
    keys = [str(trial.number) for trial in trials]
    axes = []
    for name, values in columns.items():
        axis = {"name": name, "choices": [], "ends": ()}
        if all(type(value) in (int, float) for value in values):
            axis["ends"] = (min(values), max(values))
        else:
            values = [printable(value_text(value)) for value in values]
            axis["choices"] = sorted(set(values))
        axes.append({**axis, "values": dict(zip(keys, values, strict=True))})
    return axes
