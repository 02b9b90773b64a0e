"""Windows: they tile each row of the batch, and their targets are their inputs shifted by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.config.settings import TrainConfig
from jaxlm.data.corpora import load_corpus
from jaxlm.data.windows import MOST_WINDOWS, WindowPlan, batch, check_fits, num_windows
from jaxlm.runs import loop
from jaxlm.training.step import read_window


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


@pytest.mark.parametrize(("R", "T", "B", "seed"), [(23, 4, 3, 5)])
def test_rolled_rows_begin_elsewhere_in_each_epoch_and_end_with_what_was_before(R, T, B, seed):
    """Each window's tokens are those of the row from the offset on, a function of the step."""
    tokens = np.arange(R * B, dtype=np.int32).reshape(R, B)
    plan = WindowPlan(R, T, 2, rolled=B, seed=seed)
    for step in range(plan.total):
        epoch, index = plan.locate(step)
        offsets = np.random.default_rng([seed, epoch]).integers(R, size=B)
        rolled = np.stack([np.roll(tokens[:, b], -offsets[b]) for b in range(B)], 1)
        windows = jax.tree.map(lambda column: column[0], plan.windows(step, 1, 2))
        window = read_window(jnp.asarray(tokens), windows, T)
        inputs = rolled[index * T : index * T + T]
        np.testing.assert_array_equal(window.inputs, inputs)
        np.testing.assert_array_equal(window.targets, rolled[index * T + 1 : index * T + T + 1])
    assert WindowPlan(R, T, 2).windows(0, 1, 2).offsets is None


def test_rows_of_a_text_that_is_read_in_slabs_are_not_rolled(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "WHOLE_TOKENS", 10)
    ids = np.memmap(tmp_path / "ids", np.int32, "w+", shape=(64,))
    counts = TrainConfig(batch_size=2, bptt_length=3, roll_rows=True)
    with pytest.raises(JaxlmError, match="at most 10 tokens, and it has 64: leave roll_rows out"):
        loop.feed(ids, counts).__enter__()
