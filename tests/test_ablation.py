"""experiments/ablation.py and optimizers.py:
each run is made once, and their tables end in their pages.
"""

import runpy
import sys

import pytest
from conftest import ROOT

from jaxlm.base.errors import JaxlmError

SCRIPT = ROOT / "experiments/ablation.py"


def test_the_ladder_is_climbed_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs/0-seed0").mkdir(parents=True)  # as a kill leaves it before the run has begun
    page = tmp_path / "page.md"
    page.write_text("# A page\n<!-- the table -->\nold\n<!-- its end -->\nafter\n")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "ablation.py",
            "--corpus",
            "embedded-tiny",
            "--epochs",
            "0",
            "--width",
            "4",
            "--run-dir",
            str(tmp_path / "runs"),
            "--markdown",
            str(page),
        ],
    )
    runpy.run_path(str(SCRIPT))["main"]()
    assert capsys.readouterr().out.count("| + ") == 5
    text = page.read_text()
    assert text.startswith("# A page\n<!-- the table -->\n| rung") and text.endswith(
        "<!-- its end -->\nafter\n"
    )
    assert "old" not in text and (tmp_path / "runs/ablation.png").read_bytes().startswith(
        b"\x89PNG"
    )
    assert len(list((tmp_path / "runs").glob("*-seed0/config.json"))) == 6
    sys.argv[sys.argv.index("0")] = "1"
    with pytest.raises(JaxlmError, match="holds a run of 0 epochs, and this is to be a table of 1"):
        runpy.run_path(str(SCRIPT))["main"]()


def test_the_table_shows_means_and_deviations():
    ladder = runpy.run_path(str(SCRIPT))
    found = ladder["table"]({"baseline": [(10.0, 12.0), (20.0, 14.0)], "+ tying": [(9.0, 8.0)]})
    assert "| baseline | zaremba-small | 15.00 ± 7.07 | 13.00 ± 1.41 |" in found
    assert "| + tying | tied True | 9.00 | 8.00 |" in found


def test_each_optimiser_has_its_best_rate_by_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    compared = runpy.run_path(str(SCRIPT.parent / "optimizers.py"))
    monkeypatch.setitem(
        compared["compare"].__globals__, "TRIED", {"SGD": ({"optimizer": "sgd"}, (0.5, 1.0))}
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- the table -->\n<!-- its end -->\n")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "optimizers.py",
            "--corpus",
            "embedded-tiny",
            "--epochs",
            "0",
            "--width",
            "4",
            "--run-dir",
            str(tmp_path / "runs"),
            "--markdown",
            str(page),
        ],
    )
    compared["main"]()
    assert "| SGD | 0.5: nan, 1: nan | 0.5 |" in page.read_text() and page.read_text().endswith(
        "<!-- its end -->\n"
    )
    assert (tmp_path / "runs/optimizers.png").read_bytes().startswith(b"\x89PNG")
    found = compared["table"]({"Muon": {0.1: (120.0, 115.0), 0.2: (110.0, 106.0)}})
    assert "| Muon | 0.1: 120.0, 0.2: 110.0 | 0.2 | 110.0 | 106.0 |" in found
