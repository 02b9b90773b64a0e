"""metrics.jsonl: bytes that depend on the training alone,
and a reader that reads any file or refuses it.
"""

import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import INTRUDERS, intrude, opened

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.runs.metrics import MetricsLog, Prefix, read_metrics, read_timing

NAN = float("nan")
INF = float("inf")
FLOATS = st.floats(width=32)


def write(
    log: MetricsLog, values: np.ndarray, start: int = 0, chunk: int = 4, per_epoch: int = 6
) -> list[tuple[int, Prefix]]:
    """Logs windows [3, n] from `start` on, a result after each epoch;
    (windows, bytes) after each call.
    """
    synced = []
    n = values.shape[1]
    while start < n:
        epoch, index = divmod(start, per_epoch)
        end = min(start + chunk, start + per_epoch - index, n)
        log.windows(start + 1, epoch + 1, *values[:, start:end])
        if end % per_epoch == 0:
            log.result(
                "epoch", epoch=epoch + 1, train_perplexity=values[0, end - 1], valid_perplexity=NAN
            )
        start = end
        synced.append((start, log.sync()))
    return synced


def logged(folder: Path, values: np.ndarray, chunk: int) -> tuple[bytes, list]:
    folder.mkdir(exist_ok=True)
    with opened(folder, "ptb") as log:
        synced = write(log, values, chunk=chunk)
    return (folder / "metrics.jsonl").read_bytes(), synced


def series(n: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(0, 200, (3, n)).astype(np.float32)


@given(
    st.lists(st.tuples(FLOATS, FLOATS, FLOATS), max_size=20), st.integers(1, 25), st.integers(1, 25)
)
@settings(max_examples=25)
def test_any_chunks_and_any_resume_give_the_same_bytes(rows, chunk, other):
    values = np.array(rows, np.float32).reshape(-1, 3).T
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        whole, _ = logged(Path(first), values, chunk)
        again, synced = logged(Path(second), values, other)
        assert again == whole
        for start, kept in synced:
            with opened(Path(second), "ptb", prefix=kept) as log:
                write(log, values, start=start)
            assert (Path(second) / "metrics.jsonl").read_bytes() == whole


@given(st.lists(FLOATS, min_size=1, max_size=20))
@settings(max_examples=25)
def test_every_float32_comes_back_and_every_line_is_strict_json(costs):
    with tempfile.TemporaryDirectory() as folder:
        with opened(Path(folder), "ptb") as log:
            log.windows(1, 1, *np.array([costs] * 3, np.float32))
            log.windows(len(costs) + 1, 2, *series(1))
        read = [row["cost"] for row in read_metrics(Path(folder)) if row["epoch"] == 1]
        np.testing.assert_array_equal(np.array(read, np.float32), np.array(costs, np.float32))
        for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(st.lists(st.tuples(FLOATS, FLOATS, st.integers(1, 9)), max_size=12), st.data())
@settings(max_examples=25)
def test_an_epochs_cost_is_the_same_written_and_resumed(windows, data):
    """The sum of float32 values as floats in order,
    over the steps of windows whose cost is finite.
    """
    epochs = data.draw(
        st.lists(st.integers(1, 2), min_size=len(windows), max_size=len(windows)).map(sorted)
    )
    with tempfile.TemporaryDirectory() as folder:
        with opened(Path(folder), bptt_length=5) as log:
            for step, (epoch, (cost, norm, steps)) in enumerate(
                zip(epochs, windows, strict=True), 1
            ):
                log.windows(step, epoch, [cost], [norm], [1], steps=[steps])
            kept = log.sync()
            skipped = log.skipped
            written = [log.epoch_cost(epoch) for epoch in (1, 2, 3)]
        with opened(Path(folder), bptt_length=5, prefix=kept) as log:
            assert [log.epoch_cost(epoch) for epoch in (1, 2, 3)] == written
            assert log.skipped == skipped
    for epoch, (cost, steps) in zip((1, 2, 3), written, strict=True):
        finite = [
            (c, n)
            for e, (c, _, n) in zip(epochs, windows, strict=True)
            if e == epoch and np.isfinite(c)
        ]
        assert cost == reduce(add, (c for c, _ in finite), 0.0) and steps == sum(
            n for _, n in finite
        )
        assert skipped[epoch] == sum(
            not (np.isfinite(c) and np.isfinite(norm))
            for e, (c, norm, _) in zip(epochs, windows, strict=True)
            if e == epoch
        )


def test_only_a_window_of_another_length_says_its_steps(tmp_path):
    with opened(tmp_path, bptt_length=35) as log:
        log.windows(1, 1, [1, 2, 3], [1, 1, 1], [1, 1, 1], steps=np.array([35, 7, 35]))
        log.windows(4, 1, [4], [1], [1])
        assert log.epoch_cost(1) == (10, 112)
    assert [row.get("steps") for row in read_metrics(tmp_path)] == [None, 7, None, None]
    assert '"learning_rate":1.0,"steps":7}\n' in (tmp_path / "metrics.jsonl").read_text()


def test_the_lines_are_as_documented(tmp_path):
    with opened(tmp_path, "embedded") as log:
        log.windows(7, 2, *np.array([[0.1], [INF], [1e-5]], np.float32))
        log.result("test", test_perplexity=118.4, floor_test=None, checkpoint="last")
        log.timing(seconds=1.5, words_per_second=NAN)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"kind":"window","step":7,"epoch":2,"cost":0.1,"grad_norm":"inf","learning_rate":1e-05}\n'
        '{"kind":"test","corpus":"embedded","test_perplexity":118.4,"checkpoint":"last"}\n'
    )
    assert (tmp_path / "timing.jsonl").read_text() == '{"seconds":1.5,"words_per_second":"nan"}\n'
    assert [row["kind"] for row in read_metrics(tmp_path)] == ["window", "test"]
    assert read_metrics(tmp_path)[0]["grad_norm"] == INF


def test_timing_is_appended_to_and_a_resume_at_zero_needs_no_file(tmp_path):
    for second in (1, 2):
        with opened(tmp_path, "ptb", prefix=Prefix()) as log:
            log.timing(seconds=second)
    assert (tmp_path / "timing.jsonl").read_text().count("\n") == 2
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("kept", [Prefix(10_000, "0"), Prefix(5, "0")])
def test_what_cannot_be_resumed_is_refused_and_left_alone(tmp_path, kept):
    before, _ = logged(tmp_path, series(8), 4)
    with (
        pytest.raises(RunDirError, match=re.escape("metrics.jsonl")),
        opened(tmp_path, prefix=kept),
    ):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("intruder", INTRUDERS)
def test_nothing_is_written_to_what_is_not_a_file_of_the_run(tmp_path, name, intruder):
    run_dir = tmp_path / "run"
    before, _ = logged(run_dir, series(8), 4)
    target = intrude(run_dir / name, intruder)
    kept = Prefix(len(before), hashlib.sha256(before).hexdigest())
    refused = nullcontext()
    if name == "metrics.jsonl":
        kept = Prefix()
        refused = pytest.raises(RunDirError, match=r"cannot write.*metrics.jsonl")
    with refused, opened(run_dir, prefix=kept) as log:
        log.timing(seconds=1)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("intruder", ["link", "fifo", "directory", "sparse", "gone"])
def test_only_a_regular_file_of_bounded_size_is_read(tmp_path, intruder):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run/metrics.jsonl"
    if intruder == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif intruder != "gone":
        intrude(path, intruder)
    with pytest.raises(RunDirError, match=re.escape(str(path))):
        read_metrics(tmp_path / "run")
    if intruder != "gone":
        with (
            pytest.raises(RunDirError, match=re.escape(str(path))),
            opened(tmp_path / "run", prefix=Prefix(10, "0")),
        ):
            pass


def test_a_run_directory_that_is_not_there(tmp_path):
    with pytest.raises(RunDirError, match="expected a run's metrics"):
        read_metrics(tmp_path / "gone")


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_resumed_one_is_whole(tmp_path):
    values = series(60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole, _ = logged(tmp_path / "whole", values, 4)
    with (
        pytest.raises(RunDirError, match=r"cannot write.*File too large"),
        opened(tmp_path, "ptb") as log,
    ):
        write(log, values[:, :12])
        kept = log.sync()
        resource.setrlimit(resource.RLIMIT_FSIZE, (kept.bytes + 100, limits[1]))
        try:
            write(log, values, start=12)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with opened(tmp_path, "ptb", prefix=kept) as log:
        write(log, values, start=12)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_torn_last_line_is_dropped_at_any_byte(tmp_path):
    whole, _ = logged(tmp_path, series(2), 2)
    for cut in range(len(whole)):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:cut])
        assert len(read_metrics(tmp_path)) == whole[:cut].count(b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"kind":1}',
        b'{"kind":"window"}',
        b'{"kind":"epoch","epoch":"1"}',
        b'{"kind":"epoch","epoch":1,"train_perplexity":[]}',
        b'{"kind":"test","test_perplexity":1' + b"0" * 400 + b"}",
        b'{"kind":"epoch","epoch":true}',
        b'{"kind":"window","step":1,"epoch":1,"cost":1,"grad_norm":1,"learning_rate":1,"steps":-1}',
        b"[" * 100_000,
    ],
)
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
            whole[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
        (Path(folder) / "metrics.jsonl").write_bytes(whole)
        try:
            assert all(isinstance(row["kind"], str) for row in read_metrics(Path(folder)))
        except JaxlmError as error:
            assert "line" in str(error)


def test_importing_loads_no_matplotlib():
    code = (
        "import sys, jaxlm.runs.metrics, jaxlm.report.progress, jaxlm.base.units; "
        "import jaxlm.report.curve, jaxlm.report.word_map, jaxlm.report.sweep_plots; "
        "found = {name.split('.')[0] for name in sys.modules};"
        "found &= {'matplotlib', 'sklearn'}; "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_an_epoch_that_was_trained_twice_the_later_timing_counts(tmp_path):
    with opened(tmp_path) as log:
        log.timing(epoch=1, seconds=9.0, words_per_second=10.0)
        log.timing(epoch=2, seconds=8.0, words_per_second=11.0)
        log.timing(epoch=1, seconds=7.0, words_per_second=12.0)
        log.timing(epoch=1, seconds="unknown", words_per_second=13.0)
    assert read_timing(tmp_path)[1] == {"seconds": 7.0, "words_per_second": 12.0}
    assert sorted(read_timing(tmp_path)) == [1, 2]
