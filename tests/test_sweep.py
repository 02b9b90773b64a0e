"""Sweeps: members against the same runs alone, one compile for a shape, workers that die, and what users get wrong."""

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import jaxlm
from jaxlm import checkpoint, cli, members, rundir
from jaxlm.data.batching import batch
from jaxlm.data.corpora import load_corpus
from jaxlm.errors import JaxlmError
from jaxlm.metrics import read_metrics
from jaxlm.space import grid, read_space
from jaxlm.study import NAME, Plan
from jaxlm.train import load, new_state

TINY = jaxlm.preset("small").replace(hidden_sizes=(8,), embedding_size=4, batch_size=20, epochs=2,
                                     corpus="embedded-tiny")
FLAGS = ["--corpus", "embedded-tiny", "--hidden-sizes", "8", "--embedding-size", "4", "--batch-size", "20",
         "--epochs", "2"]


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("embedded-tiny")


def costs(run_dir) -> np.ndarray:
    return np.array([row["cost"] for row in read_metrics(Path(run_dir)) if row["kind"] == "window"])


def alone(config, corpus, windows: int) -> np.ndarray:
    """The costs of a run's first windows, as `train` has them."""
    T = config.train.bptt_length
    tokens = jnp.asarray(batch(corpus.train, config.train.batch_size))
    _, metrics = jaxlm.train_windows(new_state(config), jax.tree.map(jnp.float32, config.hyper), tokens,
                                     jnp.int32(windows), bptt_length=T, max_windows=windows)
    return np.asarray(metrics.cost)


def together(configs, corpus, windows: int, vmapped: bool) -> np.ndarray:
    """The same of members of one group, [M, windows]."""
    first = configs[0]
    group = members.stack(new_state(first), first.hyper, len(configs))
    for slot, config in enumerate(configs[1:], 1):
        group = members.put(group, slot, new_state(config), config.hyper)
    tokens = jnp.asarray(batch(corpus.train, first.train.batch_size))
    _, metrics = members.train_members(
        *group, jnp.zeros(len(configs), jnp.int32), jnp.ones(len(configs), bool), tokens, jnp.int32(0),
        jnp.int32(windows), bptt_length=first.train.bptt_length, max_windows=windows, vmapped=vmapped)
    return np.asarray(metrics.cost)


@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_a_member_is_the_same_run_alone(corpus, vmapped, keep):
    base, _ = load(TINY.replace(hidden_sizes=(12, 8), dropout=keep < 1, keep_output=keep), corpus)
    configs = [base.replace(learning_rate=rate, seed=seed, init_scale=scale, clip_norm=clip)
               for rate, seed, scale, clip in ((1.0, 0, 0.1, 5.0), (0.3, 7, 0.05, 1.0), (2.0, 3, 0.2, 1.0))]
    found = together(configs, corpus, 50, vmapped)
    for config, own in zip(configs, found, strict=True):
        np.testing.assert_allclose(own, alone(config, corpus, 50), rtol=1e-5 if vmapped else 1e-7)


@pytest.mark.parametrize("vmapped", [True, False])
def test_a_diverging_member_does_not_touch_the_others(corpus, vmapped):
    base, _ = load(TINY, corpus)
    good, bad = [base.replace(learning_rate=rate, seed=1) for rate in (0.5, 1.0)], base.replace(init_scale=1e38)
    with_bad = together([good[0], bad, good[1]], corpus, 20, vmapped)
    without = together([good[0], good[0], good[1]], corpus, 20, vmapped)
    assert not np.isfinite(with_bad[1]).all()
    np.testing.assert_array_equal(with_bad[[0, 2]], without[[0, 2]])


@pytest.mark.parametrize("vmap", [True, False])
def test_the_group_compiles_once_whoever_comes_and_goes(tmp_path, vmap):
    """7 points on 3 slots: one diverges, their epochs differ (so that slots are refilled at other epochs)."""
    config = TINY.replace(windows_per_call=7 + vmap)
    before = members.train_members._cache_size()
    found = jaxlm.sweep(config, {"learning_rate": [0.5, 1.0, 2.0], "epochs": [1, 2], "init_scale": [0.1, 1e38]},
                        run_dir=tmp_path / "sweep", group=3, vmap=vmap, quiet=True)
    assert members.train_members._cache_size() == before + 1
    assert Counter(trial.status for trial in found.trials) == {"done": 6, "diverged": 6}
    for trial in found.trials:
        if trial.status == "done":
            assert len(trial.valid_perplexities) == trial.values["epochs"]
        else:
            assert "window 1 (epoch 1) has cost" in trial.note
    assert found.best == min((trial for trial in found.trials if trial.status == "done"),
                             key=lambda trial: trial.valid_perplexity)


def test_trials_are_ordinary_runs_and_the_winner_s_command_trains_it_alone(tmp_path, capsys, monkeypatch):
    found = jaxlm.sweep(TINY, {"learning_rate": [0.5, 2.0], "hidden_sizes": ["8", "6x4"]}, seeds=2,
                        run_dir=tmp_path / "sweep")
    assert len(found.trials) == 8 and {trial.status for trial in found.trials} == {"done"}
    assert [trial.seed for trial in found.trials] == [0, 1] * 4
    point = found.points[0]
    assert point.valid[0] == pytest.approx(np.mean([trial.valid_perplexity for trial in point.trials]))
    assert point.valid[1] == pytest.approx(np.std([trial.valid_perplexity for trial in point.trials], ddof=1))
    best = found.best
    assert best in point.trials
    assert jaxlm.evaluate(best.run_dir).perplexity == pytest.approx(best.test_perplexity, rel=1e-6)
    said = capsys.readouterr().out
    assert found.command(best) in said

    monkeypatch.setattr(cli, "_run", lambda parser, arguments: parser.parse_args(arguments))
    args = cli.main(shlex.split(found.command(best))[1:])
    again = jaxlm.preset(args.preset).replace(**cli._given(args))
    result = jaxlm.train(again, run_dir=tmp_path / "alone", quiet=True)
    assert result.config == rundir.saved_config(best.run_dir)
    np.testing.assert_allclose(costs(tmp_path / "alone"), costs(best.run_dir), rtol=1e-4)
    assert result.test_perplexity == pytest.approx(best.test_perplexity, rel=1e-3)

    table = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [float(row["valid_perplexity_2"]) for row in table] == [t.valid_perplexity for t in found.trials]
    assert json.loads((tmp_path / "sweep/sweep.json").read_text())["best"] == best.number
    for name in ("slices.png", "parallel.png"):
        assert (tmp_path / "sweep" / name).read_bytes().startswith(b"\x89PNG")
