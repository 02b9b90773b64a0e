"""The style that all pictures share; a picture as a file, or as SVG inside the report page.

Each picture is a `Figure` of its own, without pyplot: no display is needed, and nobody's matplotlib is touched.
"""

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jaxlm.errors import RunDirError
from jaxlm.files import Folder, explained
from jaxlm.terminal import printable

INK = "#374151"
PALE = "#9ca3af"
RULE = "#d1d5db"
GRID = "#eceef1"
BLUE = "#2563eb"
ORANGE = "#ea580c"
GREEN = "#059669"
PALETTE = (
    BLUE,
    ORANGE,
    GREEN,
    "#dc2626",
    "#7c3aed",
    "#854d0e",
    "#db2777",
    "#0891b2",
    "#65a30d",
    "#475569",
)
# The page's style sheet gives each colour a value for white and for black paper.
_VARIABLES = {
    **{colour: f"var(--c{place})" for place, colour in enumerate(PALETTE)},
    **{INK: "var(--ink)", PALE: "var(--soft)", RULE: "var(--rule)", GRID: "var(--rule)"},
}
_LONGEST_LABEL = 80  # letters
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("text.usetex", "text.parse_math", "legend.frameon"), False),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **{"axes.edgecolor": RULE, "grid.color": GRID},
    **{"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none"},
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib Figure of so many inches, to be drawn and saved inside the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # a letter that the font lacks is drawn as a box
        yield Figure((width, height), dpi=150, layout="constrained")


def save(drawn: Any, path: Path) -> Path:
    """Writes a figure whole or not at all, replacing a link; its path's ending is its format. Raises RunDirError."""
    what = f"cannot write {path}"
    with (
        explained(RunDirError, what),
        Folder.open(path.parent) as folder,
        folder.replacing(path.name) as file,
    ):
        drawn.savefig(file, format=path.suffix[1:] or "png")
    return path


def marks(titles: Sequence[str], key: str = "") -> str:
    """A gid that `svg` turns into a title (a tooltip) for each mark of an artist, or one for all, and a `data-key`."""
    return json.dumps([[printable(title) for title in titles], key])


def svg(drawn: Any, name: str) -> str:
    """A figure as an `<svg>` element in the page's colours; its ids are made from a name that no other picture has."""
    import matplotlib

    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(picture.getvalue())
    for element in root.iter():
        for child in [child for child in element if child.tag.endswith(("}metadata", "}style"))]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]  # (HTML needs no namespaces)
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        gid = (
            element.attrib.pop("id", "") if element.tag == "g" else ""
        )  # (the ids of shapes alone are referred to)
        if gid.startswith("["):
            titles, key = json.loads(gid)
            # A picture's points are <use> elements, in the order in which they were drawn.
            parts = [part for part in element.iter() if part.tag.endswith("use")] or [element]
            for part, title in zip([element] if len(titles) == 1 else parts, titles, strict=False):
                part.insert(0, ElementTree.Element("title"))
                part[0].text = title
            if key:
                element.set("data-key", key)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": printable(name)}
    text = re.sub(r">\s+<", "><", ElementTree.tostring(root, "unicode"))
    return re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), text)


def label(text: str) -> str:
    """Text of a file as a label: control characters as escapes, shortened where it is too long to draw."""
    return printable(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…")


def drawable(perplexities: Sequence[float] | np.ndarray) -> np.ndarray:
    """Perplexities as floats [n], nan (a gap) where one has no place on the axis."""
    values = np.array(perplexities, float)
    return np.where((values >= 1) & (values < 1e30), values, np.nan)


def log_axis(axes: Any, which: str, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Makes the axis "x" or "y" a log scale, with plain numbers at its ticks: each power of ten times one of `subs`."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: f"{value:,g}" if value >= 1 else f"{value:.3g}")
    axis.set_minor_locator(NullLocator())


def perplexity_axis(axes: Any, values: np.ndarray) -> None:
    """Makes y a log scale around values [n], with round numbers at its ticks."""
    log_axis(axes, "y", (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    some = np.isfinite(values).any()
    axes.set_ylim(*((np.nanmin(values) / 1.08, np.nanmax(values) * 1.3) if some else (1, 1000)))
