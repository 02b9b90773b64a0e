"""Trajectories that TensorFlow really ran, reproduced:
costs, gradient norms, rates, validation, test, final weights.

The cases in `golden/` (made by `golden/make.py`) hold everywhere at the full tolerance. The Penn
Treebank one, 50 windows of the main job, is chaotic: clipped SGD at rate 1.0 doubles a difference
every window or two, so that two float32 runs that agree to 1e-7 part by 1e-2 after thirty windows.
TensorFlow 2.15 itself, run again on another machine with the same seed, leaves its own recorded
costs by 3e-2 and its norms by 0.9. What float32 determines is therefore held strictly, and beyond
that the trajectory is held to be a shadow of the same dynamics (see the tests).
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.base.units import perplexity
from jaxlm.data.corpora import load_corpus
from jaxlm.data.windows import WindowPlan, batch
from jaxlm.distributed.mesh import fetch, place, put_rows
from jaxlm.models import stack
from jaxlm.scoring.stream import eval_step, stream_nats
from jaxlm.training.step import init_state, train_windows

HERE = Path(__file__).parent / "golden"
COST = 2e-4
NORM = 2e-3
VALID = 5e-4  # relative tolerances


def _maker():
    spec = importlib.util.spec_from_file_location("golden_make", HERE / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _maker()


def named(case: dict, variables: list) -> dict[str, np.ndarray]:
    """Initial weights under TensorFlow's names; LSTM biases zero."""
    fresh = iter(make.weights(case))
    return {
        name: np.zeros(shape, np.float32) if name.endswith("/bias:0") else next(fresh)
        for name, shape in variables
    }


@pytest.mark.golden
@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_a_trajectory_of_tensorflow(path):
    follow(path)


def follow(path, mesh=None):
    """Trains, validates and tests as TensorFlow did; on a mesh where there is one."""
    golden = json.loads(path.read_text())
    case = golden["case"]
    told = np.array(golden["train_cost_norm_rate"])
    config = jaxlm.preset("small").replace(
        vocab_size=case["V"],
        embedding_size=case["E"],
        hidden_sizes=case["hidden"],
        batch_size=case["B"],
        bptt_length=case["T"],
        learning_rate=case["lr"],
        decay=case["decay"],
        hold=float(case["hold"]),
        schedule_offset=float(case["offset"]),
        clip_norm=case["clip"],
        forget_bias=case["forget_bias"],
    )
    params = jaxlm.from_tensorflow(named(case, golden["variables"]))
    recipe = config.recipe
    state = place(mesh, init_state(recipe, jax.random.key(0), case["B"], params))
    stream = make.tokens(case)
    train = stream[: case["N"]]
    valid = stream[case["N"] :]
    tokens = batch(train, case["B"])
    plan = WindowPlan(len(tokens), case["T"], 100)
    costs = []
    rows = put_rows(mesh, tokens.shape, lambda part: tokens[:, part])
    while (at := len(costs)) < case["steps"]:
        count = min(plan.per_epoch - at % plan.per_epoch, case["steps"] - at)
        state, metrics = train_windows(
            recipe,
            state,
            rows,
            plan.windows(at, count, plan.per_epoch),
            jnp.int32(count),
            bptt_length=case["T"],
            mesh=mesh,
        )
        costs += (
            np.array([metrics.cost, metrics.grad_norm, metrics.learning_rate]).T[:count].tolist()
        )
    cost, norm, rate = np.array(costs).T
    np.testing.assert_allclose(cost, told[:, 0], rtol=COST)
    np.testing.assert_allclose(norm, told[:, 1], rtol=NORM)
    np.testing.assert_allclose(rate, told[:, 2], rtol=1e-6)

    nats, count = stream_nats(recipe.model, state.params, valid, case["B"], case["T"], mesh)
    expected = sum(golden["valid_cost"])
    assert nats / case["B"] == pytest.approx(expected, rel=VALID)
    assert count / case["B"] == len(golden["valid_cost"]) * case["T"]
    nats, count = stream_nats(recipe.model, state.params, valid, mesh=mesh)
    assert count == len(valid) - 1
    assert perplexity(nats, count) == pytest.approx(np.exp(golden["test_cost"] / count), rel=VALID)
    for name, array in jaxlm.to_tensorflow(
        fetch(mesh, state, recipe.model.vocab_size).params
    ).items():
        assert np.linalg.norm(array) == pytest.approx(golden["final_norms"][name], rel=VALID)


@pytest.fixture(scope="module")
def ptb_golden(ptb_dir):
    return recorded(ptb_dir)


def recorded(ptb_dir):
    return json.loads((HERE / "published/tf1_seed.json").read_text()), load_corpus(
        "ptb", data_dir=ptb_dir
    )


def ptb_run(golden, corpus, nudge: int | None = None, mesh=None):
    """Costs and norms of as many windows, and validation costs, as were recorded;
    `nudge` seeds a change of the weights by 1e-6.
    """
    config = jaxlm.preset("small")
    count = len(golden["train_cost_and_grad_norm"])
    case = dict(V=10_000, E=200, hidden=[256, 128], init=0.1)
    variables = named(case, golden["variables"])
    if nudge is not None:
        rng = np.random.default_rng(nudge)
        variables = {
            name: (array * (1 + 1e-6 * rng.choice([-1, 1], array.shape))).astype(np.float32)
            for name, array in variables.items()
        }
    recipe = config.recipe
    state = init_state(recipe, jax.random.key(0), 60, jaxlm.from_tensorflow(variables))
    with jax.default_matmul_precision("highest"):
        tokens = batch(corpus.train, 60)
        tokens = put_rows(mesh, tokens.shape, lambda rows, tokens=tokens: tokens[:, rows])
        windows = WindowPlan(len(tokens), 20, 1).windows(0, count, count)
        state, metrics = train_windows(
            recipe, place(mesh, state), tokens, windows, jnp.int32(count), bptt_length=20, mesh=mesh
        )
        state = fetch(mesh, state, recipe.model.vocab_size)
        rows = jnp.asarray(batch(corpus.valid, 60))
        carry = stack.zero_carry(recipe.model, 60)
        valid = []
        for start in range(0, 20 * len(golden["valid_cost"]), 20):
            inputs = rows[start : start + 20]
            targets = rows[start + 1 : start + 21]
            nats, carry = jax.jit(eval_step)(recipe.model, state.params, inputs, targets, carry)
            valid.append(float(nats.sum()) / 60)
    return np.array([metrics.cost, metrics.grad_norm], np.float64).T, np.array(valid)


@pytest.mark.golden
def test_penn_treebank_as_far_as_float32_determines_it(ptb_golden):
    follow_penn_treebank(ptb_golden)


def follow_penn_treebank(ptb_golden, mesh=None):
    """Full tolerance over the windows in which rounding has not yet grown to it;
    then the same dynamics.
    """
    golden, corpus = ptb_golden
    told, (ran, valid) = (
        np.array(golden["train_cost_and_grad_norm"]),
        ptb_run(golden, corpus, mesh=mesh),
    )
    error = np.abs(ran / told - 1)
    assert (
        error[:15].max() < 5e-5
    )  # five times stricter than asked, while the agreement is meaningful
    assert error[:20, 0].max() < COST
    assert error[:20, 1].max() < NORM
    assert error[:, 0].max() < 0.1
    np.testing.assert_allclose(ran[:, 0].mean(), told[:, 0].mean(), rtol=5e-3)
    np.testing.assert_allclose(valid.mean(), np.mean(golden["valid_cost"]), rtol=3e-2)


@pytest.mark.slow
def test_penn_treebank_within_the_spread_of_its_own_rounding(ptb_golden):
    """At every window TensorFlow lies within four times the spread of
    runs whose weights were nudged by 1e-6.

    That is the size which the recorded norms' own rounding has reached by the tenth window, against
    float64.
    """
    golden, corpus = ptb_golden
    told = np.array(golden["train_cost_and_grad_norm"])
    runs = np.stack([ptb_run(golden, corpus, nudge)[0] for nudge in range(4)])
    centre = runs.mean(0)
    spread = runs.max(0) - runs.min(0)
    grown = np.maximum.accumulate(spread / centre, axis=0)
    assert (np.abs(told / centre - 1) <= np.maximum([COST, NORM], 4 * grown)).all()
