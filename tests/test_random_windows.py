"""Windows of random length: a function of the step,
padded so that nothing compiles anew; and small batches.
"""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import (
    BASE,
    BLOCK,
    EVERY_DROPOUT,
    MODELS,
    ONE_LAYER,
    RANDOM_WINDOWS,
    B,
    V,
    begun,
    parameters,
)

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.data.corpora import load_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.windows import RandomLengths, WindowPlan
from jaxlm.models.noise import draw_noise
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.run import window_plan
from jaxlm.training import step as steps
from jaxlm.training.step import Window, read_window, train_step

step = jax.jit(train_step)
drawn = jax.jit(draw_noise, static_argnums=(2, 3))
LONGEST = int(RANDOM_WINDOWS["longest_window"])


def lengths_of(
    nominal=8, short=0.3, deviation=2.0, shortest=3, longest=20, seed=0, published=False
):
    return RandomLengths(nominal, short, deviation, shortest, longest, seed, published)


def assert_close(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


@settings(max_examples=30)
@given(
    rows=st.integers(2, 200),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 9),
    shortest=st.integers(1, 9),
    data=st.data(),
)
def test_windows_tile_each_epoch_and_follow_from_the_step(rows, epochs, seed, shortest, data):
    plan = WindowPlan(rows, 20, epochs, lengths_of(seed=seed, shortest=shortest))
    seen = [plan.locate(at) for at in range(plan.total)]
    assert seen == [
        (epoch, index) for epoch in range(epochs) for index in range(plan.windows_in(epoch))
    ]
    assert plan.locate(plan.total) == (epochs, 0) and plan.row(0, epochs) == 0
    end = 0
    for at, (epoch, index) in enumerate(seen):
        windows = plan.windows(at, 1, 2)
        assert (
            windows.first.tolist() == [index == 0, False] and windows.epoch.tolist() == [epoch] * 2
        )
        assert (
            windows.row[0] == plan.row(index, epoch) == (end if index else 0)
        )  # each begins where the last ended
        end = int(windows.row[0] + windows.length[0])
        last = index == plan.windows_in(epoch) - 1
        assert 1 <= windows.length[0] <= 20 and (last or windows.length[0] >= shortest)
        assert (
            end == rows - 1 if last else end < rows - 1
        )  # every token but the first is a target once
        np.testing.assert_allclose(windows.rate[0], windows.length[0] / 8, rtol=1e-6)
    lengths = [int(plan.windows(at, 1, 1).length[0]) for at in range(plan.total)]
    for at in range(plan.total + 1):
        assert plan.rows_read(at) == sum(lengths[:at])
    again = WindowPlan(
        rows, 20, epochs + 3, lengths_of(seed=seed, shortest=shortest)
    )  # more epochs change no window
    at = data.draw(st.integers(0, plan.total - 1))
    jax.tree.map(
        np.testing.assert_array_equal, again.windows(at, 1, 1)[:2], plan.windows(at, 1, 1)[:2]
    )


@pytest.mark.parametrize(
    ("rows", "drawn"), [(30, [10, 9, 8, 7]), (28, [10, 9, 8, 7]), (29, [10, 9, 8, 7]), (12, [10])]
)
def test_the_published_code_ends_an_epoch_by_drawn_lengths(rows, drawn):
    """Its loop, written out: `while i < rows - 1 - 1`, a rate for the drawn length,
    a window cut at the end.
    """

    class Given(RandomLengths):
        def draw(self, rows, epoch):
            return np.array(drawn + [10] * 9)

    i = 0
    expected = []
    ours = []
    queue = iter(drawn + [10] * 9)
    while i < rows - 1 - 1:
        length = next(queue)
        expected.append((i, min(length, rows - 1 - i), length / 10))
        i += length
    for published in (True, False):
        plan = WindowPlan(rows, 20, 1, Given(10, 0.0, 1.0, 1, 20, 0, published))
        windows = plan.windows(0, plan.total, plan.total)
        ours = [*zip(windows.row, windows.length, windows.rate, strict=True)]
        if published:
            np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert (
        sum(length for _, length, _ in ours) == rows - 1
    )  # without the quirk no token is left out


def test_the_quirks_of_awd_lstm_are_not_those_of_another_code():
    config = BASE.replace(optimizer="adamw", **RANDOM_WINDOWS)
    assert window_plan(config.replace(optimizer="lamb-adam"), 500) == window_plan(config, 500)
    assert window_plan(config.replace(optimizer="awd-lstm"), 500) != window_plan(config, 500)


def test_lengths_are_drawn_as_they_should_be():
    lengths = RandomLengths(70, 0.05, 5.0, 5, 110, 3).draw(3_000_000, 0)
    short = lengths < 52
    assert short.mean() == pytest.approx(0.05, abs=0.005)
    assert lengths[~short].mean() == pytest.approx(69.5, abs=0.1) and lengths[
        ~short
    ].std() == pytest.approx(5, abs=0.1)
    assert lengths[short].mean() == pytest.approx(34.5, abs=0.5)
    assert (lengths[:99] != RandomLengths(70, 0.05, 5.0, 5, 110, 3).draw(9_000, 1)[:99]).any()
    assert BASE.replace(bptt_length=70, length_deviation=5).train.longest == 110


CHANGES = {
    **{name: dict(model=name) for name in MODELS},
    "block": dict(model="mlstm", **BLOCK, keep_output=0.8, keep_last_output=0.8),
    "state dropped": dict(**EVERY_DROPOUT, keep_state=0.6),
    "penalties": dict(cost="mean", activation_penalty=0.5, temporal_penalty=0.7, weight_decay=0.01),
}


@pytest.mark.parametrize("changes", parameters(CHANGES, {*CHANGES} - {*MODELS} | {"lstm", "hawk"}))
@pytest.mark.parametrize(
    "length",
    [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(LONGEST, marks=pytest.mark.slow)],
)
def test_a_padded_window_is_the_short_one(changes, length):
    """Cost, gradient, parameters and carry: padded steps leave no trace."""
    recipe = ONE_LAYER.replace(learning_rate=0.5, **changes).recipe
    state = begun(recipe, jax.random.key(0), B)
    state = replace(state, carry=jax.tree.map(lambda leaf: leaf + 0.1, state.carry))
    tokens = jax.device_put(np.random.default_rng(0).integers(0, V, (LONGEST + 1, B)))
    long = Window(tokens[:-1], tokens[1:], length=jnp.int32(length), rate=jnp.float32(0.5))
    short = Window(tokens[:length], tokens[1 : length + 1], rate=jnp.float32(0.5))
    (padded, a), (exact, b) = step(recipe, state, long), step(recipe, state, short)
    assert_close(a, b, rtol=2e-5)
    assert_close((padded.params, padded.carry), (exact.params, exact.carry), rtol=1e-4, atol=1e-6)
    halved, _ = step(
        ONE_LAYER.replace(learning_rate=0.25, **changes).recipe,
        state,
        replace(short, rate=jnp.float32(1)),
    )
    assert_close(halved.params, exact.params, rtol=1e-5, atol=1e-7)


def test_a_window_at_the_end_is_padded_behind_the_last_token():
    tokens = jnp.arange(12)[:, None] * jnp.ones((1, B), jnp.int32)
    plan = WindowPlan(12, 20, 1, lengths_of())
    last = plan.total - 1
    read = read_window(tokens, jax.tree.map(lambda column: column[0], plan.windows(last, 1, 1)), 20)
    assert read.length is not None
    length = int(read.length)
    assert read.inputs.shape == (20, B)
    assert read.targets[:length, 0].tolist() == list(range(12 - length, 12))


@pytest.mark.parametrize("small", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_small_batches_are_the_mean_of_their_gradients_with_masks_of_their_own(small):
    recipe = ONE_LAYER.replace(clip_norm=None, keep_recurrent_weights=0.6, **EVERY_DROPOUT).recipe
    state = begun(recipe, jax.random.key(0), B)
    tokens = np.random.default_rng(0).integers(0, V, (6, B)).astype(np.int32)
    window = Window(jnp.asarray(tokens[:-1]), jnp.asarray(tokens[1:]), small_batch=small)
    after, metrics = jax.device_get(step(recipe, state, window))
    assert state.key is not None
    key = jax.random.fold_in(state.key, 0)
    params, carry = jax.device_get((state.params, state.carry))
    moved = []
    costs = []
    for number in range(B // small):
        rows = slice(number * small, (number + 1) * small)
        noise = drawn(recipe.model, jax.random.fold_in(key, number), 5, small)
        own = replace(state, carry=jax.tree.map(lambda leaf, rows=rows: leaf[rows], carry))
        part = Window(jnp.asarray(tokens[:-1, rows]), jnp.asarray(tokens[1:, rows]))
        one, found = jax.device_get(step(recipe, own, part, noise))
        moved.append(jax.tree.map(lambda a, b: a - b, one.params, params))
        costs.append(float(found.cost))
        assert_close(
            one.carry,
            jax.tree.map(lambda leaf, rows=rows: leaf[rows], after.carry),
            rtol=1e-5,
            atol=1e-6,
        )
    assert float(metrics.cost) == pytest.approx(np.mean(costs), rel=1e-5)
    expected = jax.tree.map(lambda start, *each: start + sum(each) / len(each), params, *moved)
    assert_close(after.params, expected, rtol=1e-4, atol=1e-6)


def test_without_dropout_small_batches_change_nothing():
    recipe = ONE_LAYER.recipe
    state = begun(recipe, jax.random.key(0), B)
    tokens = jax.device_put(np.random.default_rng(0).integers(0, V, (6, B)))
    (a, whole), (b, parts) = (
        step(recipe, state, Window(tokens[:-1], tokens[1:], small_batch=small)) for small in (0, 2)
    )
    assert_close(whole, parts, rtol=1e-5)
    assert_close((a.params, a.carry), (b.params, b.carry), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for split, words in (("train", 599), ("valid", 119), ("test", 59)):  # and <eos>
        (folder / f"{split}.txt").write_text(
            " ".join(f"w{word}" for word in rng.integers(0, 9, words)) + "\n"
        )
    return load_corpus(folder)


CONFIG = BASE.replace(
    vocab_size=100, **RANDOM_WINDOWS, **EVERY_DROPOUT, checkpoint_every=3, small_batch=2
)


def test_a_run_compiles_once_and_resumed_anywhere_it_is_the_same(corpus, tmp_path, monkeypatch):
    traced = []
    one = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *args: (traced.append(1), one(*args))[1])
    straight = jaxlm.train(CONFIG, corpus, tmp_path / "straight", quiet=True)
    assert len(traced) == 1
    rows = read_metrics(tmp_path / "straight")
    lengths = [row.get("steps", 5) for row in rows if row["kind"] == "window"]
    assert len(set(lengths)) > 3 and sum(lengths) == 2 * 149  # every epoch reads all
    done = int(straight.state.step)
    for stop in (4, done // 2, done - 1, None):
        resumed = jaxlm.train(
            CONFIG, corpus, tmp_path / "resumed", steps=stop, resume=stop != 4, quiet=True
        )
    assert_close(resumed.state.params, straight.state.params, rtol=1e-6)
    assert [row for row in read_metrics(tmp_path / "resumed") if row["kind"] == "epoch"] == [
        row for row in rows if row["kind"] == "epoch"
    ]
    assert (
        jaxlm.evaluate(tmp_path / "straight", corpus=corpus).perplexity == straight.test_perplexity
    )


@pytest.mark.slow
def test_a_mapped_corpus_trains_to_the_same_numbers(corpus, tmp_path):
    corpus.train.astype("<u2").tofile(tmp_path / "ids")
    mapped = replace(corpus, train=np.memmap(tmp_path / "ids", "<u2", "r"))
    a, b = (jaxlm.train(CONFIG, text, quiet=True).state for text in (corpus, mapped))
    assert_close(a.params, b.params, rtol=1e-6)


@pytest.mark.slow
def test_members_of_a_sweep_read_the_same_windows_and_equal_runs_alone(corpus):
    """Those of later trials too, which wait for the next group."""
    result = jaxlm.sweep(
        CONFIG, {"learning_rate": [0.1, 0.2, 0.3]}, corpus=corpus, group=2, quiet=True
    )
    found = sorted(member.valid_perplexities[-1] for member in result.members)
    alone = sorted(
        jaxlm.train(CONFIG.replace(learning_rate=rate), corpus, quiet=True)
        .epochs[-1]
        .valid_perplexity
        for rate in (0.1, 0.2, 0.3)
    )
    np.testing.assert_allclose(found, alone, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(length_deviation=2, shortest_window=0),
            "shortest_window must be at least 1 .*; it is 0",
        ),
        (
            dict(length_deviation=2, longest_window=9),
            "bptt_length 20 is more than the 9 tokens of longest_window",
        ),
        (
            dict(length_deviation=0, bptt_length=4),
            "shortest_window 5 is more than the 4 tokens of longest_window",
        ),
        (dict(small_batch=7), "small_batch must divide batch_size 60; it is 7"),
    ],
)
def test_what_means_nothing_is_refused_in_a_sentence_with_both_fields(changes, message):
    with pytest.raises(JaxlmError, match=message):
        jaxlm.preset("small").replace(**changes)


def test_windows_of_an_epoch_are_counted_by_its_own_number(corpus, monkeypatch, capsys):
    monkeypatch.setattr("jaxlm.report.progress.LINE_SECONDS", 0)
    jaxlm.train(CONFIG.replace(epochs=3, windows_per_call=1), corpus)
    counts = re.findall(r"epoch (\d+)/3, window ([\d,]+)/([\d,]+)", capsys.readouterr().out)
    numbers = [[int(part.replace(",", "")) for part in found] for found in counts]
    assert numbers and all(window <= of for _, window, of in numbers)
    ends = {epoch: (window, of) for epoch, window, of in numbers}
    assert [*ends] == [1, 2, 3] and all(window == of for window, of in ends.values())
    assert len({of for _, of in ends.values()}) > 1
