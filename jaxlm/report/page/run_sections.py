"""The parts of a page that show runs: results, curves, training, and what each run was."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxlm.report.page import charts
from jaxlm.report.page.contents import RunRecord
from jaxlm.report.page.figures import Figures
from jaxlm.report.page.markup import Markup, details, element, join, number, table
from jaxlm.report.page.results import groups, published
from jaxlm.report.units import spread

MOST_LINES = 24  # runs in a chart; the tables hold all


def runs_section(runs: Sequence[RunRecord], figures: Figures) -> Markup:
    """Everything about the runs of one corpus but their models.

    Args:
        runs: at least one.
        figures: where the charts are added.

    Returns:
        The section's content.
    """
    drawn = runs[:MOST_LINES]
    note = "" if len(drawn) == len(runs) else f" The charts show {MOST_LINES} of {len(runs)} runs; the tables show all."
    return join(
        [
            element("h3", "Results"),
            _results(runs),
            element("h3", "Learning curves"),
            element(
                "p",
                "Dashed, triangles: training. Solid, circles: validation. Diamond: test. Choose a run below the "
                f"chart to see it alone.{note}",
                cls="note",
            ),
            figures.chart("Learning curves", charts.learning_curves(drawn, published(runs)), zoom=True),
            details("Table: perplexities of each epoch", _epochs(runs)),
            element("h3", "Training"),
            element(
                "p",
                "The gradient's global norm is that before clipping, averaged over neighbouring windows.",
                cls="note",
            ),
            *_training(drawn, figures),
            details("Table: gradient norm, learning rate and speed of each epoch", _speeds(runs)),
            element("h3", "What was run"),
            *map(_run, runs),
        ]
    )


def corpus_line(corpus: Any) -> Markup:
    """A corpus by its description and hashes."""
    return element(
        "p",
        corpus.get("description", corpus.get("name", "")),
        element("br"),
        element(
            "small",
            "sha256 ",
            element("code", corpus.get("sha256", "")),
            ", vocabulary ",
            element("code", corpus.get("vocab_sha256", "")),
        ),
        cls="note",
    )


def _results(runs: Sequence[RunRecord]) -> Markup:
    found = groups(runs)
    names = list(found[0].settings)
    head = ["config", *names, "seeds", "validation perplexity", "test perplexity", "runs"]
    rows: list[list[object]] = [
        [
            _title(place, group.runs),
            *group.settings.values(),
            ", ".join(str(run.seed) for run in group.runs),
            spread(*group.valid),
            spread(*group.test),
            ", ".join(run.name for run in group.runs),
        ]
        for place, group in enumerate(found, 1)
    ]
    rows.extend([name, *[""] * len(names), "", "", f"{value:.2f}", ""] for name, value in published(runs))
    single = [
        [
            run.name,
            run.preset,
            run.seed,
            run.epochs[-1]["epoch"],
            spread(run.valid_perplexity),
            spread(run.test_perplexity),
            _best_test(run),
        ]
        for run in runs
    ]
    return join(
        [
            table(head, rows, caption="Results: mean ± standard deviation over the seeds of one config"),
            details(
                "Table: each run",
                table(
                    [
                        "run",
                        "preset",
                        "seed",
                        "epochs",
                        "validation perplexity",
                        "test perplexity (last checkpoint)",
                        "test perplexity (best checkpoint)",
                    ],
                    single,
                    caption="Results of each run",
                ),
            ),
        ]
    )


def _title(place: int, runs: Sequence[RunRecord]) -> str:
    return f"{place}: {runs[0].preset}"


def _best_test(run: RunRecord) -> str:
    found = [
        row["test_perplexity"] for row in run.tests if row.get("checkpoint") == "best" and "test_perplexity" in row
    ]
    return spread(found[-1]) if found else ""


def _epochs(runs: Iterable[RunRecord]) -> Markup:
    rows = [
        [
            run.name,
            row["epoch"],
            spread(row.get("train_perplexity", np.nan)),
            spread(row.get("valid_perplexity", np.nan)),
            number(row.get("floor_valid")),
        ]
        for run in runs
        for row in run.epochs
    ]
    return table(
        ["run", "epoch", "training", "validation", "floor of validation"], rows, caption="Perplexity of each epoch"
    )


def _training(runs: Sequence[RunRecord], figures: Figures) -> list[Markup]:
    found = [
        figures.chart("Gradient norm", charts.gradient_norms(runs), zoom=True),
        figures.chart("Learning rate", charts.learning_rates(runs), zoom=True),
    ]
    if any(run.timing for run in runs):
        found.append(figures.chart("Words per second", charts.words_per_second(runs), zoom=True))
    return [element("div", *found, cls="grid")]


def _speeds(runs: Iterable[RunRecord]) -> Markup:
    rows = []
    for run in runs:
        epochs = np.array([row["epoch"] for row in run.windows])
        norms, rates = (np.array([row[name] for row in run.windows], float) for name in ("grad_norm", "learning_rate"))
        speed = {row["epoch"]: row for row in run.timing}
        for epoch in sorted(set(epochs.tolist())):
            own = norms[epochs == epoch]
            finite = own[np.isfinite(own)]
            timed = speed.get(epoch, {})
            rows.append(
                [
                    run.name,
                    epoch,
                    len(own),
                    number(float(finite.mean())) if len(finite) else "",
                    number(float(finite.max())) if len(finite) else "",
                    number(float(rates[epochs == epoch][0])),
                    number(timed.get("words_per_second")),
                    number(timed.get("seconds")),
                ]
            )
    return table(
        ["run", "epoch", "windows", "mean gradient norm", "largest", "learning rate", "words per second", "seconds"],
        rows,
        caption="Training of each epoch",
    )


def _run(run: RunRecord) -> Markup:
    last = run.sessions[-1]
    facts = [
        ["directory", element("code", run.path)],
        *(["command", element("code", one.get("command", ""))] for one in run.sessions),
        ["corpus sha256", element("code", run.corpus.get("sha256", ""))],
        ["vocabulary sha256", element("code", run.corpus.get("vocab_sha256", ""))],
        ["versions", _pairs(last.get("versions"))],
        ["platform", _pairs(last.get("platform"))],
        ["devices (rows x words)", " x ".join(map(str, _list(last.get("devices"))))],
    ]
    fields = [[name, value, unit, section] for section, name, value, unit in run.fields]
    checkpoints = [
        [f"{step:,}", epoch, "" if valid is None else spread(valid)] for step, epoch, valid in run.checkpoints
    ]
    return details(
        run.name,
        element(
            "div",
            table(["", ""], facts, caption="Where it comes from"),
            table(["field", "value", "unit", "section"], fields, caption="Config"),
            table(["windows trained", "epoch", "validation perplexity"], checkpoints, caption="Checkpoints"),
            cls="facts",
        ),
    )


def _pairs(tree: Any) -> str:
    return (
        ", ".join(
            f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in tree.items()
        )
        if isinstance(tree, dict)
        else ""
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
