"""The style that all pictures share, and saving them.

Each picture is drawn on a `Figure` of its own, with Agg and without pyplot: no display is needed, and the caller's
matplotlib stays as it was.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import RunDirError
from jaxlm.files import reason, write_bytes
from jaxlm.terminal import printable

INK, PALE = "#374151", "#9ca3af"
BLUE, ORANGE, GREEN = "#2563eb", "#ea580c", "#059669"
_LONGEST_LABEL = 80  # letters
_STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "text.parse_math": False,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#d1d5db",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure in jaxlm's style, at 150 dots an inch.

    Args:
        width: inches.
        height: inches.

    Yields:
        A matplotlib Figure, to be drawn and saved inside the block.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
        drawn = Figure((width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn


def save(drawn: Any, path: Path) -> Path:
    """Writes a figure to a file, whole or not at all.

    Args:
        drawn: a figure of `figure`.
        path: where to; its ending chooses the format (default: PNG).

    Returns:
        The path.

    Raises:
        RunDirError: The format is unknown, or the file cannot be written.
    """
    picture = io.BytesIO()
    try:
        drawn.savefig(picture, format=path.suffix[1:] or "png")
        write_bytes(path, picture.getvalue())
    except (OSError, ValueError) as error:
        raise RunDirError(f"cannot write {path}: {reason(error)}") from None
    return path


def label(text: str) -> str:
    """Text of a file as a label: control characters as escapes, shortened where it is too long to draw."""
    return printable(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…")


def drawable(perplexities: Sequence[float] | np.ndarray) -> np.ndarray:
    """Perplexities as floats [n], nan (a gap) where one has no place on the axis."""
    values = np.array(perplexities, float)
    return np.where((values >= 1) & (values < 1e30), values, np.nan)


def perplexity_axis(axes: Any, values: np.ndarray) -> None:
    """Makes y a log scale around values [n], with round numbers at its ticks."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    some = np.isfinite(values).any()
    axes.set_ylim(*((np.nanmin(values) / 1.08, np.nanmax(values) * 1.3) if some else (1, 1000)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
