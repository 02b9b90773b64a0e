"""What many tests share."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("jaxlm", deadline=None)  # machines differ
hypothesis.settings.load_profile("jaxlm")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def ptb_dir() -> Path:
    """The folder with Penn Treebank's three files; skips where there is none."""
    for place in (os.environ.get("JAXLM_DATA"), ROOT / "data/ptb", ROOT.parent / "shared/ptb"):
        if place and Path(place, "ptb.train.txt").is_file():
            return Path(place)
    pytest.skip("no Penn Treebank: set JAXLM_DATA to the folder of ptb.train.txt")
