"""The style that all pictures share; a picture as a file, or as SVG inside the report page.

Each picture is a `Figure` of its own, without pyplot: no display is needed, and nobody's
matplotlib is touched.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jaxlm.base.errors import RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.terminal import printable

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
_VARIABLES = {colour: f"var(--c{place})" for place, colour in enumerate(PALETTE)}
_VARIABLES |= {INK: "var(--ink)", PALE: "var(--soft)", RULE: "var(--rule)", GRID: "var(--rule)"}
_LONGEST_LABEL = 80  # letters
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
# What the ticks of a log scale are multiples of, within each power of ten: dense to sparse.
_MULTIPLES = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
)


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib Figure, to be drawn and saved inside the block.

    Its canvas has one renderer, which measures texts before they are drawn.

    Args:
        width: In inches.
        height: In inches.
    """
    import matplotlib  # takes a second, which only a picture should cost
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph")
        yield FigureCanvasAgg(Figure((width, height), dpi=150, layout="constrained")).figure


def save(drawn: Any, path: Path) -> Path:
    """Writes a figure whole or not at all, replacing a link.

    Args:
        drawn: The figure.
        path: The file, whose ending is the format.

    Returns:
        The path.

    Raises:
        RunDirError: It cannot be written.
    """
    with (
        explained(RunDirError, f"cannot write {path}"),
        Folder.open(path.parent) as folder,
        folder.replacing(path.name) as file,
    ):
        drawn.savefig(file, format=path.suffix[1:] or "png")
    return path


def marks(titles: Sequence[str], keys: Sequence[str] = ()) -> str:
    """A gid from which `svg` makes titles (tooltips) and attributes `data-key`.

    Args:
        titles: One for each mark of the artist, or a single one for the artist.
        keys: One for each mark of the artist, or a single one for the artist.
    """
    return json.dumps([[printable(title) for title in titles], list(keys)])


def svg(drawn: Any, name: str) -> str:
    """A figure as an `<svg>` element in the page's colours.

    Args:
        drawn: The figure.
        name: Unlike that of any other picture: the ids of the elements are made from it.
    """
    import matplotlib

    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(picture.getvalue())
    for element in root.iter():
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        element.tag = _without_namespace(element.tag)
        element.attrib = {_without_namespace(key): value for key, value in element.attrib.items()}
        if element.tag == "g":  # nothing refers to the ids of groups
            gid = element.attrib.pop("id", "")
            if gid.startswith("["):
                _annotate(element, *json.loads(gid))
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": printable(name)}
    text = re.sub(r">\s+<", "><", ElementTree.tostring(root, "unicode"))
    return re.sub("#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), text)


def _without_namespace(name: str) -> str:
    """The name as HTML has it."""
    return name.rpartition("}")[2]


def _annotate(
    artist: ElementTree.Element,
    titles: list[str],
    keys: list[str],
) -> None:
    """Gives an artist, or its marks in the order in which they were drawn, titles and keys."""
    shapes = [shape for shape in artist.iter() if shape.tag.endswith("use")]
    for shape, key in zip([artist] if len(keys) == 1 else shapes, keys, strict=False):
        shape.set("data-key", key)
    for shape, text in zip([artist] if len(titles) == 1 else shapes, titles, strict=False):
        title = ElementTree.Element("title")
        title.text = text
        shape.insert(0, title)


def label(text: str) -> str:
    """Text of a file as a label: control characters as escapes, and shortened if it is long."""
    if len(text) > _LONGEST_LABEL:
        text = text[: _LONGEST_LABEL - 1] + "…"
    return printable(text)


def drawable(results: Sequence[float] | np.ndarray, measure: str = "perplexity") -> np.ndarray:
    """Results in a measure as floats [n], nan (a gap) where one has no place on the axis."""
    values = np.array(results, float)
    least = 1 if measure == "perplexity" else 0
    return np.where((values >= least) & (values < 1e30), values, np.nan)


def log_axis(
    axes: Any,
    which: str,
    most: int = 5,
) -> None:
    """Makes an axis a log scale, with plain numbers at its ticks.

    Args:
        axes: What was drawn.
        which: "x" or "y".
        most: How many ticks there may be.
    """
    from matplotlib.ticker import NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    limits = getattr(axes, f"get_{which}lim")()
    axis.set_ticks(log_ticks(*sorted(limits), most=most))
    axis.set_major_formatter(lambda value, _: f"{value:,g}" if value >= 1 else f"{value:.3g}")
    axis.set_minor_locator(NullLocator())
    getattr(axes, f"set_{which}lim")(limits)


def log_ticks(
    low: float,
    high: float,
    most: int = 5,
) -> list[float]:
    """Round numbers for the ticks of a log scale, as many as there is room for.

    >>> log_ticks(0.9, 6), log_ticks(1e-5, 20)
    ([1.0, 1.5, 2.0, 3.0, 5.0], [1e-05, 0.001, 0.1, 10.0])

    Args:
        low: The axis's lower end, above 0.
        high: Its upper end.
        most: How many ticks there may be.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in _MULTIPLES:
        ticks = [
            float(f"{multiple}e{exponent}") for exponent in exponents for multiple in multiples
        ]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def result_axis(axes: Any, values: np.ndarray, measure: str) -> None:
    """Sets y's limits around values [n]; perplexities have a log scale with round numbers."""
    has_values = np.isfinite(values).any()
    if measure != "perplexity":
        if has_values:
            axes.set_ylim(0.96 * np.nanmin(values), 1.04 * np.nanmax(values))
        return
    limits = (1.0, 1000.0)
    if has_values:
        limits = (np.nanmin(values) / 1.08, np.nanmax(values) * 1.3)
    axes.set_ylim(*limits)
    log_axis(axes, "y", most=9)
