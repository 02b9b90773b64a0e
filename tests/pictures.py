"""Runs and sweeps without their pictures, each of which takes half a second to draw."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

# The module that draws at a run's or a sweep's end, and the name that it calls.
DRAWN = (
    ("jaxlm.runs.trainer", "learning_curve"),
    ("jaxlm.report.sweep_files", "slice_plot"),
    ("jaxlm.report.sweep_files", "parallel_plot"),
)

ORIGINALS = [getattr(import_module(module), name) for module, name in DRAWN]


def not_drawn(*arguments: object) -> Path:
    """The path of the picture, the one argument that is a path."""
    (path,) = (argument for argument in arguments if isinstance(argument, Path))
    return path


def leave_out(setattr: Callable[[object, str, object], None]) -> None:
    """Replaces what draws, by `setattr` or a function that undoes it later."""
    for module, name in DRAWN:
        setattr(import_module(module), name, not_drawn)


def drawn_again(setattr: Callable[[object, str, object], None]) -> None:
    """Undoes it."""
    for (module, name), original in zip(DRAWN, ORIGINALS, strict=True):
        setattr(import_module(module), name, original)
