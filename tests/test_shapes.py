"""The shapes that annotations name are those of the arrays:
`shapes.py` traces the library with all of them checked.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from recipes import COVERING, USUAL_MODELS

SPECIAL = (
    "awd-lstm-mos",
    "untied-lamb",
    "awd-lstm",
    "mogrifier-all",
    "mogrifier-coupled-muon",
    "tied-sampled",
    "mixture",
)
NARROW = ("lstm", "hawk", "mixture")


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(
            [*USUAL_MODELS, *COVERING, *SPECIAL, *(f"{name} in bfloat16" for name in NARROW)],
            id="usual",
        ),
        pytest.param([], id="all", marks=pytest.mark.slow),
    ],
)
def test_the_shapes_are_those_that_annotations_name(cases):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("shapes.py"), *cases],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-100:] + done.stderr[-8000:]
