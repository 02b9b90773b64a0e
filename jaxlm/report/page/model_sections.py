"""The parts of a page that show a model: the map of its words, texts by surprisal, and what it generates."""

import math

from jaxlm.report.page import charts
from jaxlm.report.page.contents import ModelView, ScoredText, WordMap
from jaxlm.report.page.figures import Figures
from jaxlm.report.page.markup import Markup, details, element, join, table, text

EOS, NO_BREAK = "<eos>", "\N{NO-BREAK SPACE}"
MOST_BITS = 16.0  # the end of the scale of colours


def model_section(model: ModelView, figures: Figures) -> Markup:
    """The section of one model.

    Args:
        model: what to show.
        figures: where the map is added.

    Returns:
        The section's content.
    """
    parts: list[object] = [
        element("p", f"From the {model.checkpoint} checkpoint of ", element("b", model.run), ".", cls="note"),
        *(element("p", note, cls="warning") for note in model.notes),
    ]
    if model.word_map is not None:
        parts += [element("h3", "Map of the words"), _map(model.word_map, figures)]
    if model.texts:
        parts += [element("h3", "Surprisal"), _legend(), *map(_text, model.texts)]
    if model.samples:
        parts += [
            element("h3", "Samples"),
            *(element("blockquote", text(sample, keep_newlines=True), cls="sample") for sample in model.samples),
        ]
    return join(parts)


def _map(words: WordMap, figures: Figures) -> Markup:
    name = f"maps-{len(figures.payload['maps'])}"
    found = f"{name}-found"
    chart = figures.chart(
        f"The {len(words.words)} most frequent words ({words.method})",
        charts.word_map(words),
        zoom=True,
        kind="maps",
        words=[str(text_of) for text_of in words.words],
        neighbors=[[[word, cosine] for word, cosine in near] for near in words.neighbors],
    )
    search = element(
        "form",
        element(
            "label",
            "Find a word ",
            element(
                "input", type="search", list=f"{name}-words", autocomplete="off", spellcheck="false", data_search=name
            ),
        ),
        element("button", "Show", type="submit"),
        element("button", "Clear", type="button", data_clear=name),
        cls="tools",
        data_form=name,
    )
    options = element("datalist", *(element("option", value=word) for word in words.words), id=f"{name}-words")
    rows = [
        [word, ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)]
        for word, near in zip(words.words, words.neighbors, strict=True)
    ]
    return join(
        [
            search,
            options,
            element(
                "div",
                element("p", "Choose a word: its nearest neighbours light up.", cls="note"),
                id=found,
                aria_live="polite",
                cls="found",
            ),
            chart,
            element(
                "p",
                "Drag to move, the buttons or Ctrl and the wheel to zoom, double-click to reset.",
                cls="note screen",
            ),
            details(
                "Table: the nearest neighbours of each word",
                table(["word", "nearest words (cosine of the embeddings)"], rows, caption="Nearest neighbours"),
            ),
        ]
    )


def _legend() -> Markup:
    steps = [element("span", f"{bits:g}", cls="word", style=_colour(bits)) for bits in (0, 2, 4, 6, 8, 10, 12, 14, 16)]
    return element(
        "p", "Each word is coloured by its surprisal in bits (log₂ of 1 / probability): ", *steps, cls="note"
    )


def _text(scored: ScoredText) -> Markup:
    words = []
    for word, bits, after in zip(scored.words, scored.bits, [*scored.words[1:], ""], strict=True):
        ends = word == EOS
        between = element("br") if ends else NO_BREAK if after == EOS else " "
        words += [
            element(
                "span", "⏎" if ends else word, cls="word", style=_colour(bits), title=f"{word}: {_bits(bits)} bits"
            ),
            between,
        ]
    known = [bits for bits in scored.bits if math.isfinite(bits)]
    mean = f"{sum(known) / len(known):.2f} bits a word over {len(known):,} words" if known else "no word is scored"
    rows = [
        [place, word, _bits(bits)] for place, (word, bits) in enumerate(zip(scored.words, scored.bits, strict=True), 1)
    ]
    return join(
        [
            element("h4", scored.title),
            element("p", *words, cls="scored"),
            element("p", mean, cls="note"),
            details(
                "Table: surprisal of each word",
                table(["place", "word", "surprisal, bits"], rows, caption=f"Surprisal: {scored.title}"),
            ),
        ]
    )


def _colour(bits: float) -> str | None:
    return f"--s:{min(max(bits / MOST_BITS, 0), 1) * 100:.0f}%" if math.isfinite(bits) else None


def _bits(bits: float) -> str:
    return f"{bits:.2f}" if math.isfinite(bits) else "not known"
