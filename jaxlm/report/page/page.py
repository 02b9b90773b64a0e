"""The whole page: one file of HTML with its style, script and data inside, which loads nothing.

Its content security policy names the two scripts by their hashes and forbids everything else: a script that came with
the words of a corpus would not run even if it were not escaped.
"""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

from jaxlm.errors import JaxlmError
from jaxlm.report.page.contents import Contents
from jaxlm.report.page.figures import Figures
from jaxlm.report.page.markup import Markup, element, join, script_json
from jaxlm.report.page.model_sections import model_section
from jaxlm.report.page.run_sections import corpus_line, runs_section
from jaxlm.report.page.sweep_sections import sweep_section
from jaxlm.report.page.vega import chart_library


def render(contents: Contents, title: str, library: Callable[[], str] = chart_library) -> str:
    """The page as HTML.

    Args:
        contents: the runs and sweeps to show.
        title: of the page.
        library: returns the charts' script.

    Returns:
        The page, of about 1 MB and what the tables and charts hold.

    Raises:
        JaxlmError: There is nothing to show, or the library is not installed.
    """
    if not contents.runs and not contents.sweeps:
        raise JaxlmError("there is no run and no sweep to report: name at least one")
    script = library()
    figures = Figures()
    sections = [*_runs(contents, figures), *_sweeps(contents, figures)]
    own = (files("jaxlm.report.page") / "page.js").read_text("utf-8")
    style = (files("jaxlm.report.page") / "page.css").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src {_hash(script)} {_hash(own)}; base-uri 'none'; form-action 'none'"
    )
    head = join(
        [
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", Markup(style)),
        ]
    )
    body = join(
        [
            element("a", "Skip to the results", href="#main", cls="skip"),
            element(
                "header",
                element("h1", title),
                element(
                    "nav",
                    element(
                        "ul", *(element("li", element("a", name, href=f"#{anchor}")) for anchor, name, _ in sections)
                    ),
                    aria_label="sections",
                ),
            ),
            element(
                "noscript",
                element("p", "The charts need JavaScript; the tables below hold their numbers.", cls="warning"),
            ),
            element(
                "main",
                *(element("section", element("h2", name), content, id=anchor) for anchor, name, content in sections),
                id="main",
            ),
            element("footer", element("p", "Written by jaxlm. Charts: Vega-Lite.")),
            element("script", script_json(figures.payload), type="application/json", id="payload"),
            element("script", Markup(script)),
            element("script", Markup(own)),
        ]
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _runs(contents: Contents, figures: Figures) -> list[tuple[str, object, Markup]]:
    """(anchor, title, content) for each corpus, and for the model shown of it."""
    together = contents.by_corpus
    models = {model.run: model for model in contents.models}
    found = []
    for place, runs in enumerate(together):
        name = runs[0].corpus.get("name", "its corpus")
        apart = element(
            "p",
            f"The runs of this page are on {len(together)} corpora, each in a section of its own: "
            f"perplexities on different corpora cannot be compared.",
            cls="warning",
        )
        found.append(
            (
                f"runs-{place}",
                f"Runs on {name}",
                join([apart if len(together) > 1 else "", corpus_line(runs[0].corpus), runs_section(runs, figures)]),
            )
        )
        found += [
            (f"model-{place}", f"Model of {run.name}", model_section(models[run.name], figures))
            for run in runs
            if run.name in models
        ]
    return found


def _sweeps(contents: Contents, figures: Figures) -> list[tuple[str, object, Markup]]:
    found = []
    for place, sweep in enumerate(contents.sweeps):
        found.append((f"sweep-{place}", f"Sweep {sweep.name}", sweep_section(sweep, figures)))
        if sweep.model:
            found.append((f"sweep-model-{place}", f"Best model of {sweep.name}", model_section(sweep.model, figures)))
    return found


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
