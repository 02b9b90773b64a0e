"""step.py, loss.py, optim.py and the model: the recipes' exact semantics, each point by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.config.config import Config, ModelConfig, TrainConfig
from jaxlm.models import lstm as model
from jaxlm.training.loss import window_nats
from jaxlm.training.optimizers import Hyper, learning_rate
from jaxlm.training.step import Window, eval_step, init_state, read_window, train_step, train_windows

V, E, HIDDEN, B, T = 11, 3, (5, 4), 2, 6
MODEL = ModelConfig(vocab_size=V, embedding_size=E, hidden_sizes=HIDDEN)
HYPER = Hyper(clip_norm=1e9, init_scale=0.7)
step = jax.jit(train_step)
evaluation = jax.jit(eval_step)
initial = jax.jit(init_state, static_argnums=(1, 3))


def window(seed=0, first=False, epoch=0) -> Window:
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, V, (T + 1, B)))
    return Window(tokens[:-1], tokens[1:], epoch=epoch, first=first)


def state_of(model_config=MODEL, hyper=HYPER, seed=0):
    return initial(jax.random.key(seed), model_config, hyper, B)


@jax.jit
def plain_cost(params, hyper, w, carry):
    """Point 1 in plain words: log-softmax of all logits; the mean over the batch, summed over the steps."""
    h, carry = model.apply(params, hyper, model.embed(params, w.inputs), carry)
    log_p = jax.nn.log_softmax(h @ params["softmax"]["kernel"] + params["softmax"]["bias"])
    nats = -jnp.take_along_axis(log_p, w.targets[..., None], -1)[..., 0]
    return nats.mean(1).sum(), carry


def test_1_the_cost_is_summed_over_steps_and_averaged_over_the_batch():
    state = state_of()
    expected, _ = plain_cost(state.params, HYPER, window(), state.carry)
    _, metrics = step(state, HYPER, window())
    assert float(metrics.cost) == pytest.approx(float(expected), rel=1e-6)


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters_and_carry():
    half = state_of(ModelConfig(vocab_size=V, embedding_size=E, hidden_sizes=HIDDEN, compute_dtype="bfloat16"))
    (state, told), (plain, expected) = step(half, HYPER, window()), step(state_of(), HYPER, window())
    assert float(told.cost) == pytest.approx(float(expected.cost), rel=0.02)
    assert float(told.cost) != float(expected.cost)
    assert float(told.grad_norm) == pytest.approx(float(expected.grad_norm), rel=0.05)
    assert jax.tree.map(lambda a: a.dtype, (state.params, state.carry)) == jax.tree.map(
        lambda a: a.dtype, (plain.params, plain.carry))


def test_1_an_update_is_that_costs_gradient_clipped_by_its_global_norm():
    """The norm counts each read of an embedding row by itself, as TensorFlow's IndexedSlices do."""
    state, w, clip = state_of(), window(), 0.5
    hyper = Hyper(clip_norm=clip, learning_rate=0.3)
    after, metrics = step(state, hyper, w)
    dense = jax.jit(jax.grad(lambda p: plain_cost(p, hyper, w, state.carry)[0]))(state.params)
    rows = jax.jit(jax.grad(lambda x: window_nats(state.params, hyper, x, w.targets, state.carry)[0] / B))(
        model.embed(state.params, w.inputs))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves({**dense, "embedding": rows})))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert norm > clip
    expected = jax.tree.map(lambda p, g: p - 0.3 * g * clip / norm, state.params, dense)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, expected)


def test_1_a_gradient_within_the_norm_is_not_scaled():
    state, w = state_of(), window()
    a, _ = step(state, Hyper(clip_norm=1e3), w)
    b, _ = step(state, Hyper(clip_norm=1e6), w)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.parametrize(("offset", "rates"), [(1.0, [1, 1, 1, 1, 0.5, 0.25]), (0.0, [1, 1, 1, 1, 1, 0.5])])
def test_2_the_rate_decays_once_an_epoch_after_hold(offset, rates):
    hyper = Hyper(learning_rate=1.0, decay=0.5, hold=4.0, schedule_offset=offset)
    assert [float(learning_rate(hyper, epoch)) for epoch in range(6)] == rates


def test_4_initialisation():
    params = model.init_params(jax.random.key(0), ModelConfig(vocab_size=500), Hyper(init_scale=0.25))
    for layer in params["lstm"]:
        assert not layer["bias"].any()
    for leaf in (params["embedding"], params["lstm"][0]["kernel"], params["lstm"][1]["kernel"],
                 params["softmax"]["kernel"], params["softmax"]["bias"]):
        assert 0.24 < float(jnp.abs(leaf).max()) <= 0.25
        assert abs(float(leaf.mean())) < 0.25 * 4 / np.sqrt(3 * leaf.size)
        assert float(leaf.std()) == pytest.approx(0.25 / np.sqrt(3), rel=0.1)


def test_4_shapes_of_the_tree():
    params = model.init_params(jax.random.key(0), MODEL, HYPER)
    assert jax.tree.map(jnp.shape, params) == {
        "embedding": (V, E), "lstm": [{"kernel": (E + 5, 20), "bias": (20,)}, {"kernel": (5 + 4, 16), "bias": (16,)}],
        "softmax": {"kernel": (4, V), "bias": (V,)}}


def test_5_dropout_falls_on_the_input_and_each_output_with_a_fresh_mask_each_step():
    """With an identity-like model the zeros can be seen: kept values are scaled by 1 / keep."""
    params = model.init_params(jax.random.key(0), ModelConfig(vocab_size=V, embedding_size=64, hidden_sizes=(64,)),
                               Hyper(init_scale=0.5))
    x, carry = jnp.ones((T, B, 64)), model.zero_carry(params, B)
    apply = jax.jit(model.apply)
    plain, _ = apply(params, HYPER, x, carry)
    dropped, final = apply(params, Hyper(keep_output=0.5), x, carry, jax.random.key(1))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-5)  # the recurrence itself saw no dropout
    np.testing.assert_allclose(final[0].h, plain[-1], rtol=1e-5)
    assert 0.4 < float(kept.mean()) < 0.6
    assert all((kept[t] != kept[t + 1]).any() for t in range(T - 1))
    embedded, _ = apply(params, Hyper(keep_embedding=0.5), x, carry, jax.random.key(1))
    assert (embedded != plain).any(axis=-1).all()


def test_5_dropout_is_new_at_each_step_of_training_and_absent_from_evaluation():
    config = ModelConfig(vocab_size=V, embedding_size=E, hidden_sizes=HIDDEN, dropout=True)
    hyper = Hyper(keep_embedding=0.5, keep_output=0.5, learning_rate=1e-12, init_scale=0.7)
    state = state_of(config, hyper)
    again, first = step(state, hyper, window(first=True))
    _, second = step(again, hyper, window(first=True))
    assert abs(float(first.cost) - float(second.cost)) > 1e-2
    nats, _ = evaluation(state.params, hyper, window(), model.zero_carry(state.params, B))
    expected, _ = plain_cost(state.params, HYPER, window(), model.zero_carry(state.params, B))
    assert float(nats.sum()) / B == pytest.approx(float(expected), rel=1e-5)
    assert state_of().key is None  # a model without dropout holds no key


def test_8_the_carry_passes_between_windows_is_zero_at_an_epochs_start_and_stops_gradients():
    hyper = Hyper(learning_rate=1e-12)
    state, _ = step(state_of(), hyper, window(0, first=True))
    expected, _ = plain_cost(state.params, hyper, window(1), state.carry)
    _, metrics = step(state, hyper, window(1))
    assert float(metrics.cost) == pytest.approx(float(expected), rel=1e-6)
    fresh, _ = plain_cost(state.params, hyper, window(1), model.zero_carry(state.params, B))
    _, metrics = step(state, hyper, window(1, first=True))
    assert float(metrics.cost) == pytest.approx(float(fresh), rel=1e-6)
    assert abs(float(fresh) - float(expected)) > 1e-3


def test_8_windows_are_read_in_order_and_each_epoch_begins_anew():
    tokens = jnp.arange(14)[:, None] * jnp.ones((1, B), jnp.int32)
    told = [read_window(tokens, jnp.int32(step), 3) for step in range(9)]
    assert [int(w.inputs[0, 0]) for w in told] == [0, 3, 6, 9] * 2 + [0]
    assert [bool(w.first) for w in told] == [True, False, False, False] * 2 + [True]
    assert [int(w.epoch) for w in told] == [0] * 4 + [1] * 4 + [2]
    assert all((w.targets == w.inputs + 1).all() for w in told)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (5 * T + 1, B)))


def test_many_windows_in_one_call_equal_single_steps_and_compile_once(tokens):
    before = train_windows._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    config = Config(model=MODEL, train=TrainConfig(batch_size=B, bptt_length=T))
    hyper = jax.tree.map(jnp.float32, config.hyper)
    together, metrics = train_windows(state_of(), hyper, tokens, jnp.int32(7), bptt_length=T, max_windows=8)
    alone, costs = state_of(), []
    for _ in range(7):
        alone, told = step(alone, hyper, read_window(tokens, alone.step, T))
        costs.append(float(told.cost))
    np.testing.assert_allclose(metrics.cost[:7], costs, rtol=1e-6)
    assert not metrics.cost[7:].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), together, alone)
    for count, rate in ((3, 0.1), (8, 0.7)):  # neither a tail nor another number compiles anything
        train_windows(state_of(), jax.tree.map(jnp.float32, Hyper(learning_rate=rate, keep_output=rate)), tokens,
                      jnp.int32(count), bptt_length=T, max_windows=8)
    assert train_windows._cache_size() == before + 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_cost_that_is_not_finite_keeps_parameters_and_carry():
    state = state_of()
    poisoned = state.replace(params={**state.params, "softmax": {**state.params["softmax"],
                                                                 "bias": jnp.full(V, jnp.nan)}})
    after, metrics = step(poisoned, HYPER, window())
    assert not np.isfinite(metrics.cost)
    jax.tree.map(np.testing.assert_array_equal, after.params, poisoned.params)
    jax.tree.map(np.testing.assert_array_equal, after.carry, poisoned.carry)


def test_a_sweep_is_vmap_over_hyper():
    rates = jnp.array([0.1, 1.0])
    hypers = jax.tree.map(lambda value: jnp.full(2, value), HYPER)
    hypers = Hyper(**{**vars(hypers), "learning_rate": rates})
    states = jax.vmap(lambda hyper: initial(jax.random.key(0), MODEL, hyper, B))(hypers)
    together, _ = jax.jit(jax.vmap(train_step, (0, 0, None)))(states, hypers, window())
    for i in range(2):
        alone, _ = step(state_of(), Hyper(**{**vars(HYPER), "learning_rate": float(rates[i])}), window())
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7),
                     together.params, alone.params)


def test_parameters_go_to_tensorflows_names_and_back():
    params = state_of().params
    named = jaxlm.to_tensorflow(params)
    assert list(named) == ["m/embedding_vocab:0", *(
        f"m/rnn/multi_rnn_cell/cell_{i}/basic_lstm_cell/{part}:0" for i in (0, 1) for part in ("kernel", "bias")),
        "m/softmax_w:0", "m/softmax_b:0"]
    jax.tree.map(np.testing.assert_array_equal, jaxlm.from_tensorflow(named), params)
    with pytest.raises(jaxlm.JaxlmError, match=r"missing are .*softmax_b"):
        jaxlm.from_tensorflow({name: array for name, array in named.items() if "softmax_b" not in name})
