"""Whole runs in this process: one compile, exact resume, labels that are true, divergence."""

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from processes import MILESTONES, WINDOWS, assert_same, kept

import jaxlm
from jaxlm.base.errors import CheckpointError, DataError, Diverged, JaxlmError, RunDirError
from jaxlm.base.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.data.windows import WindowPlan, batch
from jaxlm.runs import checkpoint, ram, state_arrays
from jaxlm.runs import run as run_module
from jaxlm.runs.directory import saved_record
from jaxlm.runs.group import SingleGroup
from jaxlm.runs.metrics import MetricsLog, read_metrics, read_timing
from jaxlm.runs.run import window_plan
from jaxlm.runs.status import status
from jaxlm.runs.trainer import new_state
from jaxlm.training import step as steps

CONFIG = processes.CONFIG.replace(checkpoint_every=20)


@pytest.fixture(scope="module")
def corpus():
    return processes.load_text()


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """An uninterrupted run of three epochs, with dropout."""
    return jaxlm.train(CONFIG, corpus, tmp_path_factory.mktemp("train") / "run", quiet=True)


@pytest.fixture(scope="module")
def reference(finished):
    return kept(finished.run_dir)


@pytest.fixture
def train(corpus, tmp_path):
    """Begins or resumes the run in tmp_path."""

    def call(config=CONFIG, **options):
        folder = tmp_path / options.pop("run_dir", "run")
        given = options.pop("corpus", corpus)
        return jaxlm.train(config, given, folder, quiet=True, resume=folder.exists(), **options)

    return call


def test_no_epoch_s_time_holds_a_validation(train, monkeypatch):
    seconds = [0.0]
    validate = SingleGroup.validate

    def long_validation(group):
        seconds[0] += 1000
        return validate(group)

    monkeypatch.setattr(SingleGroup, "validate", long_validation)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    result = train(CONFIG.replace(epochs=2, checkpoint_every=0))
    assert result.run_dir
    timing = read_timing(result.run_dir)
    assert {epoch: row["seconds"] for epoch, row in timing.items()} == {1: 0, 2: 0}


def test_a_run_is_traced_once_and_no_number_traces_it_again(corpus, monkeypatch):
    traced = []
    step = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *args: (traced.append(1), step(*args))[1])
    config = CONFIG.replace(epochs=2, windows_per_call=5)  # as no test before this one
    jaxlm.train(config, corpus, quiet=True)
    once = len(traced)
    numbers = {
        name: 0.9 * value or 0.5
        for section, name, spec, value in config.every_field()
        if spec.type is float and value is not None
    }
    jaxlm.train(
        config.replace(**numbers, epochs=1, on_nonfinite="skip"), corpus, steps=5, quiet=True
    )
    assert len(traced) == once == 1


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([10], id="within an epoch", marks=pytest.mark.slow),
        pytest.param([WINDOWS], id="at its edge", marks=pytest.mark.slow),
        pytest.param([WINDOWS - 1, WINDOWS + 1], id="over its edge"),
        pytest.param([5, 50, 2 * WINDOWS], id="within, and at an edge"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bytes(train, reference, tmp_path, stops):
    for stop in stops:
        train(steps=stop)
    result = train()
    assert_same(tmp_path / "run", reference)
    assert result.stopped_by is None


def test_a_signal_saves_where_no_checkpoint_is_due(train, reference, tmp_path):
    """In the middle of an epoch, without `checkpoint_every`: the only edge is the signal."""

    def interrupt(step: int, _: object) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(CONFIG.replace(checkpoint_every=0, windows_per_call=4), on_metrics=interrupt)
    (saved,) = checkpoint.manifests(tmp_path / "run")
    assert result.stopped_by == signal.SIGTERM and saved == result.state.step and 8 <= saved <= 12
    train()
    assert_same(tmp_path / "run", reference)


def test_a_signal_s_handler_that_is_not_python_s_stays_out_of_the_way(train, monkeypatch):
    """As of an interpreter that R or Julia began:
    Python can neither name such a handler nor put it back.
    """
    whole = signal.signal

    def foreign(number: int, handler: Any) -> Any:
        before = whole(number, handler)
        if number == signal.SIGUSR1:
            return None
        return before

    monkeypatch.setattr(signal, "signal", foreign)
    try:
        assert train(steps=1).stopped_by is None
    finally:
        whole(signal.SIGUSR1, signal.SIG_DFL)


def test_a_signal_in_the_last_validation_ends_the_run_before_its_test(train, tmp_path):
    def interrupt(_: int, values: dict[str, float]) -> None:
        if "epoch/valid_perplexity" in values:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # on a busy machine the thread that notes signals may come late

    result = train(CONFIG.replace(epochs=1), on_metrics=interrupt)
    assert (result.stopped_by, result.test_perplexity) == (signal.SIGTERM, None)
    assert max(checkpoint.manifests(tmp_path / "run")) == WINDOWS


def test_a_finished_run_that_is_resumed_is_said_to_be_finished(finished, tmp_path, corpus, capsys):
    run = shutil.copytree(finished.run_dir, tmp_path / "run")
    result = jaxlm.train(CONFIG, corpus, run, resume=True)
    assert result.test_perplexity == finished.test_perplexity
    assert (
        "has finished (3 epochs, 117 windows): nothing is left to train" in capsys.readouterr().out
    )


def test_other_calls_and_other_checkpoints_change_no_result(train, reference, tmp_path):
    train(CONFIG.replace(epochs=1, windows_per_call=5, checkpoint_every=3))
    train(CONFIG.replace(checkpoint_every=0))
    files = kept(tmp_path / "run")
    changed = {name for name in files if files[name] != reference[name]}
    labels = ("last", "best", *MILESTONES)
    assert changed == {
        f"{which}/{name}.json" for which in labels for name in ("config", "manifest")
    }


def test_an_epochs_rate_does_not_depend_on_where_a_run_was_stopped(train, corpus, tmp_path):
    config = CONFIG.replace(schedule="linear", epochs=1, checkpoint_every=0)
    jaxlm.train(config, corpus, tmp_path / "whole", quiet=True)
    train(config, steps=WINDOWS - 1)
    train(config)
    assert_same(tmp_path / "run", kept(tmp_path / "whole"))


def test_the_labels_are_true(finished):
    found = checkpoint.manifests(finished.run_dir)
    valid = {
        row["step"]: row["valid_perplexity"]
        for row in read_metrics(finished.run_dir)
        if row["kind"] == "epoch"
    }
    assert max(found) == 3 * WINDOWS == finished.state.step
    assert checkpoint.best_step(found) == min(valid, key=valid.__getitem__)
    assert {
        step: manifest.valid_perplexity for step, manifest in found.items() if step in valid
    } == {step: valid[step] for step in found if step in valid}


def test_evaluation_prints_what_training_printed(finished, corpus):
    loaded = jaxlm.load(finished.run_dir)
    assert loaded.evaluate("test", corpus=corpus).perplexity == finished.test_perplexity
    assert (
        loaded.evaluate("valid", corpus=corpus).perplexity == finished.epochs[-1].valid_perplexity
    )
    best = min(finished.epochs, key=lambda row: row.valid_perplexity)
    evaluated = jaxlm.evaluate(finished.run_dir, "valid", which="best", corpus=corpus)
    assert evaluated.perplexity == best.valid_perplexity
    jax.tree.map(np.testing.assert_array_equal, loaded.params, finished.params)


def test_a_run_in_memory_is_the_same_run(finished, corpus, monkeypatch):
    """Where it is quiet it makes no n-gram model, which it would print."""
    monkeypatch.setattr("jaxlm.runs.ngram_models.ngram", lambda *_: pytest.fail("nobody reads it"))
    result = jaxlm.train(CONFIG, corpus, quiet=True)
    assert result.run_dir is None and result.test_perplexity == finished.test_perplexity
    assert result.epochs == finished.epochs
    jax.tree.map(np.testing.assert_array_equal, result.params, finished.params)


def test_given_parameters_are_kept_from_the_start(train, corpus, finished, tmp_path):
    train(params=finished.params, steps=0)
    assert list(checkpoint.manifests(tmp_path / "run")) == [0]
    resumed = train(steps=8)
    straight = jaxlm.train(CONFIG, corpus, params=finished.params, steps=8, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), finished.params)
    assert (
        jaxlm.train(CONFIG, corpus, params=narrow, steps=1, quiet=True).params["embedding"].dtype
        == np.float32
    )


def test_a_damaged_last_checkpoint_is_passed_over_and_the_end_is_the_same(
    train, reference, tmp_path, capsys, corpus
):
    train(steps=60)
    chunk = checkpoint.find(tmp_path / "run") / "state.safetensors"
    damaged = bytearray(chunk.read_bytes())
    damaged[1000] ^= 4
    chunk.write_bytes(damaged)
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"state.safetensors is damaged.*newest intact one is 45"
    ):
        jaxlm.load(tmp_path / "run")
    jaxlm.train(CONFIG, corpus, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert (
        f"{chunk} is damaged" in said and "resuming from the newest intact checkpoint, 45" in said
    )
    assert_same(tmp_path / "run", reference)


def test_a_damaged_checkpoint_that_comes_back_after_a_resume_is_not_missed(
    train, reference, tmp_path, corpus, monkeypatch
):
    """The resumed run is killed before its first save,
    when the metrics end at the checkpoint before.
    """
    train(steps=60)
    chunk = checkpoint.find(tmp_path / "run") / "state.safetensors"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[1:])

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "windows", killed)
        with pytest.raises(KeyboardInterrupt):
            jaxlm.train(CONFIG, corpus, tmp_path / "run", resume=True)
    if chunk.parent.is_dir():
        chunk.write_bytes(whole)
    jaxlm.train(CONFIG, corpus, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", reference)


@pytest.mark.parametrize("how", ["a changed digit", "a line less", "missing"])
def test_metrics_that_a_checkpoint_did_not_seal_are_refused_and_nothing_is_removed(
    train, tmp_path, how
):
    train(steps=25)
    path = tmp_path / "run/metrics.jsonl"
    before = sorted((tmp_path / "run/checkpoints").rglob("*"))
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            data.replace(b"1", b"2", 1) if how == "a changed digit" else data.split(b"\n", 2)[2]
        )
    with pytest.raises(
        RunDirError,
        match=r"metrics.jsonl(:| is damaged: its first .* are not those that the checkpoint)",
    ):
        train()
    assert sorted((tmp_path / "run/checkpoints").rglob("*")) == before
    path.write_bytes(
        data + b'{"kind":"window"'
    )  # lines after the checkpoint, whole or not, are trained again
    train(steps=26)


def test_a_resumed_run_draws_no_parameters(train, monkeypatch):
    """They would take time and twice the memory; the checkpoint has them."""
    train(steps=3)
    monkeypatch.delattr("jaxlm.runs.trainer.new_state")
    train(steps=4)


def test_a_resumed_run_is_refused_by_a_device_without_memory_for_it(train, monkeypatch):
    train(steps=3)
    monkeypatch.setattr(ram, "of_device", lambda: 5_000)
    with pytest.raises(JaxlmError, match=r"training this config needs at least .* on this device"):
        train(steps=4)


def test_before_its_first_checkpoint_another_text_is_refused_and_given_parameters_are_recorded(
    train, tmp_path
):
    params = train(steps=2).params
    shutil.rmtree(tmp_path / "run/checkpoints")
    record = json.loads((tmp_path / "run/run.json").read_text())
    other = {**record, "corpus": {**record["corpus"], "sha256": "0" * 64}}
    (tmp_path / "run/run.json").write_text(json.dumps(other))
    with pytest.raises(
        RunDirError, match=f"another config or corpus .corpus sha256: {'0' * 64} -> "
    ):
        train(steps=2)
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    train(steps=2, params=params)
    assert saved_record(tmp_path / "run")["params"] == "given"


def test_given_parameters_that_a_killed_run_has_not_saved_are_not_replaced_by_drawn_ones(
    train, monkeypatch, tmp_path
):
    params = train(steps=2).params
    with monkeypatch.context() as patched, pytest.raises(TypeError):
        patched.setattr("jaxlm.runs.run.Run.save", None)  # ends the run there
        train(run_dir="given", params=params)
    with pytest.raises(
        RunDirError, match="began from given parameters, and was stopped before it saved them"
    ):
        train(run_dir="given", steps=1)
    assert (
        train(run_dir="given", params=params, steps=0).params["embedding"].tolist()
        == params["embedding"].tolist()
    )
    assert [*checkpoint.manifests(tmp_path / "given")] == [0]


def test_a_run_stopped_in_the_test_of_its_best_is_not_finished(train, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxlm.runs.trainer.stream_nats", interrupted)  # (of the best alone)
    monkeypatch.setattr(checkpoint, "best_step", lambda found: min(found, default=None))
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG.replace(epochs=1, checkpoint_every=10))
    assert not [row for row in read_metrics(tmp_path / "run") if row["kind"] == "test"]


def test_where_nothing_is_intact_it_says_so(train, tmp_path):
    train(steps=3)
    (checkpoint.find(tmp_path / "run") / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .* is intact: .*manifest.json is damaged"
    ):
        train()


def test_another_config_or_corpus_is_refused_field_by_field(train, tmp_path, corpus):
    train(steps=WINDOWS)
    before = kept(tmp_path / "run")
    with pytest.raises(
        RunDirError,
        match=r"hidden_sizes: \(4,\) -> \(8, 7\); optimizer.learning_rate: 1.0 -> 0.5",
    ):
        train(CONFIG.replace(hidden_sizes=(8, 7), learning_rate=0.5, epochs=9))
    words = list(corpus.vocab.words)
    words[3], words[4] = words[4], words[3]
    other = dataclasses.replace(corpus, sha256="0" * 64, vocab=jaxlm.Vocab(tuple(words)))
    with pytest.raises(
        RunDirError, match=rf"corpus sha256: {corpus.sha256} -> 000.*vocab_sha256: .*word 3 is \['"
    ):
        train(corpus=other)
    assert kept(tmp_path / "run") == before


def sealed_anew(path, **changes) -> None:
    """Seals a checkpoint with its files as they are now."""
    tree = from_hashed_json((path / "manifest.json").read_bytes())
    named = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in tree["files"]}
    (path / "manifest.json").write_text(to_hashed_json({**tree, "files": named, **changes}))


def test_other_library_versions_are_noted(train, tmp_path, capsys, corpus):
    train(steps=3)
    path = checkpoint.find(tmp_path / "run")
    sealed_anew(path, versions={"jaxlm": "0.0.1", "jax": "0.3"})
    assert checkpoint.load(tmp_path / "run").manifest.versions["jax"] == "0.3"
    jaxlm.train(CONFIG, corpus, tmp_path / "run", resume=True, steps=5)
    assert "written under other library versions (jax: 0.3 -> " in capsys.readouterr().out


def test_a_file_system_without_locks_is_noted(tmp_path, capsys, corpus, monkeypatch):
    note = "keeps no process from another's lock"
    jaxlm.train(CONFIG, corpus, tmp_path / "run", steps=1)
    assert note not in capsys.readouterr().out
    monkeypatch.setattr("jaxlm.runs.lock.fcntl.flock", lambda *_: None)  # as on such a system
    jaxlm.train(CONFIG, corpus, tmp_path / "run", resume=True, steps=1)
    assert note in " ".join(capsys.readouterr().out.split())


def windows_with(corpus, word: int) -> list[int]:
    """The windows of an epoch, from 0, that read a word."""
    tokens = batch(corpus.train, CONFIG.train.batch_size)
    return [k for k in range(WINDOWS) if (tokens[20 * k : 20 * k + 20] == word).any()]


def test_divergence_stops_before_the_update_and_the_last_checkpoint_stays_good(
    train, tmp_path, corpus, finished
):
    rare = len(corpus.vocab) - 1
    bad = windows_with(corpus, rare)
    params = {
        **finished.params,
        "embedding": jnp.asarray(finished.params["embedding"]).at[rare].set(jnp.inf),
    }
    config = CONFIG.replace(checkpoint_every=1)
    with pytest.raises(
        Diverged,
        match=rf"window {bad[0] + 1} \(epoch 1\) has cost nan and gradient norm nan at "
        rf"learning rate 1: stopped before its update",
    ):
        train(config, params=params)
    last = checkpoint.load(tmp_path / "run")
    assert last.manifest.step == bad[0]
    *windows, diverged = read_metrics(tmp_path / "run")
    assert [row["step"] for row in windows] == list(range(1, bad[0] + 1))
    assert diverged["kind"] == "diverged" and diverged["step"] == bad[0] + 1
    assert str(status(tmp_path / "run")).startswith(f"diverged at window {bad[0]} of ")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last.state.carry))

    skipping = train(config.replace(on_nonfinite="skip"), steps=WINDOWS)
    rows = read_metrics(tmp_path / "run")
    lost = [
        row["step"] for row in rows if row["kind"] == "window" and not math.isfinite(row["cost"])
    ]
    assert lost == [window + 1 for window in bad]
    assert skipping.skipped_windows == len(lost) == rows[WINDOWS]["skipped_windows"]
    assert math.isfinite(skipping.epochs[0].train_perplexity)
    at = np.asarray(skipping.params["embedding"])
    assert np.isinf(at[rare]).all() and np.isfinite(np.delete(at, rare, 0)).all()


def test_a_skipped_window_leaves_parameters_and_carry_as_before(corpus, finished):
    recipe = jax.tree.map(jnp.float32, CONFIG.recipe)
    state = new_state(finished.config)
    tokens = jnp.asarray(batch(corpus.train, 50))
    plan = WindowPlan(len(tokens), 20, 1)
    how = dict(bptt_length=20, small_batch=CONFIG.train.small_batch, mesh=None)
    skipping = np.bool_(True)
    state, _ = steps.train_windows(
        recipe, state, tokens, plan.windows(0, 2, 4), np.int32(2), skipping, **how
    )
    before = jax.device_get((state.params, state.carry))
    model = copy.copy(recipe.model)
    object.__setattr__(model, "forget_bias", jnp.float32(jnp.nan))  # a constructor refuses nan
    state, metrics = steps.train_windows(
        dataclasses.replace(recipe, model=model),
        state,
        tokens,
        plan.windows(2, 3, 4),
        np.int32(3),
        skipping,
        **how,
    )
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state.params, state.carry)))
    assert state.step == 5 and np.isnan(metrics.cost[:3]).all() and not metrics.finite[:3].any()


def test_the_run_directory_says_what_it_is(finished, corpus):
    record = json.loads((finished.run_dir / "run.json").read_text())
    assert record["corpus"]["sha256"] == corpus.sha256
    assert {"command", "versions", "platform", "xla_flags"} <= record["sessions"][0].keys()


def test_old_checkpoints_go_by_the_policy(train, tmp_path):
    train(
        CONFIG.replace(
            keep_last=1, keep_every=2, checkpoint_every=10, epochs=4, keep_checkpoints=""
        )
    )
    found = checkpoint.manifests(tmp_path / "run")
    valid = {
        row["step"]: row["valid_perplexity"]
        for row in read_metrics(tmp_path / "run")
        if row["kind"] == "epoch"
    }
    assert set(found) == {2 * WINDOWS, 4 * WINDOWS, min(valid, key=valid.__getitem__)}
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_checkpoints_are_kept_by_words_seen(finished, train, tmp_path):
    found = checkpoint.manifests(finished.run_dir)
    assert {step: one.words for step, one in found.items() if one.words} == MILESTONES
    train(
        CONFIG.replace(
            length_deviation=3.0,
            keep_checkpoints="words=10,20,10500:31k:20k",
            checkpoint_every=0,
            epochs=1,
        )
    )
    found = {one.words: step for step, one in checkpoint.manifests(tmp_path / "run").items()}
    plan = window_plan(CONFIG.replace(length_deviation=3.0), 800)
    assert found.keys() == {20, 10_500, 30_500, None} and found[20] == 1
    for words in (10_500, 30_500):
        assert plan.rows_read(found[words] - 1) * 50 < words <= plan.rows_read(found[words]) * 50


def test_a_copied_run_loads_anywhere(finished, tmp_path):
    shutil.copytree(finished.run_dir, tmp_path / "elsewhere")
    assert checkpoint.load(tmp_path / "elsewhere").manifest.step == 3 * WINDOWS
    assert jaxlm.load(tmp_path / "elsewhere").vocab == jaxlm.load(finished.run_dir).vocab


def test_a_resumed_run_keeps_no_second_state(train, finished, monkeypatch):
    train(params=finished.params, steps=3)
    read = checkpoint.read
    check = state_arrays.check_memory
    events = []

    def noted(path, part=state_arrays.whole):
        events.append(part.__name__)
        return read(path, part)

    def checked(*given):
        events.append("memory")
        return check(*given)

    monkeypatch.setattr(checkpoint, "read", noted)
    monkeypatch.setattr(state_arrays, "check_memory", checked)
    train(steps=4)
    assert events == ["nothing", "memory", "whole"]


def test_a_run_that_was_taken_over_writes_no_line_more(train, tmp_path):
    def taken_over(step, _):
        if step == 4:  # the end of a call
            (tmp_path / "run/.lock").write_text("process 12 on elsewhere\n")

    with pytest.raises(RunDirError, match="taken over"):
        train(on_metrics=taken_over)
    assert max(row["step"] for row in read_metrics(tmp_path / "run")) == 4


def test_a_run_that_skipped_windows_before_it_was_to_stop_is_reproduced(train, tmp_path):
    from jaxlm.runs.reproduction import reproduce

    train(CONFIG.replace(learning_rate=1e30, clip_norm=1e30, on_nonfinite="skip"), steps=5)
    path = checkpoint.find(tmp_path / "run")
    text = (path / "config.json").read_text()
    assert '"on_nonfinite": "skip"' in text
    (path / "config.json").write_text(
        text.replace('"on_nonfinite": "skip"', '"on_nonfinite": "stop"')
    )
    sealed_anew(path)
    assert reproduce(tmp_path / "run", quiet=True).results == []


def test_reproduce_names_what_differs(train, tmp_path, monkeypatch):
    from jaxlm.runs.reproduction import reproduce

    train(steps=9)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    record["sessions"][0]["versions"]["jax"] = "0.3"
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(run)
    same = reproduce(".", quiet=True)
    assert same.results == [] and same.run_dir == tmp_path / "run-again"
    assert [line for line in same.surroundings if line.startswith("jax: 0.3 -> ")]

    rows = (run / "metrics.jsonl").read_text().splitlines()
    rows[6] = rows[6].replace('"cost":', '"cost":2')
    (run / "metrics.jsonl").write_text("\n".join([*rows, ""]))
    with pytest.raises(RunDirError, match=r"metrics.jsonl is damaged"):
        reproduce(run, tmp_path / "other", quiet=True)
    lines = "\n".join([*rows[:9], ""]).encode()
    sealed_anew(
        checkpoint.find(run),
        metrics_bytes=len(lines),
        metrics_sha256=hashlib.sha256(lines).hexdigest(),
    )
    other = reproduce(run, tmp_path / "other", quiet=True)
    assert [line[:40] for line in other.results] == ["metrics.jsonl differs first in line 7: {"]
    with pytest.raises(RunDirError, match="is not empty"):
        reproduce(run, tmp_path / "other", quiet=True)
    record["params"] = "given"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(jaxlm.JaxlmError, match="did not begin from its seed alone"):
        reproduce(run, tmp_path / "third", quiet=True)


def test_a_run_on_a_corpus_in_memory_remembers_how_it_was_read(text, tmp_path):
    """The text of the other tests in capital letters, so that their programs do."""
    for path in text.iterdir():
        capitals = path.read_text().upper().replace("<UNK>", "<unk>")
        (tmp_path / path.name).write_text(capitals)
    corpus = jaxlm.load_corpus(tmp_path, lowercase=True, min_count=2, max_vocab=100)
    result = jaxlm.train(CONFIG, corpus, tmp_path / "run", steps=2, quiet=True)
    assert result.config.data.lowercase and result.config.data.min_count == 2
    assert jaxlm.evaluate(tmp_path / "run").perplexity == pytest.approx(result.test_perplexity)


def test_a_run_whose_test_has_no_words_is_reproduced(tmp_path):
    """Its perplexity per word is nan, which is not equal to itself."""
    from jaxlm.runs.reproduction import reproduce

    (tmp_path / "text").write_text("你好世界。" * 400)
    config = CONFIG.replace(
        corpus=str(tmp_path / "text"),
        tokens="bytes",
        hidden_sizes=(4,),
        batch_size=4,
        keep_checkpoints="",
    )
    jaxlm.train(config, run_dir=tmp_path / "run", steps=2, quiet=True)
    assert math.isnan(read_metrics(tmp_path / "run")[-1]["test_word_perplexity"])
    assert reproduce(tmp_path / "run", quiet=True).results == []
    (tmp_path / "text").write_text("你好世" * 400)
    with pytest.raises(
        jaxlm.JaxlmError,
        match=r"another corpus than is found here.*: put its text back, or name Penn",
    ):
        reproduce(tmp_path / "run", tmp_path / "other", quiet=True)


def test_a_call_is_logged_while_the_device_computes_the_next(corpus, monkeypatch):
    from jaxlm.runs.group import SingleGroup
    from jaxlm.runs.run import Run

    events = []
    train = SingleGroup.train
    trained = Run.trained
    monkeypatch.setattr(
        SingleGroup,
        "train",
        lambda *a: events.append(("begins", a[0].runs[0].step + a[-1])) or train(*a),
    )
    monkeypatch.setattr(
        Run, "trained", lambda run, *a: events.append(("logged", run.step)) or trained(run, *a)
    )
    config = CONFIG.replace(checkpoint_every=12, keep_checkpoints="")
    jaxlm.train(config, corpus, steps=16, quiet=True)
    begun, logged = ([(what, step) for step in range(0, 16, 4)] for what in ("begins", "logged"))
    assert events == [
        *begun[:2],
        logged[0],
        begun[2],
        *logged[1:3],
        begun[3],
        logged[3],
    ]  # at an edge all are logged


def test_fewer_epochs_than_are_begun_are_refused(train):
    train(steps=WINDOWS + 5)
    with pytest.raises(RunDirError, match=r"train.epochs: 2 are begun -> 1"):
        train(CONFIG.replace(epochs=1))


def test_a_test_split_of_one_token_is_named(train, corpus):
    with pytest.raises(DataError, match="the test split has 1 tokens, and a test reads at least 2"):
        train(corpus=dataclasses.replace(corpus, test=corpus.test[:1]))
