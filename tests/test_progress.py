"""What a person sees of a run, on a terminal and elsewhere."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console
from terminals import in_terminal, jaxlm

from jaxlm.report.progress import EpochResult, Progress

NAN = float("nan")
INF = float("inf")
PHASES = """
import time
from jaxlm.report.progress import EpochResult, Progress
with Progress(15, 15 * 700, 1200, "some-corpus") as bar:
    for epoch in (9, 10):
        now = EpochResult(epoch, 0.0123, 12345.67, 12345.67)
        bar.advance(now, 350, 700, 700 * epoch - 350)
        time.sleep(0.3)
        bar.advance(now, 700, 700, 700 * epoch)
        bar._bar.refresh()
        time.sleep(0.05)
        for phase in ("validating", "saving"):
            bar.doing(phase)
            time.sleep(0.05)
        bar.epoch(now, 123456, 7.3, 14.0)
    bar.doing("testing")
    time.sleep(0.05)
bar.summary([("test", "118.40")], "done")
"""


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """Whatever terminal runs the tests."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)


def shown(terminal: bool, width: int = 100, epochs: int = 2) -> str:
    """What is printed of a run on a corpus whose name looks like markup."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    with Progress(epochs, 10 * epochs, 1200, "my [bold] text", console) as bar:
        bar.say("a loud\nword", loud=True)
        bar.say("a [quiet] word")
        for epoch in range(1, epochs + 1):
            for done in (4, 8, 10):
                bar.advance(
                    EpochResult(epoch, 0.25, NAN if done == 4 else 1234.567),
                    done,
                    10,
                    10 * epoch - 10 + done,
                )
            bar._bar.refresh()
            bar.epoch(
                EpochResult(epoch, 0.25, 200.004), 12345.6, 61.23, None if epoch == 1 else 99.5
            )
    bar.summary([("test perplexity", "118.40"), ("checkpoint", "runs/" + "long" * 30)], "done")
    return file.getvalue()


def test_without_a_terminal_there_are_plain_unwrapped_lines():
    assert shown(False, width=20).splitlines() == [
        "!! a loud",
        "!! word",
        "a [quiet] word",
        "epoch 1/2 on my [bold] text: train perplexity 200.00, valid nan, rate 0.25, "
        "12,346 words/s, 61.2 s",
        "epoch 2/2 on my [bold] text: train perplexity 200.00, valid nan (floor 99.50), rate 0.25, "
        "12,346 words/s, 61.2 s",
        "done",
        "  my [bold] text  test perplexity  118.40",
        "  my [bold] text  checkpoint       runs/" + "long" * 30,
    ]


def test_on_a_terminal_there_is_a_bar():
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(True))
    for text in (
        "epoch 2/2",
        "perplexity 1234.57",
        "words/s",
        "rate 0.25",
        "left",
        "!! a loud",
        "!! word",
        "a [quiet] word",
        "my [bold] text",
        "118.40",
    ):
        assert text in out, text


@pytest.mark.parametrize("width", [40, 60, 300])
def test_no_width_breaks_the_terminal(width):
    assert "118.40" in shown(True, width=width)


@pytest.mark.parametrize("columns", [40, 80, 150])
@pytest.mark.parametrize("colours", [{}, {"NO_COLOR": "1"}])
def test_the_bar_of_a_real_terminal_names_what_is_done_and_takes_one_line(columns, colours):
    seen = in_terminal([sys.executable, "-c", PHASES], columns, **colours)
    lasts = [screen[-1] for screen in seen.screens]
    for place in ("epoch 9/15", "epoch 10/15"):
        assert any(line.startswith(f"{place} ") and "perplexity 12345.67" in line for line in lasts)
        for phase in ("validating", "saving"):
            assert any(line.startswith(f"{place} {phase} ") for line in lasts), (
                place,
                phase,
                lasts,
            )
    assert any(line.startswith("epoch 10/15 testing") for line in lasts)
    bars = [line for line in lasts if "━" in line]
    assert not any(
        "…" in line or "nan" in line for line in bars
    )  # what has no room is left out, not cut
    if columns >= 80:
        assert any(
            re.search(r"perplexity 12345.67  \d:\d\d:\d\d left  [\d,]+ words/s", line)
            for line in bars
        )
    assert seen.code == 0 and not any(
        line.startswith("epoch") and "━" in line for line in seen.lines
    )
    text = " ".join(" ".join(seen.lines).split())
    assert (
        text.count(
            "epoch 9/15 on some-corpus: train perplexity 12345.67, valid 12345.67 (floor 14.00), "
            "rate 0.0123"
        )
        == 1
        and "118.40" in text
    )
    assert (b"\x1b[3" in seen.written) == (not colours)


def test_a_dumb_terminal_gets_plain_lines():
    seen = in_terminal([sys.executable, "-c", PHASES], TERM="dumb")
    assert b"\x1b" not in seen.written and "  some-corpus  test  118.40" in seen.lines


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 150])
def test_a_run_in_a_real_terminal(tmp_path, columns):
    seen = jaxlm(
        "train",
        "--corpus",
        "embedded-tiny",
        "--hidden-sizes",
        "8",
        "--embedding-size",
        "4",
        "--epochs",
        "2",
        "--windows-per-call",
        "10",
        "--run-dir",
        str(tmp_path / "run"),
        columns=columns,
    )
    assert seen.code == 0
    for phase in (
        "compiling",
        "epoch 1/2 validating",
        "epoch 1/2 saving",
        "epoch 2/2 saving",
        "epoch 2/2 testing",
        "epoch 2/2 drawing the curve",
    ):
        assert any(screen[-1].startswith(f"{phase} ━") for screen in seen.screens), phase
    command = f"jaxlm report {tmp_path / 'run'} -o {tmp_path / 'run' / 'report.html'}"
    assert command in "".join(seen.lines)  # no line feed within a command


def test_speed_and_time_left_of_a_resumed_run_count_only_its_own_windows():
    clock = [0.0]
    bar = Progress(15, 1500, 1200, "ptb", Console(file=io.StringIO(), force_terminal=True))
    bar._bar.get_time = bar._bar.tasks[0]._get_time = lambda: clock[0]
    for done in (50, 60, 70):  # epoch 11 of 15: ten windows each two seconds
        bar.advance(EpochResult(11, 1.0, 100.0), done, 100, 1000 + done)
        clock[0] += 2
    task = bar._bar.tasks[0]
    assert task.speed == 5 and task.time_remaining == (1500 - 1070) / 5
    assert "6,000 words/s" in task.fields["numbers"]


def test_a_narrow_encoding_shows_escapes(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        Progress(1, 1, 1, "тест", Console(file=file)).epoch(EpochResult(1, 1, INF, 1e300), NAN, 0)
    assert (tmp_path / "out").read_text().startswith("epoch 1/1 on \\u0442")


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_of_a_file_controls_the_terminal(terminal):
    file = io.StringIO()
    evil = "\x1b]0;owned\x07\x9b2J\u202e\ud800"
    with Progress(
        1, 1, 1, evil + "\n", Console(file=file, force_terminal=terminal, width=400)
    ) as bar:
        bar.say(evil)
        bar.say(evil, loud=True)
        bar.epoch(EpochResult(1), 1, 1)
        bar.summary([(evil + "\n", evil + "\n")], evil)
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()) if terminal else file.getvalue()
    assert not re.search("[\x1b\x07\x9b\u202e\ud800]", out)
    assert out.count(r"\x1b]0;owned\x07\x9b2J\u202e\ud800") == 7


def test_without_a_terminal_there_is_a_line_every_thirty_seconds(monkeypatch):
    clock = [0.0]
    file = io.StringIO()
    monkeypatch.setattr("jaxlm.report.progress.monotonic", lambda: clock[0])
    with Progress(2, 200, 1200, "ptb", Console(file=file)) as bar:
        for window in range(1, 101):
            clock[0] += 1
            bar.advance(EpochResult(1, 0.5, 100.0), window, 100, window)
        clock[0] += 29
        bar.doing("validating")
        clock[0] += 5
        bar.doing("saving")
    lines = file.getvalue().splitlines()
    assert [line.partition(", perplexity")[0] for line in lines] == [
        *(f"epoch 1/2, window {window}/100" for window in (30, 60, 90)),
        "epoch 1/2, validating",
    ]
    assert "perplexity 100.00" in lines[0] and "words/s" in lines[1] and "rate 0.5" in lines[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_an_estimated_training_perplexity_is_said_to_be_one(terminal, monkeypatch):
    monkeypatch.setattr("jaxlm.report.progress.LINE_SECONDS", 0)
    file = io.StringIO()
    with Progress(
        1, 10, 1200, "ptb", Console(file=file, force_terminal=terminal, width=120)
    ) as bar:
        bar.advance(EpochResult(1, 1.0, 90.0, train_estimated=True), 5, 10, 5)
        bar._bar.refresh()
        bar.epoch(EpochResult(1, 1.0, 90.0, 118.0, train_estimated=True), 1, 1)
    assert file.getvalue().count("perplexity 90.00 (an estimate)") >= 2


def test_a_reader_that_leaves_ends_the_printing_and_not_the_process():
    code = """
import sys
from jaxlm.report.progress import EpochResult, Progress
with Progress(1, 1, 1, "ptb") as bar:
    for _ in range(100):
        bar.say("x" * 1000)
    bar.summary([("a", "b")], "done")
print("more")
sys.stderr.write("to its end")
"""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        process = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE
        )
    assert (process.returncode, process.stderr) == (0, b"to its end")


def test_a_terminal_that_closes_ends_the_printing_and_not_the_process():
    code = """
import signal, sys, time
from jaxlm.report.progress import Progress
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Progress(1, 1, 1, "ptb") as bar:
    for _ in range(20):
        bar.say("x" * 100)
        bar.doing("validating")
        time.sleep(0.05)
sys.stderr.write("to its end")
"""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=inner, stderr=subprocess.PIPE, start_new_session=True
    )
    os.close(inner)
    os.read(terminal, 1)
    os.close(terminal)
    assert process.communicate(timeout=60)[1] == b"to its end" and process.returncode == 0


def test_a_run_of_characters_is_told_in_bits_per_character():
    file = io.StringIO()
    bar = Progress(1, 2, 100, "text", Console(file=file, width=400), tokens="characters")
    bar.epoch(EpochResult(1, 1.0, 8.0, 4.0), 1234.0, 1.0, floor=2.0)
    bar._last_line = -1e9
    bar.advance(EpochResult(1, 1.0, 8.0), 1, 2, 1)
    assert file.getvalue().splitlines() == [
        "epoch 1/1 on text: train bits per character 3.0000, valid 2.0000 (floor 1.0000), rate 1, "
        "1,234 characters/s, 1.0 s",
        "epoch 1/1, window 1/2, bits per character 3.0000, rate 1",
    ]
