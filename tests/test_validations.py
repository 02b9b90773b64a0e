"""training/validations.py: what follows from a validation,
also after a run was stopped and resumed.
"""

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, ONE_LAYER, B, T, V, begun, sentences

import jaxlm
from jaxlm.base.errors import Diverged, JaxlmError
from jaxlm.data.windows import WindowPlan
from jaxlm.runs import checkpoint, group, trainer
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.reproduction import reproduce
from jaxlm.runs.run import Run
from jaxlm.training.step import train_windows
from jaxlm.training.validations import (
    averaged,
    first_average,
    first_validations,
    switched,
    validated,
)

TOKENS = jax.device_put(np.random.default_rng(0).integers(0, V, (31, B)))
PLAN = WindowPlan(len(TOKENS), T, 9)


def after(config, losses, patience=0):
    """The memory after each validation."""
    memory = first_validations(config.recipe, patience)
    told = []
    for loss in losses:
        assert memory is not None
        memory = validated(config.recipe, memory, jnp.float32(loss))
        told.append(memory)
    return told


def test_the_rate_is_lowered_after_more_failures_than_its_patience_and_then_waits_anew():
    config = BASE.replace(schedule="plateau", plateau_factor=0.5, plateau_patience=1.0)
    told = after(config, [5, 4, 4.1, 4.0, 4.2, 4.3, 3.9, 4, 4])
    assert [float(memory.lowered.factor) for memory in told] == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
        0.125,
    ]


def test_stale_counts_the_validations_since_the_best_and_no_number_is_the_worst():
    told = after(BASE, [5, 4, 4, np.nan, 3.5, np.inf], patience=3)
    assert [int(memory.stale) for memory in told] == [0, 0, 1, 2, 0, 1]
    assert (
        first_validations(BASE.recipe) is None
    )  # nothing follows from a validation: nothing is remembered


def averaging(losses, **fields):
    """Whether averaging has started, after each validation."""
    return [
        bool(memory.switch.averaging)
        for memory in after(BASE.replace(**{"optimizer": "adamw", **fields}), losses)
    ]


def test_the_mogrifier_s_code_averages_once_the_best_is_so_many_validations_old():
    slow = [5, 4, 3, 3.2, 3.3, 3.4]
    sudden = [5, 4, 3, 5.5]
    lamb = dict(optimizer="lamb-adam")
    assert averaging(slow, nonmonotone=2, **lamb) == 4 * [False] + 2 * [True]
    assert averaging(slow, nonmonotone=2) == 5 * [False] + [True]
    assert averaging(sudden, nonmonotone=2, **lamb) == 4 * [False]
    assert averaging(sudden, nonmonotone=2) == 3 * [False] + [True]
    assert averaging([3, 4, 2, 2.5, 1], nonmonotone=2, **lamb) == 5 * [False]
    assert averaging([3, 4, 5, 1], nonmonotone=2, **lamb) == [
        False,
        False,
        True,
        True,
    ]  # and never stops


@pytest.mark.parametrize("optimizer", ["adamw", "lamb-adam"])
def test_averaging_starts_with_the_latest_validation(optimizer):
    fields = dict(nonmonotone=3, optimizer=optimizer, average_latest=4)
    assert averaging([5, 4, 3, 2, 1], **fields) == [False, False, False, True, True]
    preset = jaxlm.preset("mogrifier")
    assert (preset.optimizer.averages_after, preset.optimizer.averages_latest) == (
        50,
        800,
    )  # as published


def iterates(config, steps, averaging_from):
    """The embedding after each window, and the average at the end."""
    state = begun(config.recipe, jax.random.key(0), B)
    told = []
    for at in range(steps):
        if at == averaging_from:
            assert state.validations is not None and state.validations.switch is not None
            switch = state.validations.switch._replace(averaging=jnp.bool_(True))
            state = replace(state, validations=state.validations._replace(switch=switch))
        recipe = config.replace(learning_rate=0.1 * (at + 1)).recipe
        state, metrics = train_windows(
            recipe, state, TOKENS, PLAN.windows(at, 1, 4), jnp.int32(1), bptt_length=T
        )
        told.append(np.asarray(state.params["embedding"], np.float64))
        assert float(metrics.learning_rate[0]) == pytest.approx(0.1 * (at + 1))
    return told, state


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        (dict(optimizer="asgd"), 2),
        (dict(optimizer="awd-lstm"), 3),
        (dict(optimizer="adamw", nonmonotone=5), 2),
        (dict(optimizer="muon", nonmonotone=5), 2),
    ],
)
def test_the_average_is_that_of_all_iterates_since_the_switch(fields, first):
    """The published code overwrites the first iterate."""
    config = ONE_LAYER.replace(**fields)
    told, state = iterates(config, 5, averaging_from=2)
    np.testing.assert_allclose(
        state.evaluated["embedding"], np.mean(told[first:], 0), rtol=1e-5, atol=1e-6
    )
    before, state = iterates(config, 2, averaging_from=9)
    np.testing.assert_array_equal(
        state.evaluated["embedding"], before[-1]
    )  # the parameters themselves


def test_the_published_code_moves_by_the_rate_of_the_step_before():
    quirky = ONE_LAYER.replace(optimizer="awd-lstm", clip_norm=None)
    moved, _ = iterates(quirky, 3, averaging_from=0)
    told = []
    expected = begun(quirky.recipe, jax.random.key(0), B)
    for at, rate in enumerate((0.1, 0.1, 0.2)):  # of windows at 0.1, 0.2, 0.3
        recipe = quirky.replace(learning_rate=rate).recipe  # and no average
        expected, _ = train_windows(
            recipe, expected, TOKENS, PLAN.windows(at, 1, 4), jnp.int32(1), bptt_length=T
        )
        told.append(np.asarray(expected.params["embedding"]))
    np.testing.assert_allclose(moved, told, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A few lines that are learnt by heart, and others to validate on:
    validation soon gets worse.
    """
    return sentences(tmp_path_factory.mktemp("text"), train=20, valid=12, test=6)


@pytest.mark.parametrize(
    "fields",
    [
        dict(optimizer="asgd", nonmonotone=1, decay=1.0),
        dict(optimizer="adamw", learning_rate=0.1, nonmonotone=1, average_latest=3),
        dict(schedule="plateau", plateau_factor=0.5),
    ],
    ids=["asgd", "adamw", "plateau"],
)
def test_what_followed_is_the_same_after_a_stop(fields, text, tmp_path):
    """The switch, the lowered rate and the early end fall in the same windows,
    with the same numbers.

    Validation gets worse by a thousandth and more, so that rounding (XLA has several threads here)
    moves none of these.
    """
    config = BASE.replace(
        **{"learning_rate": 2.0} | fields,
        vocab_size=100,
        corpus=str(text),
        epochs=30,
        patience=4,
        clip_norm=1.0,
        hidden_sizes=(16,),
        checkpoint_every=3,
    )
    straight = jaxlm.train(config, run_dir=tmp_path / "straight", quiet=True)
    memory = straight.state.validations
    assert memory is not None and int(memory.stale) == 4 and 5 <= len(straight.epochs) < 30
    assert memory.switch is None or bool(memory.switch.averaging)
    assert memory.lowered is None or float(memory.lowered.factor) < 1
    per_epoch = int(straight.state.step) // len(straight.epochs)
    for steps in (
        per_epoch * (len(straight.epochs) - 3),
        per_epoch * (len(straight.epochs) - 1) - 2,
        None,
    ):
        resumed = jaxlm.train(
            config,
            run_dir=tmp_path / "stopped",
            steps=steps,
            quiet=True,
            resume=(tmp_path / "stopped").exists(),
        )
    assert len(resumed.epochs) == len(straight.epochs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (list(map(vars, resumed.epochs)), resumed.state.validations, resumed.state.evaluated),
        (list(map(vars, straight.epochs)), memory, straight.state.evaluated),
    )
    again = jaxlm.train(
        config, run_dir=tmp_path / "stopped", quiet=True, resume=True
    )  # it has ended: no window more
    assert int(again.state.step) == int(straight.state.step)
    assert [
        row["test_perplexity"]
        for row in read_metrics(tmp_path / "stopped")
        if row["kind"] == "test"
    ]


def test_members_end_early_as_they_would_alone(text, tmp_path):
    config = BASE.replace(
        optimizer="asgd",
        nonmonotone=1,
        vocab_size=100,
        corpus=str(text),
        epochs=20,
        patience=1,
        decay=1.0,
        clip_norm=1.0,
        hidden_sizes=(16,),
    )
    found = jaxlm.sweep(config, {"learning_rate": [2.0, 3.0]}, quiet=True)
    for member in found.members:
        alone = jaxlm.train(config.replace(**member.values, seed=member.seed), quiet=True)
        assert len(member.valid_perplexities) == len(alone.epochs) < 20
        np.testing.assert_allclose(
            member.valid_perplexities, [epoch.valid_perplexity for epoch in alone.epochs], rtol=1e-4
        )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            dict(optimizer="asgd", schedule="plateau"),
            "nonmonotone 5 of the optimizer and the schedule plateau",
        ),
        (dict(optimizer="asgd", average_decay=0.9), "average_decay .* optimizer asgd"),
        (dict(optimizer="adamw", nonmonotone=0, average_decay=0.9), "average_decay .* nonmonotone"),
        (dict(optimizer="muon", average_latest=9), "average_latest .* nonmonotone"),
        (dict(model="gru", optimizer="awd-lstm"), "optimizer awd-lstm .* model is gru"),
    ],
)
def test_contradictions_name_both_fields(fields, says):
    with pytest.raises(JaxlmError, match=says) as caught:
        BASE.replace(**fields)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def overfits(text):
    """A config whose best epoch is not its last."""
    fields = dict(
        vocab_size=100, corpus=str(text), learning_rate=2.0, clip_norm=1.0, hidden_sizes=(16,)
    )
    return BASE.replace(**fields)


def test_a_member_that_overfits_is_reproduced(overfits, tmp_path):
    jaxlm.sweep(
        overfits.replace(epochs=30, patience=1),
        {"decay": [1.0]},
        run_dir=tmp_path / "sweep",
        quiet=True,
    )
    run = tmp_path / "sweep/trials/0000"
    found = checkpoint.manifests(run)
    assert checkpoint.best_step(found) != max(found)
    assert reproduce(run, tmp_path / "again", quiet=True).results == []


def test_a_run_of_all_its_epochs_has_not_ended_early(overfits, capsys):
    early = jaxlm.train(overfits.replace(epochs=30, patience=1))
    assert "ended early" in capsys.readouterr().out and len(early.epochs) < 30
    jaxlm.train(overfits.replace(epochs=len(early.epochs), patience=1))
    assert "ended early" not in capsys.readouterr().out


class TwoTails:
    """Two-Tailed Averaging, written from the thesis's algorithm 1: lists of iterates, no sums."""

    def __init__(self):
        self.short, self.long = [], []

    def add(self, iterate):
        self.short = [*self.short, iterate]
        self.long = [*self.long, iterate]

    def evaluate(self, loss):
        """The loss of the longer average, after the shorter one has replaced it or not."""
        of_short, of_long = (loss(np.mean(tail, 0)) for tail in (self.short, self.long))
        if of_short <= of_long:
            self.short, self.long = [], self.short
            return of_short
        return of_long


def test_two_tailed_averages_follow_the_algorithm():
    """Iterates that circle a moving target, in float64; validations every 3 updates."""
    rng = np.random.default_rng(0)
    optimizer = BASE.replace(two_tailed=True).optimizer
    average = first_average(optimizer, {"w": jnp.zeros(2)})
    tails = TwoTails()
    switches = 0
    for update in range(1, 61):
        target = np.array([min(update, 20), 0.0])
        iterate = target + rng.normal(size=2) * 3
        tails.add(iterate)
        average = averaged(optimizer, average, {"w": jnp.asarray(iterate)}, jnp.bool_(False))
        assert average is not None and average.short is not None
        if update % 3 == 0:

            def loss(mean, target=target):
                return float(((np.asarray(mean) - target) ** 2).sum())

            if loss(average.short.params["w"]) <= loss(average.params["w"]):
                average = switched(average)
                switches += 1
            expected = tails.evaluate(loss)
            assert loss(average.params["w"]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert average.short is not None
            assert int(average.iterates) == len(tails.long)
            assert int(average.short.iterates) == len(tails.short)
    assert 3 < switches < 20


def test_two_tailed_averaging_takes_no_second_average():
    for fields in (
        dict(average_decay=0.9),
        dict(optimizer="adamw", nonmonotone=3),
        dict(optimizer="asgd"),
    ):
        with pytest.raises(JaxlmError, match="two_tailed"):
            BASE.replace(two_tailed=True, **fields)


def test_a_run_that_diverges_goes_back_to_its_best_checkpoint_at_a_lower_rate(
    tmp_path, monkeypatch
):
    """At the full rate its third validation is bad, and the window after it is not finite."""
    text = sentences(tmp_path, train=60, valid=9, test=9)
    config = ONE_LAYER.replace(
        two_tailed=True, restart_factor=0.5, learning_rate=0.25, epochs=4, decay=1.0
    )
    whole = Run.trained
    end_epoch = Run.end_epoch

    def ended(run, valid):
        bad = run.epoch == 3 and run.learning_rate > 0.2
        end_epoch(run, 999.0 if bad else valid)

    def trained(run, metrics, count):
        if run.epoch == 3 and np.asarray(metrics.learning_rate)[0] > 0.2:
            finite = np.zeros_like(np.asarray(metrics.finite))
            metrics = replace(metrics, finite=finite)
        return whole(run, metrics, count)

    monkeypatch.setattr(Run, "trained", trained)
    monkeypatch.setattr(Run, "end_epoch", ended)
    averages: dict[int, list[Any]] = {}
    save = checkpoint.save

    def saved(folder, state, config, vocab, manifest):
        averages.setdefault(manifest.step, []).append(jax.device_get(state.average))
        save(folder, state, config, vocab, manifest)

    monkeypatch.setattr(checkpoint, "save", saved)
    earlier = []

    class Watched(trainer.SingleGroup):
        def __init__(self, *arguments):
            gc.collect()
            assert not any(reference() for reference in earlier)  # its state would fill memory
            earlier.append(weakref.ref(self))
            super().__init__(*arguments)

    monkeypatch.setattr(trainer, "SingleGroup", Watched)
    folder = tmp_path / "run"
    result = jaxlm.train(config, text, folder, quiet=True)
    assert len(earlier) == 2
    epochs = [row for row in read_metrics(folder) if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in epochs] == [0.25, 0.25, 0.125, 0.125]
    assert epochs[2]["valid_perplexity"] < 999
    record = result.state.validations
    assert record is not None and record.slowed == 0.5
    (aside,) = (folder / "checkpoints").glob("*.diverged")
    assert int(aside.stem) == epochs[2]["step"]
    before, after = averages[epochs[1]["step"]]  # both averages go back too
    jax.tree.map(np.testing.assert_array_equal, before, after)
    with pytest.raises(Diverged):
        jaxlm.train(config.replace(restart_factor=None), text, tmp_path / "ends", quiet=True)


def test_an_average_of_no_number_is_not_the_better_one(monkeypatch):
    monkeypatch.setattr(group, "stream_nats", lambda *_: (np.nan, 1))
    state: Any = SimpleNamespace(average=SimpleNamespace(short=SimpleNamespace(params=None)))
    recipe: Any = SimpleNamespace(model=None)
    assert group._switched(recipe, state, 3.0, np.zeros(2), 1, 1, None) == (3.0, state)


def test_a_validation_has_the_perplexity_of_the_better_average(tmp_path, monkeypatch):
    """In a run and in members alike, whichever of the two averages it is."""
    text = sentences(tmp_path, train=60, valid=9, test=9)
    config = ONE_LAYER.replace(two_tailed=True, learning_rate=0.5, epochs=4, decay=1.0)
    seen = []
    whole = group._switched

    def watched(recipe, state, nats, *rest):
        better, after = whole(recipe, state, nats, *rest)
        average: Any = after.average
        seen.append((nats, better, int(average.short.iterates)))
        return better, after

    monkeypatch.setattr(group, "_switched", watched)
    result = jaxlm.train(config, text, quiet=True)
    assert all(better <= long for long, better, _ in seen)
    switches = [short == 0 for *_, short in seen]
    assert switches[0] and len(seen) == 4
    valid = [epoch.valid_perplexity for epoch in result.epochs]
    predictions = np.log(valid[0]) / seen[0][1]
    np.testing.assert_allclose(
        np.log(valid), [better * predictions for _, better, _ in seen], rtol=1e-5
    )
    space = {"learning_rate": [0.5, 0.25]}
    swept = jaxlm.sweep(config, space, corpus=text, quiet=True, vmap=True)
    (member,) = [
        one for trial in swept.trials for one in trial.members if one.values["learning_rate"] == 0.5
    ]
    np.testing.assert_allclose(member.valid_perplexities, valid, rtol=1e-4)
