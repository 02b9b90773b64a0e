"""The worker processes of a sweep: what a user sees of those that fail."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxlm
from jaxlm.runs.signals import Stop
from jaxlm.sweeps.supervisor import supervise

ABORT = "import os; os.write(2, b'terminate called\\n  what():  std::bad_alloc\\n'); os.abort()"
SENTENCE = "import sys; print('warning: x', file=sys.stderr); sys.exit('error: the disk is full')"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("jaxlm.sweeps.supervisor.POLL", 0.02)


def run(code, folder, workers=2, stop=None):
    """(why the last one failed, the lines that are said)."""
    lines = []
    command = [sys.executable, "-c", code]
    return supervise(
        command, os.environ, workers, folder, stop or Stop(), lambda: None, lines.append
    ), lines


@pytest.mark.parametrize(
    "code, why, log",
    [
        (ABORT, "SIGABRT ended it; what it wrote is in", True),
        (SENTENCE, "the disk is full", False),
        ("raise SystemExit(7)", "it ended with exit code 7", False),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL ended it", False),
    ],
)
def test_a_worker_that_fails_is_one_line_and_its_log_is_named(tmp_path, capfd, code, why, log):
    failure, lines = run(code, tmp_path)
    assert failure and failure.startswith(why) and len(lines) == 2
    assert not lines[-1].endswith("take its trials over")
    assert capfd.readouterr() == ("", "")
    names = [f"worker-{number}.log" for number in (0, 1)] if log else []
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(
        str(tmp_path / name) in "".join(lines) and "bad_alloc" in (tmp_path / name).read_text()
        for name in names
    )


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "worker-0.log").symlink_to("mine")
    run(ABORT, tmp_path, workers=1)
    assert (tmp_path / "mine").read_text() == "mine" and not (
        tmp_path / "worker-0.log"
    ).is_symlink()


def test_workers_end_where_another_cannot_start(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(BlockingIOError):
        run("import time; time.sleep(60)", tmp_path, workers=3)
    assert [process.wait(20) for process in started] == [-signal.SIGTERM] * 2


def test_a_signal_reaches_all_and_is_no_failure(tmp_path, monkeypatch):
    stop = Stop()
    started = []
    popen = subprocess.Popen
    stop.signal = signal.SIGTERM

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    assert run("import time; time.sleep(60)", tmp_path, stop=stop) == (None, [])
    assert {process.returncode for process in started} == {-signal.SIGTERM}


@pytest.mark.slow
def test_workers_import_nothing_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("argparse.py").write_text("open('ran', 'w')")
    config = jaxlm.preset("test").replace(corpus="embedded-tiny")
    jaxlm.sweep(config, {"learning_rate": [0.5, 1.0]}, run_dir="sweep", workers=2, quiet=True)
    assert not Path("ran").exists()
