"""docs/surprisal.md, generation.md and report.md: every command and program in them runs, in a directory of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["surprisal.md", "generation.md", "report.md"])
def test_a_page_runs_from_its_beginning_to_its_end(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    program = tmp_path / "bin" / "jaxlm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom jaxlm.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for language, text in blocks:
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert done.stdout
