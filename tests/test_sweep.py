"""Sweeps: members against the same runs alone, one compile for a shape, workers that die,
and what users get wrong.
"""

import csv
import gc
import io
import json
import os
import re
import shlex
import shutil
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from processes import flags, wait_for
from rich.console import Console
from test_parallel import on_devices

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.files import explained
from jaxlm.data.corpora import load_corpus
from jaxlm.data.windows import WindowPlan, batch
from jaxlm.report.sweep_files import read_sweep
from jaxlm.report.sweep_results import MemberResult, Sweep
from jaxlm.report.sweep_view import SweepView
from jaxlm.runs import directory as rundir
from jaxlm.runs import ram
from jaxlm.runs.group import MemberGroup
from jaxlm.runs.loop import Observer, _end_call
from jaxlm.runs.metrics import read_timing
from jaxlm.runs.state_arrays import new_state
from jaxlm.runs.training_corpus import with_corpus
from jaxlm.sweeps import supervisor
from jaxlm.sweeps.plan import Plan
from jaxlm.sweeps.space import read_space
from jaxlm.sweeps.study import NAME
from jaxlm.sweeps.worker import Worker, group_size
from jaxlm.training import members

TINY = jaxlm.preset("small").replace(
    corpus="embedded-tiny",
    vocab_size=100,
    hidden_sizes=(4,),
    embedding_size=4,
    batch_size=50,
    epochs=2,
)
FLAGS = flags(
    corpus="embedded-tiny",
    vocab_size=100,
    hidden_sizes=4,
    embedding_size=4,
    batch_size=50,
    epochs=2,
)
ALONE: dict[str, Any] = {"size": None, "vmap": None, "workers": 1}  # how a process works on a sweep


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(TINY.data.corpus, max_vocab=TINY.model.vocab_size)


def windows_of(config, corpus, count: int):
    """The tokens, and where the first windows lie."""
    tokens = batch(corpus.train, config.train.batch_size)
    return jnp.asarray(tokens), WindowPlan(len(tokens), config.train.bptt_length, 1).windows(
        0, count, count
    )


def alone(config, corpus, count: int) -> np.ndarray:
    """The costs of a run's first windows, as `train` has them."""
    _, metrics = jaxlm.train_windows(
        jax.tree.map(jnp.float32, config.recipe),
        new_state(config),
        *windows_of(config, corpus, count),
        jnp.int32(count),
        bptt_length=config.train.bptt_length,
    )
    return np.asarray(metrics.cost)


def together(configs, corpus, count: int, vmapped: bool) -> np.ndarray:
    """The same of members of one group, [M, windows]."""
    first = configs[0]
    size = len(configs)
    group = members.stacked(first.recipe, new_state(first), size, None)
    for slot, config in enumerate(configs[1:], 1):
        group = members.with_member(group, slot, config.recipe, new_state(config))
    tokens, windows = windows_of(first, corpus, count)
    _, metrics = members.train_members(
        *group,
        tokens,
        jax.tree.map(lambda column: np.stack([column] * size), windows),
        jnp.full(size, count, jnp.int32),
        bptt_length=first.train.bptt_length,
        vmapped=vmapped,
    )
    return np.asarray(metrics.cost)


@pytest.mark.parametrize("vmapped", [True, False])
def test_a_member_is_the_same_run_alone(corpus, vmapped):
    base, _ = with_corpus(TINY.replace(keep_output=0.7), corpus)
    configs = [
        base.replace(learning_rate=rate, seed=seed, init_scale=scale, clip_norm=clip)
        for rate, seed, scale, clip in ((1.0, 0, 0.1, 5.0), (0.3, 7, 0.05, 1.0), (2.0, 3, 0.2, 1.0))
    ]
    found = together(configs, corpus, 30, vmapped)
    for config, own in zip(configs, found, strict=True):
        np.testing.assert_allclose(own, alone(config, corpus, 30), rtol=1e-5 if vmapped else 1e-7)


def test_no_member_s_costs_decide_on_the_end_of_a_loop(corpus):
    """If they did, every window would choose between two states of
    all members, which takes a copy.
    """
    config, _ = with_corpus(TINY, corpus)
    group = members.stacked(config.recipe, new_state(config), 2, None)
    tokens, windows = windows_of(config, corpus, 2)
    windows = jax.tree.map(lambda column: np.stack([column] * 2), windows)
    sizes = {"bptt_length": config.train.bptt_length, "vmapped": True}
    text = members.train_members.lower(
        *group, tokens, windows, jnp.full(2, 2, jnp.int32), **sizes
    ).as_text()
    ends = re.findall(r"cond \{(.*?)\} do \{", text, re.DOTALL)
    assert ends and not any("reduce" in one for one in ends)


@pytest.mark.parametrize("vmap", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_members_are_spread_over_devices_and_read_a_prepared_corpus(tmp_path, vmap):
    """Members on four devices, from a file and from memory, equal the runs alone.

    A member is taken from its device without a collective: collectives of many small programs in
    flight can wait for each other's devices for ever.
    """
    on_devices(
        4,
        f"""
import jax, jax.numpy as jnp, jaxlm, numpy as np
from pathlib import Path
from jaxlm.distributed.mesh import MEMBER, members_mesh, place
from jaxlm.runs.group import MemberGroup
from jaxlm.training.members import member_at
column = place(members_mesh(4), jnp.arange(16.0).reshape(8, 2), MEMBER)
for slot in range(8):
    one = member_at({{"leaf": column}}, slot)["leaf"]
    assert one.devices() == {{jax.devices()[slot // 2]}}
    assert one.tolist() == [2 * slot, 2 * slot + 1]
assert MemberGroup(4, {vmap}).mesh.size == 4 and MemberGroup(3, {vmap}).mesh.size == 3
folder, rng = Path({str(tmp_path)!r}), np.random.default_rng(0)
sentences = [" ".join(f"w{{w}}" for w in rng.integers(0, 9, 6)) for _ in range(80)]
(folder / "text.txt").write_text("\\n".join(sentences))
jaxlm.prepare(folder / "text.txt", folder / "prepared")
config = jaxlm.preset("test").replace(
    corpus=str(folder / "prepared"), hidden_sizes=(4,), embedding_size=3,
    batch_size=2, bptt_length=5, epochs=2, keep_output=0.7,
)
rates = [0.1, 0.3, 0.5, 1.0]
# One slot is empty.
swept = jaxlm.sweep(config, {{"learning_rate": rates[:3]}}, vmap={vmap}, quiet=True)
assert [member.status for member in swept.members] == ["done"] * 3
for member in swept.members:
    alone = jaxlm.train(config.replace(**member.values), folder / "text.txt", quiet=True, devices=1)
    valid = [epoch.valid_perplexity for epoch in alone.epochs]
    np.testing.assert_allclose(member.valid_perplexities, valid, rtol=1e-5)
    np.testing.assert_allclose(member.test_perplexity, alone.test_perplexity, rtol=1e-5)
""",
    )


@pytest.mark.parametrize("vmapped", [True, False])
def test_a_diverging_member_does_not_touch_the_others(corpus, vmapped):
    base, _ = with_corpus(TINY.replace(keep_output=0.7), corpus)
    good = [base.replace(learning_rate=rate, seed=1) for rate in (0.5, 1.0)]
    bad = base.replace(init_scale=1e38)
    with_bad = together([good[0], bad, good[1]], corpus, 30, vmapped)
    without = together([good[0], good[0], good[1]], corpus, 30, vmapped)
    assert not np.isfinite(with_bad[1]).all()
    np.testing.assert_array_equal(with_bad[[0, 2]], without[[0, 2]])


def compiled() -> int:
    return members.train_members._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("vmap", [True, False])
def test_the_group_compiles_once_whoever_comes_and_goes(tmp_path, vmap):
    """8 points on 3 slots: some diverge, and epochs differ,
    so that slots are refilled when others are at others.
    """
    config = TINY.replace(windows_per_call=7 + vmap)
    before = compiled()
    found = jaxlm.sweep(
        config,
        {"learning_rate": [0.5, 1.0], "epochs": [1, 2], "init_scale": [0.1, 1e38]},
        run_dir=tmp_path / "sweep",
        group=3,
        vmap=vmap,
        quiet=True,
    )
    assert compiled() == before + 1
    assert Counter(trial.status for trial in found.members) == {"done": 4, "diverged": 4}
    for trial in found.members:
        if trial.status == "done":
            assert len(trial.valid_perplexities) == trial.values["epochs"]
        else:
            assert "window 1 (epoch 1) has cost" in str(trial.note)
    assert found.best == min(
        (trial for trial in found.members if trial.status == "done"),
        key=lambda trial: trial.valid_perplexity,
    )


@pytest.mark.parametrize("vmap", [True, False])
def test_a_group_s_arrays_are_gone_when_it_is(vmap):
    """At once, and not when Python next looks for cycles: the next group may need their memory."""
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    gc.disable()
    try:
        jaxlm.sweep(TINY.replace(epochs=1), {"learning_rate": [0.5, 1.0]}, vmap=vmap, quiet=True)
        assert sum(array.nbytes for array in jax.live_arrays()) == before
    finally:
        gc.enable()


def test_trials_are_ordinary_runs_and_the_winner_s_command_trains_it_alone(
    pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    space = {"learning_rate": [0.5], "hidden_sizes": ["4", "3x2"]}
    found = jaxlm.sweep(
        TINY, space, seeds=2, group=2, run_dir=tmp_path / "sweep", data_dir="my ptb"
    )
    assert [(trial.seed, trial.status) for trial in found.members] == [(0, "done"), (1, "done")] * 2
    point = found.trials[0]
    assert point.valid[0] == pytest.approx(
        np.mean([trial.valid_perplexity for trial in point.members])
    )
    assert point.valid[1] == pytest.approx(
        np.std([trial.valid_perplexity for trial in point.members], ddof=1)
    )
    best = found.best
    assert best is not None and best in point.members and best.run_dir is not None
    assert jaxlm.evaluate(best.run_dir).perplexity == pytest.approx(best.test_perplexity, rel=1e-6)
    said = capsys.readouterr().out
    assert said.count("5-gram model: ") == 1
    assert found.command(best) in said and shlex.quote(f"--data-dir={tmp_path / 'my ptb'}") in said
    assert read_sweep(tmp_path / "sweep")[0].command(best) == found.command(best)

    assert main([*shlex.split(found.command(best))[1:], "--run-dir", str(tmp_path / "alone")]) == 0
    assert rundir.saved_config(tmp_path / "alone") == rundir.saved_config(best.run_dir).replace(
        keep_last=2
    )
    lines = [
        (folder / "metrics.jsonl").read_text().splitlines()
        for folder in (tmp_path / "alone", best.run_dir)
    ]
    assert lines[0] == lines[1]  # on a CPU to the last digit

    table = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [float(row["valid_perplexity_2"]) for row in table] == [
        t.valid_perplexity for t in found.members
    ]
    assert json.loads((tmp_path / "sweep/sweep.json").read_text())["best"] == best.number
    epochs = [timing["seconds"] for timing in read_timing(best.run_dir).values()]
    assert len(epochs) == 2 and best.seconds == pytest.approx(sum(epochs), abs=0.01)
    for name in ("slices.png", "parallel.png"):
        assert (tmp_path / "sweep" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (
            TINY.replace(optimizer="asgd", nonmonotone=0, schedule="plateau"),
            {"--nonmonotone=0", "--schedule=plateau"},
        ),
        (
            jaxlm.preset("test").replace(model="mlstm", hidden_sizes=(8,), embedding_size=4),
            {"--model=mlstm"},
        ),
    ],
)
def test_a_command_is_told_where_its_kinds_alone_would_be_refused(config, flags):
    assert flags <= {*shlex.split(Sweep(config).command(MemberResult(0, {}, 0)))}


def test_a_member_that_a_signal_finds_at_its_end_is_not_given_up(tmp_path, monkeypatch):
    config = TINY.replace(epochs=1, windows_per_call=2**15)
    train = MemberGroup.train

    def stopping(self, *given):
        if any(run and run.config.optimizer.learning_rate < 1e-5 for run in self.runs):
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *given)

    how: dict[str, Any] = dict(
        prune=True, group=1, run_dir=tmp_path / "sweep", workers=1, quiet=True
    )
    space = {"learning_rate": [0.5, 0.6, 0.7, 0.8, 0.9, 1e-6]}
    with monkeypatch.context() as patch:
        patch.setattr(MemberGroup, "train", stopping)
        assert jaxlm.sweep(config, space, **how).stopped_by == signal.SIGTERM
    assert jaxlm.sweep(config, space, resume=True, **how).members[-1].status == "done"


def test_a_point_that_is_worse_than_the_median_is_given_up(tmp_path):
    """One point in the slot at a time, so that the others have ended before the bad ones begin."""
    rates = [0.5, 0.6, 0.7, 0.8, 0.9, 1e-6]
    found = jaxlm.sweep(
        TINY, {"learning_rate": rates}, prune=True, group=1, run_dir=tmp_path / "sweep", quiet=True
    )
    assert found.members[-1].status == "pruned" and len(found.members[-1].valid_perplexities) == 1
    assert "worse than the median" in str(found.members[-1].note)
    assert stored(tmp_path / "sweep").trials[-1].state == TrialState.PRUNED
    assert found.best is not None and found.best.status == "done"


def test_random_points_do_not_depend_on_who_trains_them(tmp_path):
    space = {"learning_rate": "log:0.1:1", "clip_norm": [1, 5]}
    config = TINY.replace(epochs=1)
    values = [
        sorted(
            (trial.number, trial.values["learning_rate"], trial.test_perplexity)
            for trial in jaxlm.sweep(
                config, space, strategy="random", trials=4, group=group, quiet=True
            ).members
        )
        for group in (1, 2)
    ]
    assert values[0] == values[1]
    assert len({value for _, value, _ in values[0]}) == 4


def test_the_recipe_s_own_value_of_a_field_of_the_space_need_not_fit(tmp_path):
    """Neither the corpus, nor the flags, nor where the sweep is resumed."""
    (tmp_path / "novel.txt").write_text(
        "a b c d e f\n" * 200
    )  # too few words for the preset's batch
    flags = [
        "--corpus",
        str(tmp_path / "novel.txt"),
        "--embedding-size",
        "4",
        "--bptt-length",
        "3",
        "--epochs",
        "1",
        "--tied",
        "--beta1",
        "0.8",
        "--learning-rate",
        "0.01",
        "--workers",
        "1",
    ]
    space = ["--set", "batch_size=2", "--set", "hidden_sizes=4", "--set", "optimizer=adamw"]
    assert main(["sweep", *flags, *space, f"--run-dir={tmp_path / 'sweep'}"]) == 0
    assert main(["sweep", *flags, *space, f"--run-dir={tmp_path / 'sweep'}", "--resume"]) == 0
    configs = [rundir.saved_config(path) for path in sorted((tmp_path / "sweep/trials").iterdir())]
    assert [(config.train.batch_size, config.kinds["optimizer"]) for config in configs] == [
        (2, "adamw")
    ]
    assert {(vars(config.optimizer)["beta1"], config.model.hidden_sizes) for config in configs} == {
        (0.8, (4,))
    }


def test_what_does_not_fit_the_corpus_fails_alone(tmp_path):
    found = jaxlm.sweep(
        TINY.replace(epochs=1),
        {"batch_size": [50, 100_000]},
        run_dir=tmp_path / "sweep",
        quiet=True,
    )
    assert [trial.status for trial in found.members] == ["done", "failed"]
    assert "fewer than one window of batch_size 100000" in str(found.members[1].note)


def test_a_point_for_which_memory_is_short_now_is_tried_again(tmp_path, monkeypatch):
    config = TINY.replace(epochs=1)
    space = {"learning_rate": [0.5, 1.0]}
    run_dir = tmp_path / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ram, "available", lambda: 1)
        found = jaxlm.sweep(config, space, run_dir=run_dir, workers=1, quiet=True)
    assert [(trial.status, "of memory" in str(trial.note)) for trial in found.members] == [
        ("damaged", True)
    ] * 2
    found = jaxlm.sweep(config, space, run_dir=run_dir, workers=1, quiet=True, resume=True)
    assert [trial.status for trial in found.members] == ["done"] * 2


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"learning_rate": [1.0]}, False),
        ({"min_count": [1, 3]}, True),
        ({"tokens": ["words", "characters"]}, False),
        ({"tokens": ["words", "characters"], "min_count": [1, 3]}, True),
    ],
)
def test_trials_whose_perplexities_do_not_compare_are_said_to(corpus, tmp_path, space, told):
    plan = Plan(TINY, read_space(space, TINY), "grid", 2, 1, "none", {})
    out = io.StringIO()
    view = SweepView(Console(file=out, width=200))
    study: Any = SimpleNamespace(plan=plan, folder=tmp_path)
    supervisor._Session(study, True, view, None).announce(corpus)
    assert ("their perplexities do not compare" in out.getvalue()) == told
    assert ("results are bits per character" in out.getvalue()) == ("tokens" in space)


def test_a_space_that_is_none_is_one_sentence_also_with_a_corpus_in_memory(corpus):
    with pytest.raises(JaxlmError, match="takes a Config"):
        jaxlm.sweep(TINY, ["learning_rate"], corpus=corpus)  # pyright: ignore[reportArgumentType]


RATES = {"learning_rate": [0.5, 1.0, 2.0]}


@pytest.fixture(scope="module")
def three() -> Sweep:
    """Three members that nothing disturbs."""
    return jaxlm.sweep(TINY, RATES, group=1, quiet=True)


@pytest.mark.parametrize(
    ("files", "named"), [("checkpoints/*/*", "intact"), ("metrics.jsonl", "metrics.jsonl")]
)
def test_a_damaged_member_is_reported_and_resumes_once_it_is_repaired(
    tmp_path, capsys, three, files, named
):
    """An unfinished member whose only checkpoints, or metrics, are damaged;
    the others are trained meanwhile.
    """
    run_dir = tmp_path / "sweep"
    saved = []
    worker = "jaxlm.sweeps.worker.Worker.trained"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupt(self):
            saved.extend(path for path in run_dir.glob("trials/0000/checkpoints/0*/*"))
            if saved:
                raise KeyboardInterrupt

        patch.setattr(worker, interrupt)
        jaxlm.sweep(TINY, RATES, run_dir=run_dir, group=1, quiet=True)
    whole = {path: path.read_bytes() for path in (run_dir / "trials/0000").glob(files)}
    for path in whole:
        path.write_bytes(b"damaged")
    found = jaxlm.sweep(TINY, RATES, run_dir=run_dir, group=1, resume=True)
    assert [member.status for member in found.members] == ["damaged", "done", "done"]
    assert [member.number for member in found.damaged] == [0] and named in str(
        found.damaged[0].note
    )
    assert "1 damaged" in capsys.readouterr().out
    for path, data in whole.items():
        path.write_bytes(data)
    newest = max((run_dir / "trials/0000/checkpoints").iterdir())
    shutil.copytree(newest, newest.with_name("00000999"))
    found = jaxlm.sweep(TINY, RATES, run_dir=run_dir, group=1, resume=True)
    said = capsys.readouterr().out
    assert (
        "!! trial 0 seed 0: " in said
        and "00000999" in said
        and "resuming from the newest intact" in said
    )
    assert [member.status for member in found.members] == ["done"] * 3 and not found.damaged
    assert [one.test_perplexity for one in found.members] == [
        one.test_perplexity for one in three.members
    ]


def test_a_process_of_a_quiet_sweep_prints_nothing(tmp_path, monkeypatch, capsys):
    """Nor does it make the n-gram model that it would print."""
    monkeypatch.setattr("jaxlm.runs.ngram_models.ngram", lambda *_: pytest.fail("nobody reads it"))
    jaxlm.sweep(
        TINY.replace(epochs=1), {"learning_rate": [0.5]}, run_dir=tmp_path / "sweep", quiet=True
    )
    monkeypatch.setattr("jaxlm.sweeps.worker.Worker.run", lambda self: self.say("waiting"))
    for quiet in (True, False):
        assert supervisor.join(tmp_path / "sweep", None, os.getppid(), quiet, **ALONE) is None
    assert capsys.readouterr().out == "waiting\n"


def test_a_process_whose_parent_died_before_it_began_trains_nothing(tmp_path):
    jaxlm.sweep(TINY, {"learning_rate": [0.5]}, run_dir=tmp_path / "sweep", quiet=True)
    assert supervisor.join(tmp_path / "sweep", None, 0, True, **ALONE) == signal.SIGTERM


def test_a_failed_worker_and_a_damaged_trial_leave_the_results(tmp_path, monkeypatch):
    def supervise(command, environment, workers, folder, stop, show, say):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ram, "available", lambda: 1)  # the members are damaged
            assert supervisor.join(folder, None, os.getppid(), True, **ALONE) is None
        return "SIGKILL ended it"

    monkeypatch.setattr(supervisor, "supervise", supervise)
    found = jaxlm.sweep(
        TINY, {"learning_rate": [0.5, 1.0]}, run_dir=tmp_path / "sweep", workers=2, quiet=True
    )
    assert len(found.damaged) == 2 and (tmp_path / "sweep/sweep.json").exists()


@pytest.mark.parametrize("mistake", [OSError(28, "No space left on device"), MemoryError()])
def test_a_machine_that_fails_once_fails_no_trial(tmp_path, monkeypatch, mistake):
    """A disk ends the sweep; what has no memory now is tried again."""

    def full(*_, **__):
        with explained(DataError, "x"):
            raise mistake

    how: dict[str, Any] = dict(run_dir=tmp_path / "sweep", workers=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.sweeps.worker.with_corpus", full)
        with (
            pytest.raises(JaxlmError, match="No space")
            if isinstance(mistake, OSError)
            else nullcontext()
        ):
            found = jaxlm.sweep(TINY.replace(epochs=1), {"min_count": [1, 2]}, **how)
            assert [member.status for member in found.members] == ["damaged"] * 2
    found = jaxlm.sweep(TINY.replace(epochs=1), {"min_count": [1, 2]}, resume=True, **how)
    assert [member.status for member in found.members] == ["done", "done"]


def test_a_corpus_of_the_space_does_not_say_how_the_others_are_read(text, tmp_path):
    """The generated corpus, and the same as a folder of text whose lines are paragraphs."""
    (folder := tmp_path / "paragraphs").mkdir()
    for path in text.iterdir():
        (folder / path.name).write_text(path.read_text().replace("\n", "\n\n"))
    config = TINY.replace(epochs=1, lines="unwrap")
    space = {"corpus": ["embedded-tiny", str(folder)]}
    found = jaxlm.sweep(config, space, run_dir=tmp_path / "sweep", workers=1, quiet=True)
    assert [
        rundir.saved_config(one.run_dir).data.lines for one in found.members if one.run_dir
    ] == ["eos", "unwrap"]


def test_kinds_are_swept_with_fields_of_their_own(tmp_path):
    found = jaxlm.sweep(
        TINY.replace(epochs=1),
        {"optimizer": ["adamw", "muon"], "beta1": [0.8], "clip_norm": "none"},
        run_dir=tmp_path / "sweep",
        quiet=True,
    )
    assert [(one.status, one.values["clip_norm"]) for one in found.members] == [("done", None)] * 2
    for member, optimizer in zip(found.members, ("adamw", "muon"), strict=True):
        command = found.command(member)
        assert (
            f"--optimizer={optimizer}" in command
            and "--beta1=0.8" in command
            and "--clip-norm=none" in command
        )


def test_trials_of_other_tokens_compare_by_characters(tmp_path):
    (tmp_path / "text.txt").write_text("über größe läuft\n" * 200)
    config = TINY.replace(epochs=1, corpus=str(tmp_path / "text.txt"), batch_size=2, bptt_length=5)
    found = jaxlm.sweep(
        config, {"tokens": ["characters", "bytes"]}, run_dir=tmp_path / "sweep", quiet=True
    )
    for one, run in zip(found.members, sorted((tmp_path / "sweep/trials").iterdir()), strict=True):
        tested = jaxlm.load(run).evaluate()
        assert one.test_perplexity and one.test_perplexity == pytest.approx(
            2**tested.bits_per_character, rel=1e-4
        )
        assert (one.test_perplexity > tested.perplexity * 1.01) == (one.values["tokens"] == "bytes")


def test_a_perplexity_per_character_may_be_beyond_a_float():
    worker: Any = SimpleNamespace(
        study=SimpleNamespace(plan=SimpleNamespace(space={"tokens": None}))
    )
    run: Any = SimpleNamespace(comparable=lambda split, value: {"valid_bits_per_character": value})
    assert [Worker._compared(worker, run, "valid", bits) for bits in (3, 1100)] == [
        pytest.approx(8),
        np.inf,
    ]


def test_kinds_with_the_same_fields_do_not_train_as_one_another(tmp_path):
    config = TINY.replace(
        epochs=1, learning_rate=0.2
    )  # (at higher rates rounding grows to whole points)
    space = {"schedule": ["linear", "cosine"], "warmup": [0.2], "final": [0.1]}
    how: dict[str, Any] = dict(group=1, vmap=True, quiet=True)
    linear, cosine = jaxlm.sweep(config, space, run_dir=tmp_path / "sweep", **how).members
    (single,) = jaxlm.sweep(config, {**space, "schedule": ["cosine"]}, **how).members
    assert cosine.test_perplexity == pytest.approx(single.test_perplexity, rel=1e-5)
    assert linear.test_perplexity != pytest.approx(single.test_perplexity, rel=1e-4)


def stored(run_dir: Path) -> optuna.Study:
    return optuna.load_study(
        study_name=NAME, storage=JournalStorage(JournalFileBackend(str(run_dir / "study.journal")))
    )


SPACE = {"learning_rate": [0.25, 0.5, 1.0, 2.0], "clip_norm": [1.0, 5.0]}
SETTINGS = ["--set", "learning_rate=0.25,0.5,1,2", "--set", "clip_norm=1,5"]


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> dict[str, bytes]:
    """The metrics of a sweep's trials when nobody disturbs it;
    with one thread of XLA, as the others here.
    """
    run_dir = tmp_path_factory.mktemp("undisturbed") / "sweep"
    code, _, said = server.start(
        "sweep", *FLAGS, *SETTINGS, "--group", "3", "--run-dir", run_dir
    ).end()
    assert code == 0, said
    return metrics_of(run_dir)


def metrics_of(run_dir: Path) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes()
        for path in sorted(run_dir.glob("trials/*/metrics.jsonl"))
    }


def assert_each_ended_once(run_dir: Path, undisturbed: dict[str, bytes]) -> None:
    study = stored(run_dir)
    assert [(trial.number, trial.state) for trial in study.trials] == [
        (n, TrialState.COMPLETE) for n in range(8)
    ]
    journal = [json.loads(line) for line in (run_dir / "study.journal").read_text().splitlines()]
    ends = Counter(line["trial_id"] for line in journal if line.get("state") == TrialState.COMPLETE)
    assert sorted(ends.values()) == [1] * 8
    assert (
        metrics_of(run_dir) == undisturbed
    )  # to the byte: nothing was trained otherwise, nothing twice


def test_a_killed_worker_s_trials_are_taken_over(server, tmp_path, undisturbed):
    run_dir = tmp_path / "sweep"
    first = server.start("sweep", *FLAGS, *SETTINGS, "--group", "3", "--run-dir", run_dir)
    assert wait_for(lambda: (run_dir / "trials").exists(), first)
    second = server.start("sweep", "--run-dir", run_dir, "--resume")
    assert wait_for(lambda: len(list(run_dir.glob("trials/*/checkpoints/0*"))) >= 4, first)
    first.kill()
    code, said, wrong = second.end()
    assert code == 0, wrong
    assert "best: trial" in said
    assert_each_ended_once(run_dir, undisturbed)


def has_checkpoints(run_dir: Path, count: int) -> bool:
    return len(list(run_dir.glob("trials/*/checkpoints/0*"))) >= count


def test_a_stopped_sweep_goes_on(server, tmp_path, undisturbed):
    """Ctrl-C to a sweep in one process and SIGTERM to one of two workers,
    both in the middle of an epoch.
    """
    run_dir = tmp_path / "sweep"
    begin = ("sweep", *FLAGS, *SETTINGS, "--group", "3", "--run-dir", run_dir)
    resume = ("sweep", "--run-dir", run_dir, "--resume")
    for command, number, checkpoints in (
        (begin, signal.SIGINT, 1),
        ((*resume, "--workers", "2"), signal.SIGTERM, 8),
    ):
        sweep = server.start(*command)
        saved = partial(has_checkpoints, run_dir, checkpoints)
        assert wait_for(saved, sweep)
        os.kill(sweep.pid, number)
        code, said, wrong = sweep.end()
        assert (code, wrong) == (128 + number, "")
        assert f"stopped by {number.name}: saved; resume with --run-dir" in said
    code, _, wrong = server.start(*resume).end()
    assert code == 0, wrong
    assert_each_ended_once(run_dir, undisturbed)


@pytest.mark.slow
def test_machines_without_a_common_directory_share_a_database(server, tmp_path):
    where = f"sqlite:///{tmp_path / 'study.db'}"
    begun = [
        server.start(
            "sweep",
            *FLAGS,
            *SETTINGS,
            "--storage",
            where,
            "--group",
            "2",
            "--run-dir",
            tmp_path / name,
        )
        for name in ("one", "two")
    ]
    for command in begun:
        code, _, wrong = command.end()
        assert code == 0, wrong
    trained = [number for name in ("one", "two") for number in metrics_of(tmp_path / name)]
    done = [
        trial
        for trial in optuna.load_study(study_name=NAME, storage=where).trials
        if trial.value is not None
    ]
    assert sorted(map(int, trained)) == [trial.number for trial in done]
    assert len({tuple(trial.params.items()) for trial in done}) == len(done) == 8  # each point once


@pytest.mark.slow
def test_a_silent_machine_s_trials_are_begun_again_elsewhere(server, tmp_path, monkeypatch):
    """One of two that share a database only is killed;
    the other has its own directory, and waits.
    """
    where = f"sqlite:///{tmp_path / 'study.db'}"
    dead = server.start(
        "sweep",
        *FLAGS,
        "--epochs",
        "4",
        *SETTINGS,
        "--storage",
        where,
        "--run-dir",
        tmp_path / "one",
    )
    assert wait_for(lambda: any((tmp_path / "one").glob("trials/*/checkpoints/0*")), dead)
    dead.kill()
    monkeypatch.setattr("jaxlm.sweeps.storage.BEAT", 1)
    monkeypatch.setattr("jaxlm.sweeps.storage.SILENCE", 4)
    monkeypatch.setattr("jaxlm.sweeps.storage.BEAT", 1)
    found = jaxlm.sweep(
        TINY.replace(epochs=4), SPACE, storage=where, run_dir=tmp_path / "two", quiet=True
    )
    assert len(found.members) == 8 and {trial.status for trial in found.members} == {"done"}
    assert len({tuple(trial.values.items()) for trial in found.members}) == 8
    assert all(trial.run_dir is not None for trial in found.members)


def test_more_random_points_on_resume(pictures, tmp_path):
    space = {"learning_rate": "log:0.1:1"}
    how = {"strategy": "random", "run_dir": tmp_path / "sweep", "quiet": True}
    few = jaxlm.sweep(TINY.replace(epochs=1), space, trials=2, **how)
    unfinished = (
        tmp_path / "sweep/.partial-parallel.png-0123456789abcdef"
    )  # of a process that was killed
    unfinished.touch()
    more = jaxlm.sweep(TINY.replace(epochs=1), space, trials=3, resume=True, **how)
    assert more.members[:2] == few.members and len(more.members) == 3
    assert not unfinished.exists()


def test_a_seed_may_be_a_field_of_the_space(tmp_path):
    found = jaxlm.sweep(
        TINY.replace(epochs=1), {"seed": [3, 5]}, run_dir=tmp_path / "sweep", quiet=True
    )
    assert [(trial.seed, trial.values, trial.status) for trial in found.members] == [
        (3, {"seed": 3}, "done"),
        (5, {"seed": 5}, "done"),
    ]
    assert found.members[0].test_perplexity != found.members[1].test_perplexity


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "sweep"
    assert (
        main(
            [
                "sweep",
                *FLAGS,
                "--epochs",
                "1",
                "--set",
                "learning_rate=0.5,1",
                "--run-dir",
                str(run_dir),
            ]
        )
        == 0
    )
    return run_dir


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the space is empty"),
        (["--set", "learning_rate"], "--set takes FIELD=SPACE"),
        (
            ["--set", "learning_rat=1,2"],
            "unknown field 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (["--set", "learning_rate="], "learning_rate has no value to try"),
        (["--set", "learning_rate=1,1"], "learning_rate has the value 1.0 twice"),
        (
            ["--set", "learning_rate=1,2", "--set", "learning-rate=3"],
            "learning_rate is in the space twice",
        ),
        (
            ["--set", "learning_rate=1,2", "--learning-rate", "1"],
            "learning_rate is in the space and has a flag too",
        ),
        (["--set", "learning_rate=0,1"], "learning_rate must be above 0; it is 0"),
        (
            ["--set", "learning_rate=log:0:1", "--strategy", "random", "--trials", "2"],
            "must hold for `log=True`",
        ),
        (
            ["--set", "learning_rate=log:2:1", "--strategy", "random", "--trials", "2"],
            "`low <= high` must hold",
        ),
        (
            ["--set", "learning_rate=uniform:1:nan", "--strategy", "random", "--trials", "2"],
            "learning_rate",
        ),
        (
            ["--set", "learning_rate=uniform:1:x", "--strategy", "random", "--trials", "2"],
            "one is 'x'",
        ),
        (
            ["--set", "learning_rate=normal:1:2", "--strategy", "random", "--trials", "2"],
            "or range:LOW:HIGH:STEP",
        ),
        (
            ["--set", "keep_output=uniform:0.5:1.5", "--strategy", "random", "--trials", "2"],
            "keep_output must be above 0",
        ),
        (["--set", "batch_size=range:10:20:2.5"], "batch_size takes whole numbers"),
        (["--set", "batch_size=range:10:20:0"], "with a STEP above 0"),
        (["--set", "batch_size=1.5,2"], "batch_size takes a whole number"),
        (["--set", "hidden_sizes=8xx"], "whole numbers with x between"),
        (["--set", "hidden_sizes=range:8:16:4"], "hidden_sizes is no number"),
        (["--set", "lowercase=maybe"], "lowercase takes true or false"),
        (["--set", "learning_rate=log:1:2"], "a grid needs values"),
        (["--set", "learning_rate=1,2", "--trials", "1"], "a grid tries each of its 2 points"),
        (["--set", "learning_rate=1,2", "--strategy", "random"], "has no end of its own"),
        (["--set", "seed=1,2", "--seeds", "2"], "leave one of them out"),
        (["--set", "learning_rate=1,2", "--epochs", "0"], "needs at least 1 epoch"),
        (["--set", "epochs=0,1"], "needs at least 1 epoch"),
        (["--set", "learning_rate=1,2", "--storage", "nosuch://x"], "cannot be used"),
        (["--set", "learning_rate=1,2", "--resume"], "name it"),
    ],
)
def test_what_users_get_wrong_is_one_sentence(capsys, tmp_path, arguments, message):
    run_dir = [] if "--resume" in arguments else ["--run-dir", str(tmp_path / "sweep")]
    flags = [
        "--corpus",
        "embedded-tiny",
        *([] if "batch_size" in str(arguments) else ["--batch-size", "20"]),
    ]
    refused(capsys, ["sweep", *flags, *arguments, *run_dir], message)
    assert not (tmp_path / "sweep/trials").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the space is empty"),
        ("{}", "the space is empty"),
        ("{", "as TOML or JSON"),
        ("learning_rate = {low = 1}", "takes a list of values"),
        ("learning_rate = 1", "takes a list of values"),
    ],
)
def test_a_space_from_a_file_that_is_wrong(capsys, tmp_path, text, message):
    (tmp_path / "space").write_text(text)
    refused(
        capsys,
        ["sweep", *FLAGS, "--space", str(tmp_path / "space"), "--run-dir", str(tmp_path / "new")],
        message,
    )


def test_another_sweep_s_directory_or_study_is_refused_and_nothing_changes(
    capsys, tmp_path, finished
):
    def content():
        return {
            path: path.read_bytes()
            for path in finished.rglob("*")
            if path.is_file() and path.suffix != ".journal"
        }

    before = content()
    trials = stored(finished).trials
    same = ["sweep", *FLAGS, "--epochs", "1", "--run-dir", str(finished)]
    refused(capsys, [*same, "--set", "learning_rate=0.5,1"], "resume the sweep in it with --resume")
    resumed = ["sweep", "--run-dir", str(finished), "--resume"]
    refused(
        capsys,
        [*resumed, "--set", "learning_rate=0.5,2"],
        "space.learning_rate: [0.5, 1.0] -> [0.5, 2.0]",
    )
    refused(capsys, [*resumed, "--set", "clip_norm=1,2"], "space.clip_norm: None -> [1.0, 2.0]")
    refused(capsys, [*resumed, "--hidden-sizes", "9"], "model.hidden_sizes: (4,) -> (9,)")
    refused(
        capsys,
        [*resumed, "--preset", "test"],
        "is a sweep of small, not of test: leave --preset out",
    )
    refused(capsys, [*resumed, "--seeds", "2"], "seeds: 1 -> 2")
    refused(capsys, [*resumed, "--storage", "x"], "leave --storage out")
    refused(
        capsys,
        [
            "sweep",
            *FLAGS,
            "--set",
            "learning_rate=0.5,2",
            "--run-dir",
            str(tmp_path / "new"),
            "--storage",
            str(finished / "study.journal"),
        ],
        "a storage is a database's URL",
    )
    refused(
        capsys,
        ["sweep", "--run-dir", str(tmp_path), "--resume"],
        "holds no sweep that can be resumed",
    )
    assert content() == before and stored(finished).trials == trials
    assert main(resumed) == 0


def test_each_epoch_is_a_line_and_at_the_end_the_best_trials_are_a_table():
    trials = [
        MemberResult(0, {"learning_rate": 0.5}, seed, "running", (90.0,) * seed) for seed in (0, 1)
    ]
    trials += [
        MemberResult(1, {"learning_rate": 1.0}, seed, "done", (80.0, 70.0 + seed), 60.0 + seed)
        for seed in (0, 2)
    ]
    trials += [
        MemberResult(
            2, {"learning_rate": 9.0}, 0, "diverged", (), None, note="window 3 has cost nan"
        )
    ]
    trials += [
        MemberResult(3, {"corpus": "\x1b[2Jx"}, 0, "failed", (), None, note="no \x1b]0;title\x07")
    ]
    sweep = Sweep(TINY, trials)
    out = io.StringIO()
    view = SweepView(Console(file=out, force_terminal=True, width=120))
    for _ in range(2):
        view.show(sweep)
    assert out.getvalue().count("trial 0") == 1
    assert "trial 0 (learning_rate=0.5) seed 1: epoch 1/2, valid perplexity 90.00" in out.getvalue()
    view.summary(sweep)
    said = out.getvalue()
    assert r"no \x1b]0;title\x07" in said and "\x1b[2J" not in said and "\x1b]0" not in said
    assert (
        "71.00 ± 1.41" in said
        and "61.00 ± 1.41" in said
        and "trial 2 (learning_rate=9): diverged\n" in said
    )
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    SweepView(Console(file=narrow, width=120)).summary(sweep)
    assert rb"71.00 \xb1 1.41" in narrow.buffer.getvalue()
    assert (
        "seed 0: diverged, epoch 0/2; window 3 has cost nan" in said
        and sweep.command(trials[2]) in said
    )


@pytest.mark.parametrize("swept", [{}, {"tokens": "bytes"}])
def test_a_sweep_of_characters_is_told_in_bits_per_character(swept):
    """Also where the trials' tokens differ: then perplexities are per character."""
    values = {"learning_rate": 0.5, **swept}
    members = [
        MemberResult(0, values, 0, "done", (8.0, 4.0), 8.0),
        MemberResult(0, values, 1, "done", (8.0, 2.0), 2.0),
    ]
    config = TINY if swept else TINY.replace(tokens="characters")
    out = io.StringIO()
    view = SweepView(Console(file=out, width=200))
    sweep = Sweep(config, members)
    view.show(sweep)
    view.summary(sweep)
    said = out.getvalue()
    assert "seed 1: done, epoch 2/2, valid bits per character 1.0000, test 1.0000\n" in said
    assert "valid bits per character 1.5000 ± 0.7071, test 2.0000 ± 1.4142\n" in said
    assert "best: trial 0, seed 1, valid bits per character 1.0000;" in said
    assert "perplexity" not in said and sweep.trials[0].valid_by_epoch == [3.0, 2.0]


def test_a_group_fits_into_memory_and_is_no_larger_than_of_use(monkeypatch):
    plan = Plan(TINY, read_space({"learning_rate": "log:0.1:1"}, TINY), "random", 12, 1, "none", {})
    assert [group_size(TINY, plan, workers) for workers in (1, 2, 3)] == [8, 6, 4]
    assert (
        group_size(TINY, replace(plan, strategy="tpe"), 1) == 3
    )  # four rounds, so that Optuna learns between them
    monkeypatch.setattr("jaxlm.runs.ram.available", lambda: 2 << 30)
    assert (
        group_size(jaxlm.preset("zaremba-large"), plan, 1) == 1 and group_size(TINY, plan, 1) == 8
    )
    monkeypatch.setattr("jaxlm.runs.ram.available", lambda: 1 << 30)
    many = replace(plan, trials=1000)
    small = jaxlm.preset("small")
    assert [group_size(small, many, workers) for workers in (1, 2, 4)] == [5, 2, 1]  # their shares
    monkeypatch.setattr("jaxlm.runs.ram.available", lambda: 2 << 30)
    five = jax.local_devices()[:1] * 5
    monkeypatch.setattr(jax, "local_devices", lambda: five)  # 8 members would be on one of them
    assert [group_size(TINY, plan, workers) for workers in (1, 3)] == [5, 5]
    assert group_size(jaxlm.preset("zaremba-large"), plan, 1) == 1


@pytest.mark.parametrize("vmapped", [False, True])
def test_an_empty_slot_costs_no_window_where_members_follow_one_another(monkeypatch, vmapped):
    group: Any = MemberGroup(3, vmapped)
    run = SimpleNamespace(step=0, plan=WindowPlan(45, 20, 1), config=TINY, ranked_words=None)
    group.runs = [run, None, run]
    group._members = (None, None)
    asked = []

    def train_members(recipes, states, tokens, windows, counts, **_):
        asked.extend(counts.tolist())
        return states, None

    monkeypatch.setattr(members, "train_members", train_members)
    group.train(jnp.zeros((45, 2), jnp.int32), 0, 2, 0)
    assert asked == ([2, 2, 2] if vmapped else [2, 0, 2])


def test_the_end_of_an_epoch_tells_whether_a_signal_asks_to_stop():
    """Else a worker that stops would begin new trials."""
    run = SimpleNamespace(index=0, step=4, finished=False, edge_after=lambda step: 4)
    run.end_epoch = run.save = run.start_clock = lambda *_: None
    group: Any = SimpleNamespace(runs=[run], validate=lambda: [2.0], state=lambda slot: None)
    told = []

    class Listening(Observer):
        def epoch_ended(self, group, stopping):
            told.append(stopping)

    for signal_number in (None, 15):
        _end_call(group, Listening(), signal_number)
    assert told == [False, True]


def test_workers_share_the_memory_for_groups(monkeypatch):
    large = jaxlm.preset("zaremba-large")
    plan = Plan(large, read_space({"seed": [1]}, large), "random", 12, 1, "none", {})
    room = 1 << 30
    monkeypatch.setattr("jaxlm.runs.ram.available", lambda: room)
    while group_size(large, plan, 1) < 4:
        room *= 2
    assert group_size(large, plan, 4) < group_size(large, plan, 2) < group_size(large, plan, 1)


def test_a_long_sweep_on_cpus_takes_a_process_a_core(monkeypatch):
    monkeypatch.setattr(supervisor, "cores", lambda: [0, 1, 2, 3])
    plan = Plan(TINY, read_space({"learning_rate": "log:0.1:1"}, TINY), "random", 12, 1, "none", {})
    small = jaxlm.preset("small")
    assert supervisor.useful_workers(small, plan, 929_589, 64 << 30) == 4
    assert supervisor.useful_workers(small, replace(plan, trials=3), 929_589, 64 << 30) == 3
    assert supervisor.useful_workers(small, plan, 929_589, 5 << 30) == 2  # memory
    assert (
        supervisor.useful_workers(TINY, plan, 1000, 64 << 30) == 1
    )  # over before a process has started
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert supervisor.useful_workers(small, plan, 929_589, 64 << 30) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")
def test_workers_are_pinned_each_to_its_share_of_the_cores(monkeypatch):
    own = sorted(os.sched_getaffinity(0))
    given = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, share: given.append(tuple(share)))
    for number in range(2):
        supervisor.pin(os.getpid(), number, 2)
    assert given == (
        []
        if len(own) < 2
        else [tuple(own[: len(own) // 2]), tuple(own[len(own) // 2 :][: len(own) // 2])]
    )
    given.clear()
    supervisor.pin(os.getpid(), 0, len(own) + 1)  # more processes than cores: none is pinned
    assert not given


def main(arguments) -> int:
    from jaxlm import cli

    return cli.main(arguments)


def refused(capsys, arguments, message):
    """The command fails with this sentence alone on stderr."""
    capsys.readouterr()
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err, err
