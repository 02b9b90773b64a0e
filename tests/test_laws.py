"""Laws that every model, optimiser and schedule obeys, over the table in `recipes.py`."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import (
    BASE,
    CASES,
    COVERING,
    HEADS,
    MODEL_CASES,
    USUAL_MODELS,
    B,
    T,
    V,
    drawn_params,
    parameters,
    sentences,
)

import jaxlm
from jaxlm.base.fields import specs
from jaxlm.models import heads, stack
from jaxlm.runs.run import window_plan
from jaxlm.runs.trainer import new_state
from jaxlm.scoring.stream import eval_step, stream_nats
from jaxlm.training import members
from jaxlm.training.step import init_state, train_windows
from jaxlm.training.validations import Average

pytestmark = pytest.mark.usefixtures("room_for_programs")

IDS = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
ROWS = 97
SLOTS = 8  # of `text`, and windows of a call: the runs by `jaxlm.train` share the compiled programs
TOKENS = np.pad(IDS.reshape(B, -1).T, ((0, ROWS - len(IDS) // B), (0, 0)))


# One program: op by op, every op of every model would be compiled by itself.
_eval_step = jax.jit(eval_step)


def started(config, seed=0):
    return new_state(config.replace(seed=seed))


def nats_of(config, params, tokens, carry=None):
    model = config.model
    return _eval_step(
        model,
        params,
        tokens[:-1],
        tokens[1:],
        stack.zero_carry(model, tokens.shape[1]) if carry is None else carry,
    )


def windows_of(config, steps=6):
    return window_plan(config, len(TOKENS)).windows(0, steps, SLOTS)


def shape_of(config):
    return {"bptt_length": config.train.longest, "small_batch": config.train.small_batch}


def trained(config, state, steps=6):
    """State and costs after some windows of the first epoch."""
    recipe = jax.tree.map(jnp.float32, config.recipe)
    return train_windows(
        recipe,
        state,
        TOKENS,
        windows_of(config, steps),
        jnp.int32(steps),
        jnp.bool_(False),
        mesh=None,
        **shape_of(config),
    )


def equal(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), *map(_numbers, (a, b)))


def _numbers(tree):
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        tree,
    )


@pytest.mark.parametrize("config", parameters(MODEL_CASES, USUAL_MODELS))
class TestModels:
    def test_no_nats_depend_on_later_tokens(self, config):
        params = drawn_params(config.model)
        zero = stack.zero_carry(config.model, B)
        inputs = TOKENS[:8]
        others = np.concatenate([inputs[:6], (inputs[6:] + 1) % V])
        nats, other = (
            np.asarray(_eval_step(config.model, params, given, TOKENS[1:9], zero)[0])
            for given in (inputs, others)
        )
        np.testing.assert_allclose(nats[:6], other[:6], rtol=1e-5)
        assert (nats[6:] != other[6:]).all()

    def test_two_windows_with_the_carry_equal_one(self, config):
        params = drawn_params(config.model)
        whole, end = nats_of(config, params, TOKENS[:9])
        first, carry = nats_of(config, params, TOKENS[:5])
        second, carry = nats_of(config, params, TOKENS[4:9], carry)
        np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-5)
        equal(carry, end, rtol=1e-5, atol=1e-6)
        assert all(len(leaf) == B for leaf in jax.tree.leaves(carry))  # batch first

    def test_rows_of_the_batch_do_not_see_each_other(self, config):
        params = drawn_params(config.model)
        tokens = TOKENS[:9]
        changed = (tokens + 1) % V
        changed[:, 2] = tokens[:, 2]
        whole, others = (np.asarray(nats_of(config, params, read)[0]) for read in (tokens, changed))
        np.testing.assert_allclose(others[:, 2], whole[:, 2], rtol=1e-5)
        assert (others[:, [0, 1, 3]] != whole[:, [0, 1, 3]]).all()

    def test_the_next_word_has_a_probability_of_one_in_all(self, config):
        params = drawn_params(config.model)
        zero = stack.zero_carry(config.model, B)
        nats = [
            _eval_step(config.model, params, TOKENS[:8], np.full((8, B), word, np.int32), zero)[0]
            for word in range(V)
        ]
        np.testing.assert_allclose(np.exp(-np.array(nats)).sum(0), 1, rtol=1e-5)

    def test_carry_and_params_have_the_shapes_that_the_config_says(self, config):
        state = jax.eval_shape(partial(started, config))
        assert len(state.carry) == len(config.model.hidden_sizes)
        assert state.params["embedding"].shape == (V, config.model.embedding_size)
        assert ("kernel" in state.params["softmax"]) != config.model.tied


@pytest.mark.parametrize("config", parameters(MODEL_CASES, HEADS))
def test_summed_nats_are_the_sum_of_token_nats_and_differentiate_the_same(config):
    """What a head makes of any features, whatever kind of layers they come from."""
    model = config.model
    params = drawn_params(model)
    targets = jax.device_put(TOKENS[1:4])
    y = jax.device_put(np.random.default_rng(1).normal(size=(3, B, model.hidden_sizes[-1])))

    def plainly(params, y):
        log_p = jax.nn.log_softmax(heads.logits(model, params, y))
        return -jnp.take_along_axis(log_p, targets[..., None], -1).sum()

    def fast(params, y):
        return heads.summed_nats(model, params, y, targets)

    differentiated = [
        jax.jit(jax.value_and_grad(cost, argnums=(0, 1)))(params, y) for cost in (fast, plainly)
    ]
    equal(*differentiated, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("config", parameters(CASES, COVERING))
class TestTraining:
    def test_the_cost_falls(self, config):
        config = config.replace(learning_rate=config.optimizer.learning_rate / 2)
        state = started(config)
        first, _ = stream_nats(config.model, state.params, IDS, B, T)
        for _ in range(13):
            state, metrics = trained(config, state)
            assert metrics.finite.all()
        nats, count = stream_nats(
            config.model, state.evaluated, IDS, B, T
        )  # without dropout's noise
        assert nats < first
        assert nats / count < np.log(V) + 0.2

    def test_a_changed_number_compiles_nothing(self, config):
        trained(config, started(config))
        before = train_windows._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
        numbers = [
            (part, name)
            for part in ("model", "optimizer", "schedule")
            for name, spec in specs(type(getattr(config, part))).items()
            if spec.type is float
        ]
        changed = [
            name for part, name in numbers if getattr(getattr(config, part), name) is not None
        ]
        assert len(changed) >= 5
        for name in changed:
            section = next(getattr(config, part) for part, one in numbers if one == name)
            value = getattr(section, name)
            other = config.replace(**{name: value / 2 if value else 0.25})
            trained(other, started(config))
        trained(config.replace(seed=7, epochs=9), started(config))
        assert train_windows._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize("vmapped", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_a_member_equals_the_run_alone(self, config, vmapped):
        configs = [config, config.replace(learning_rate=config.optimizer.learning_rate / 3)]
        group = members.stacked(configs[0].recipe, started(config), 2, None)
        group = members.with_member(group, 1, configs[1].recipe, started(config, seed=1))
        windows = jax.tree.map(lambda column: np.stack([column] * 2), windows_of(config))
        states, metrics = members.train_members(
            *group,
            TOKENS,
            windows,
            jnp.array([6, 6], jnp.int32),
            vmapped=vmapped,
            **shape_of(config),
        )
        states = jax.device_get(_numbers(states))
        for slot, seed in ((0, 0), (1, 1)):
            alone, costs = trained(configs[slot], started(config, seed=seed))
            tolerance = dict(rtol=1e-4, atol=1e-5) if vmapped else dict(rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(metrics.cost[slot], costs.cost, rtol=1e-5)
            equal(members.member_at(states, slot), alone, **tolerance)

    def test_a_run_that_was_stopped_ends_with_the_same_bytes(self, config, tmp_path, text):
        """Parameters, carry, key, optimiser and average:
        whatever the state holds is saved and restored.
        """
        config = config.replace(
            corpus=str(text), vocab_size=100, checkpoint_every=3, windows_per_call=SLOTS
        )
        straight = jaxlm.train(config, quiet=True)
        jaxlm.train(config, run_dir=tmp_path / "run", steps=5, quiet=True)
        resumed = jaxlm.train(config, run_dir=tmp_path / "run", resume=True, quiet=True)
        assert jax.tree.structure(resumed.state) == jax.tree.structure(straight.state)
        equal(resumed.state, straight.state, rtol=2e-5, atol=1e-6)
        assert resumed.test_perplexity == pytest.approx(straight.test_perplexity, rel=1e-5)
        assert jaxlm.evaluate(tmp_path / "run").perplexity == resumed.test_perplexity


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of a few hundred words."""
    return sentences(tmp_path_factory.mktemp("text"), train=60, valid=12, test=6)


def test_the_average_is_the_weighted_mean_of_all_iterates():
    config = next(case for case in COVERING.values() if case.optimizer.average_decay is not None)
    state = started(config)
    iterates = []
    for _ in range(5):
        state, _ = trained(config, state, steps=1)
        iterates.append(np.asarray(state.params["embedding"], np.float64))
    assert config.optimizer.average_decay
    weights = config.optimizer.average_decay ** np.arange(4.0, -1, -1)
    expected = np.tensordot(weights / weights.sum(), iterates, 1)
    np.testing.assert_allclose(state.evaluated["embedding"], expected, rtol=1e-5, atol=1e-6)


def test_a_mechanism_that_is_absent_has_no_leaf():
    plain = BASE.recipe
    full = BASE.replace(average_decay=0.5, keep_output=0.5, momentum=0.5).recipe
    assert len(jax.tree.leaves(full)) == len(jax.tree.leaves(plain)) + 3
    state = jax.eval_shape(partial(init_state, plain, batch_size=B), jax.random.key(0))
    assert state.key is None and state.average is None and not jax.tree.leaves(state.opt_state)
    assert replace(state, average=Average(state.params, jnp.int32(1))).evaluated is state.params
