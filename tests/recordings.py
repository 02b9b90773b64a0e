"""What published codes computed, as it was recorded: golden/published/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np

PUBLISHED = Path(__file__).parent / "golden/published"


def recorded(name: str) -> Any:
    """A recording, by its name without `.json`."""
    return json.loads((PUBLISHED / f"{name}.json").read_text())


def summary(array: Any) -> list[float]:
    """The three numbers that stand for an array in a recording; the last notices a permutation."""
    flat = np.asarray(array, np.float64).ravel()
    return [
        float(np.linalg.norm(flat)),
        flat.sum().item(),
        (flat * np.cos(np.arange(flat.size))).sum().item(),
    ]
