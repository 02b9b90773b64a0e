"""experiments/ablation.py: every rung runs, keeps those before it, and is not trained twice."""

import runpy
import sys

from conftest import ROOT

SCRIPT = ROOT / "experiments/ablation.py"


def test_the_ladder_is_climbed_once(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("# A page\n<!-- the ladder -->\nold\n<!-- its end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--corpus", "embedded-tiny", "--epochs", "0", "--width", "4",
                                      "--run-dir", str(tmp_path / "runs"), "--markdown", str(page)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.count("| + ") == 5
    text = page.read_text()
    assert text.startswith("# A page\n<!-- the ladder -->\n| rung") and text.endswith("<!-- its end -->\nafter\n")
    assert "old" not in text and (tmp_path / "runs/ablation.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "runs").glob("*-seed0/config.json"))) == 6


def test_the_table_shows_means_and_the_range():
    ladder = runpy.run_path(str(SCRIPT))
    found = ladder["table"]({"baseline": [(10.0, 12.0), (20.0, 14.0)], "+ tying": [(9.0, 8.0)]})
    assert "| baseline | zaremba-small | 15.00 (10.00 to 20.00) | 13.00 (12.00 to 14.00) |" in found
    assert "| + tying | tied True | 9.00 | 8.00 |" in found
