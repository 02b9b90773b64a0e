"""Windows: they tile each row of the batch, and their targets are their inputs shifted by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.corpora import load_corpus
from jaxlm.data.windows import MOST_WINDOWS, WindowPlan, batch, check_fits, num_windows
from jaxlm.errors import DataError


@given(N=st.integers(1, 300), B=st.integers(1, 9), T=st.integers(1, 9))
def test_windows_tile_each_row_and_targets_are_inputs_shifted_by_one(N, B, T):
    ids = np.arange(N, dtype=np.int32)
    rows = batch(ids, B)
    assert rows.shape == (N // B, B)
    windows = num_windows(len(rows), T) if len(rows) else 0
    for row in range(B):
        stream = ids[row * (N // B) : (row + 1) * (N // B)]
        np.testing.assert_array_equal(rows[:, row], stream)
        inputs = [rows[k * T : (k + 1) * T, row] for k in range(windows)]
        targets = [rows[k * T + 1 : (k + 1) * T + 1, row] for k in range(windows)]
        if windows > 0:
            np.testing.assert_array_equal(np.concatenate(inputs), stream[: windows * T])
            np.testing.assert_array_equal(np.concatenate(targets), stream[1 : windows * T + 1])
    assert (windows + 1) * T > len(rows) - 1  # no whole window is left over


def test_steps_count_through_epochs():
    plan = WindowPlan(rows=13, length=4, epochs=3)
    assert (plan.per_epoch, plan.total) == (3, 9)
    assert [plan.locate(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 4), st.data())
def test_a_call_has_the_windows_from_its_step_on(rows, length, epochs, data):
    length = min(length, rows - 1)
    plan = WindowPlan(rows, length, epochs)
    step = data.draw(st.integers(0, plan.total - 1))
    epoch, index = plan.locate(step)
    count = data.draw(st.integers(1, plan.per_epoch - index))
    first_row = data.draw(st.integers(0, plan.row(index)))
    windows = plan.windows(step, count, count + 2, first_row)
    assert windows.row[:count].tolist() == [(index + k) * length - first_row for k in range(count)]
    assert (
        windows.row[count - 1] + first_row + length < rows
    )  # the last target is a token of the row
    assert windows.epoch.tolist() == [epoch] * (count + 2) and windows.total.tolist() == [
        plan.total
    ] * (count + 2)
    assert windows.first.tolist() == [index == 0] + [False] * (count + 1)


def test_a_split_without_a_window_is_refused_with_the_sizes():
    check_fits("train", 21 * 60, 60, 20)
    with pytest.raises(
        DataError, match=r"train split has 1,259 tokens.*60 x \(bptt_length 20 \+ 1\) = 1,260"
    ):
        check_fits("train", 21 * 60 - 1, 60, 20)


def test_more_windows_than_a_run_counts_are_refused_with_the_numbers():
    check_fits("train", 21 * 60, 60, 20, epochs=MOST_WINDOWS)
    with pytest.raises(DataError, match=r"2,147,483,648 epochs of 1 windows.*2,147,483,647"):
        check_fits("train", 21 * 60, 60, 20, epochs=MOST_WINDOWS + 1)


def test_penn_treebank_is_cut_as_tensorflow_cuts_it(ptb_dir):
    ids = load_corpus("ptb", data_dir=ptb_dir).train
    rows = batch(ids, 60)
    assert rows[:7, 1].tolist() == [901, 33, 3361, 8, 1279, 437, 597]
    assert num_windows(len(rows), 20) == 774


@given(N=st.integers(1, 300), B=st.integers(1, 9), data=st.data())
def test_rows_of_a_file_are_those_of_the_batch(tmp_path_factory, N, B, data):
    ids = (
        np.random.default_rng(N)
        .integers(0, 1 << 16, N)
        .astype(data.draw(st.sampled_from(["<u2", "<i4"])))
    )
    ids.tofile(path := tmp_path_factory.mktemp("windows") / "ids")
    start = data.draw(st.integers(0, N // B))
    stop = data.draw(st.integers(start, N // B))
    some = slice(data.draw(st.integers(0, B)), data.draw(st.integers(0, B)))
    skipped = data.draw(st.integers(0, min(3, N - 1)))
    whole = np.memmap(path, ids.dtype, "r")
    offset = np.memmap(path, ids.dtype, "r", skipped * ids.itemsize)
    for found, expected in (
        (whole, ids),
        (whole[skipped:], ids[skipped:]),
        (offset, ids[skipped:]),
        (ids, ids),
    ):
        last = len(found) // B
        read = batch(found, B, some, min(start, last), min(stop, last))
        assert read.dtype == np.int32 and read.flags.c_contiguous
        cut = expected[: last * B].reshape(B, last).T
        np.testing.assert_array_equal(read, cut[min(start, last) : min(stop, last), some])
        np.testing.assert_array_equal(batch(found, B), cut)
