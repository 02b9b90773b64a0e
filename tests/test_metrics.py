"""Metrics: bytes that depend on the training alone, readers that never trip, and what a person sees."""

import io
import json
import re
import resource
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.report.metrics import MetricsLog, Progress, read_metrics

NAN, INF = float("nan"), float("inf")
FLOATS = st.floats(width=32)


def write(log: MetricsLog, values: np.ndarray, start: int = 0, chunk: int = 4, per_epoch: int = 6
          ) -> list[tuple[int, int]]:
    """Logs windows [3, n] from `start` on, a result after each epoch; (windows, bytes) after each call."""
    offsets, n = [], values.shape[1]
    while start < n:
        epoch, index = divmod(start, per_epoch)
        end = min(start + chunk, start + per_epoch - index, n)
        log.windows(start + 1, epoch + 1, *values[:, start:end])
        if end % per_epoch == 0:
            log.result("epoch", epoch=epoch + 1, train_perplexity=values[0, end - 1], valid_perplexity=NAN)
        start = end
        offsets.append((start, log.sync()))
    return offsets


def logged(folder: Path, values: np.ndarray, chunk: int) -> tuple[bytes, list]:
    folder.mkdir(exist_ok=True)
    with MetricsLog(folder, "ptb", tensorboard=False) as log:
        offsets = write(log, values, chunk=chunk)
    return (folder / "metrics.jsonl").read_bytes(), offsets


def series(n: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(0, 200, (3, n)).astype(np.float32)


@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), max_size=20), st.integers(1, 25), st.integers(1, 25))
@settings(max_examples=25)
def test_any_chunks_and_any_resume_give_the_same_bytes(rows, chunk, other):
    values = np.array(rows, np.float32).reshape(-1, 3).T
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        whole, _ = logged(Path(first), values, chunk)
        again, offsets = logged(Path(second), values, other)
        assert again == whole
        for start, offset in offsets:
            with MetricsLog(Path(second), "ptb", offset=offset, tensorboard=False) as log:
                write(log, values, start=start)
            assert (Path(second) / "metrics.jsonl").read_bytes() == whole


@given(st.lists(FLOATS, min_size=1, max_size=20))
@settings(max_examples=25)
def test_every_float32_comes_back_and_every_line_is_strict_json(costs):
    with tempfile.TemporaryDirectory() as folder:
        with MetricsLog(Path(folder), "ptb", tensorboard=False) as log:
            log.windows(1, 1, *np.array([costs] * 3, np.float32))
            log.windows(len(costs) + 1, 2, *series(1))
            np.testing.assert_array_equal(np.array(log.epoch_costs(1)), np.array(costs))
        for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_lines_are_as_documented(tmp_path):
    with MetricsLog(tmp_path, "embedded", tensorboard=False) as log:
        log.windows(7, 2, *np.array([[0.1], [INF], [1e-5]], np.float32))
        log.result("test", test_perplexity=118.4, floor_test=None, checkpoint="last")
        log.timing(seconds=1.5, words_per_second=NAN)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"kind":"window","step":7,"epoch":2,"cost":0.1,"grad_norm":"inf","learning_rate":1e-05}\n'
        '{"kind":"test","corpus":"embedded","test_perplexity":118.4,"checkpoint":"last"}\n')
    assert (tmp_path / "timing.jsonl").read_text() == '{"seconds":1.5,"words_per_second":"nan"}\n'
    assert [row["kind"] for row in read_metrics(tmp_path)] == ["window", "test"]
    assert read_metrics(tmp_path)[0]["grad_norm"] == INF


def test_timing_is_appended_to_and_a_resume_at_zero_needs_no_file(tmp_path):
    for second in (1, 2):
        with MetricsLog(tmp_path, "ptb", offset=0, tensorboard=False) as log:
            log.timing(seconds=second)
    assert (tmp_path / "timing.jsonl").read_text().count("\n") == 2
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("offset", [None, 10_000, 5])
def test_what_cannot_be_resumed_is_refused_and_left_alone(tmp_path, offset):
    before, _ = logged(tmp_path, series(8), 4)
    with pytest.raises(RunDirError, match=re.escape("metrics.jsonl")):
        MetricsLog(tmp_path, "ptb", offset=offset)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_disk_refusing_is_one_sentence(tmp_path):
    with pytest.raises(RunDirError, match="cannot write"):
        MetricsLog(tmp_path / "gone", "ptb")
    with pytest.raises(RunDirError, match="expected a run's metrics"):
        read_metrics(tmp_path / "gone")


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_resumed_one_is_whole(tmp_path):
    values, limits = series(60), resource.getrlimit(resource.RLIMIT_FSIZE)
    whole, _ = logged(tmp_path / "whole", values, 4)
    with pytest.raises(RunDirError, match=r"cannot write.*File too large"), \
            MetricsLog(tmp_path, "ptb", tensorboard=False) as log:
        write(log, values[:, :12])
        offset = log.sync()
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset + 100, limits[1]))
        try:
            write(log, values, start=12)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with MetricsLog(tmp_path, "ptb", offset=offset, tensorboard=False) as log:
        write(log, values, start=12)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_torn_last_line_is_dropped_at_any_byte(tmp_path):
    whole, _ = logged(tmp_path, series(2), 2)
    for cut in range(len(whole)):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:cut])
        assert len(read_metrics(tmp_path)) == whole[:cut].count(b"\n")


@pytest.mark.parametrize("line", [
    b"", b"{", b"[]", b"null", b"\xff", b'{"kind":1}', b'{"kind":"window"}', b'{"kind":"epoch","epoch":"1"}',
    b'{"kind":"epoch","epoch":1,"train_perplexity":[]}', b'{"kind":"test","test_perplexity":1' + b"0" * 400 + b"}",
    b'{"kind":"epoch","epoch":true}', b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    whole, _ = logged(tmp_path, series(2), 2)
    (tmp_path / "metrics.jsonl").write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(JaxlmError, match=r"metrics\.jsonl, line 3"):
        read_metrics(tmp_path)


@given(st.data())
@settings(max_examples=60)
def test_mutated_files_are_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        whole = bytearray(logged(Path(folder), series(7), 4)[0])
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(whole)))
            whole[at:at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
        (Path(folder) / "metrics.jsonl").write_bytes(whole)
        try:
            assert all(isinstance(row["kind"], str) for row in read_metrics(Path(folder)))
        except JaxlmError as error:
            assert "line" in str(error)


def events(folder: Path) -> list[Any]:
    """All events of a TensorBoard folder: records of length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12:at + 12 + size]))
            at += size + 16
    return found


def test_tensorboard_holds_every_window_and_result_at_its_step(tmp_path):
    with MetricsLog(tmp_path, "ptb") as log:
        log.windows(1, 1, [1, 2], [3, NAN], [0.5, 0.5])
        log.result("epoch", epoch=1, valid_perplexity=123.0, checkpoint="last")
        offset = log.sync()
    with MetricsLog(tmp_path, "ptb", offset=offset) as log:
        log.windows(3, 2, [4], [4], [0.5])
    seen = events(tmp_path / "tensorboard")
    scalars = {(event.step, value.tag): value.simple_value for event in seen for value in event.summary.value}
    assert scalars.pop((2, "train/grad_norm")) != 0
    assert scalars == {(1, "train/cost"): 1, (1, "train/grad_norm"): 3, (1, "train/learning_rate"): 0.5,
                       (2, "train/cost"): 2, (2, "train/learning_rate"): 0.5, (2, "epoch/valid_perplexity"): 123,
                       (3, "train/cost"): 4, (3, "train/grad_norm"): 4, (3, "train/learning_rate"): 0.5}
    assert [event.step for event in seen if event.session_log.status] == [1, 3]


def test_a_failing_tensorboard_costs_a_warning_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="TensorBoard"), MetricsLog(tmp_path, "ptb") as log:
        log.windows(1, 1, *series(2))
    (tmp_path / "tensorboard").unlink()
    with MetricsLog(tmp_path, "ptb", offset=log_size(tmp_path)) as log:
        import tensorboardX.event_file_writer as writer

        monkeypatch.setattr(writer.EventsWriter, "write_event", lambda *_: 1 / 0)
        with pytest.warns(RuntimeWarning, match="division"):
            log.windows(3, 1, *series(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            log.windows(4, 1, *series(1))
            log.result("test", test_perplexity=1.0)
    assert len(read_metrics(tmp_path)) == 5


def log_size(folder: Path) -> int:
    return (folder / "metrics.jsonl").stat().st_size


def test_importing_costs_no_jax_no_rich_no_tensorboard():
    code = ("import sys, jaxlm.errors; before = set(sys.modules); import jaxlm.metrics; "
            "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
            "assert not new & {'jax', 'rich', 'tensorboardX'}, new")
    subprocess.run([sys.executable, "-c", code], check=True)


def shown(terminal: bool, width: int = 100, epochs: int = 2) -> str:
    """What a person sees of a run on a corpus whose name is no markup."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    with Progress(epochs, 10, 1200, "my [bold] text", console) as bar:
        bar.say("a loud\nword", loud=True)
        bar.say("a [quiet] word")
        for epoch in range(1, epochs + 1):
            for done in (4, 8, 10):
                bar.advance(epoch, done, NAN if done == 4 else 1234.567, 0.25)
            bar._bar.refresh()
            bar.epoch(epoch, 200.004, NAN, 0.25, 12345.6, 61.23, None if epoch == 1 else 99.5)
    bar.summary([("test perplexity", "118.40"), ("checkpoint", "runs/" + "long" * 30)], "done")
    return file.getvalue()


def test_without_a_terminal_there_are_plain_unwrapped_lines():
    assert shown(False, width=20).splitlines() == [
        "!! a loud", "!! word", "a [quiet] word",
        "epoch 1/2 on my [bold] text: train perplexity 200.00, valid nan, rate 0.25, 12,346 words/s, 61.2 s",
        "epoch 2/2 on my [bold] text: train perplexity 200.00, valid nan (floor 99.50), rate 0.25, "
        "12,346 words/s, 61.2 s",
        "done",
        "  my [bold] text  test perplexity  118.40",
        "  my [bold] text  checkpoint       runs/" + "long" * 30]


def test_on_a_terminal_there_is_a_bar():
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(True))
    for text in ("epoch 2/2", "perplexity 1234.57", "words/s", "rate 0.25", "left", "a loud", "a [quiet] word",
                 "my [bold] text", "118.40", "╭"):
        assert text in out, text
    assert "!!" not in out


@pytest.mark.parametrize("width", [40, 60, 300])
def test_no_width_breaks_the_terminal(width):
    assert "118.40" in shown(True, width=width)


def test_speed_and_time_left_of_a_resumed_run_count_only_its_own_windows():
    clock = [0.0]
    bar = Progress(15, 100, 1200, "ptb", Console(file=io.StringIO(), force_terminal=True))
    bar._bar.get_time = bar._bar.tasks[0]._get_time = lambda: clock[0]
    for done in (50, 60, 70):  # epoch 11 of 15: ten windows each two seconds
        bar.advance(11, done, 100.0, 1.0)
        clock[0] += 2
    task = bar._bar.tasks[0]
    assert task.speed == 5 and task.time_remaining == (1500 - 1070) / 5
    assert "6,000 words/s" in task.fields["numbers"]


def test_a_narrow_encoding_shows_escapes(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        Progress(1, 1, 1, "тест", Console(file=file)).epoch(1, INF, 1e300, 1, NAN, 0, None)
    assert (tmp_path / "out").read_text().startswith("epoch 1/1 on \\u0442")
