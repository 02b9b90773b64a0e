"""The model that comes with jaxlm: a run in a directory of the package (docs/english.md)."""

import re
from pathlib import Path

NAME = "english"
DIRECTORY = Path(__file__).parents[1] / NAME


def resolved(run: str | Path) -> Path:
    """The directory of a run; `english` is the model that comes with jaxlm.

    Args:
        run: A directory, or `english`. A directory of that name wins.
    """
    path = Path(run)
    if path == Path(NAME) and not path.is_dir():
        return DIRECTORY
    return path


def as_named(text: str) -> str:
    """Replaces the directory of the model by the name `english`; paths of its files stay."""
    return re.sub(rf"{re.escape(str(DIRECTORY))}(?!/)", NAME, text)


def place_for_files(run: Path) -> Path:
    """Where files about a run are written by default: in its directory, but not in the package."""
    return Path() if run == DIRECTORY else run
