"""HTML from text that strangers wrote: every letter is escaped here, and nowhere else."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.files import finite
from jaxlm.terminal import printable


class Markup(str):
    """HTML that is finished; all other text is escaped where it enters a page."""


def text(value: object, *, keep_newlines: bool = False) -> Markup:
    """Any value as HTML: markup as it is, other text without control characters and with `<`, `>`, `&` and quotes
    escaped."""
    return (
        value
        if isinstance(value, Markup)
        else Markup(html.escape(printable(str(value), keep_newlines=keep_newlines), quote=True))
    )


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """`<name ...>content</name>`; an attribute's `_` stands for `-`, one of None or False is left out.

    Args:
        name: of the element.
        *content: text, which is escaped, or markup.
        **attributes: `cls` is the class; True is an attribute without a value.
    """
    pairs = {
        "class" if key == "cls" else key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None and value is not False
    }
    head = "".join(f" {key}" if value is True else f' {key}="{text(value)}"' for key, value in pairs.items())
    inner = "".join(map(text, content))
    return Markup(f"<{name}{head}>" + ("" if name in ("input", "meta", "br") else f"{inner}</{name}>"))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(between.join(map(text, parts)))


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    row_attributes: Sequence[dict[str, object]] | None = None,
) -> Markup:
    """A table that scrolls by itself where it is wide; numbers are set to the right.

    Args:
        head: the columns' names.
        rows: of cells; the first names its row.
        caption: what the table shows.
        row_attributes: of each row, as `element` takes them.
    """
    rows = [list(row) for row in rows]
    right = [
        bool(rows)
        and all(_is_number(row[place]) or row[place] == "" for row in rows)
        and any(_is_number(row[place]) for row in rows)
        for place in range(len(head))
    ]
    body = []
    for place, row in enumerate(rows):
        first, *rest = row
        cells = [
            element("th", _cell(first), scope="row"),
            *(
                element("td", _cell(cell), cls="number" if at_right else None)
                for cell, at_right in zip(rest, right[1:], strict=True)
            ),
        ]
        body.append(element("tr", *cells, **(row_attributes[place] if row_attributes else {})))
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element(
                "thead",
                element(
                    "tr",
                    *(
                        element("th", name, scope="col", cls="number" if at_right and place else None)
                        for place, (name, at_right) in enumerate(zip(head, right, strict=True))
                    ),
                ),
            ),
            element("tbody", *body),
        ),
        cls="wide",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def details(summary: object, *content: object, open_: bool = False) -> Markup:
    """Content that is folded until it is asked for."""
    return element("details", element("summary", summary), *content, open=open_)


def number(value: float | None, digits: int = 4) -> str:
    """A number in a table; empty where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}g}" if abs(value) < 1e6 else f"{value:.3g}"


def script_json(tree: Any) -> Markup:
    """JSON that may stand in a `<script>` element: no `<`, no line separators, no numbers that JSON lacks."""
    plain = json.dumps(finite(tree), separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 is an escape
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _cell(value: object) -> object:
    return number(value) if isinstance(value, float) else f"{value:,}" if type(value) is int else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str)
        and not isinstance(value, Markup)
        and value[:1].isdigit()
        and value.replace(" ± ", "").replace(",", "").replace(".", "").replace("e+", "").isdigit()
    )
