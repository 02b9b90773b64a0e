"""training/: the exact semantics of TensorFlow's PTB tutorial, one by one,
on the classic LSTM with SGD.
"""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import MODELS, begun, drawn_params

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.config.recipe import Recipe
from jaxlm.data.windows import WindowPlan
from jaxlm.models import heads, stack
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.scoring.stream import eval_step
from jaxlm.training.step import Window, read_window, train_step, train_windows

V = 11
E = 3
HIDDEN = (5, 4)
B = 2
T = 6
CONFIG = jaxlm.preset("small").replace(
    vocab_size=V, embedding_size=E, hidden_sizes=HIDDEN, clip_norm=1e9, init_scale=0.7
)
RECIPE = CONFIG.recipe
step = jax.jit(train_step)
evaluation = jax.jit(eval_step)
drawn_noise = jax.jit(draw_noise, static_argnums=(2, 3))


def recipe_of(**changes) -> Recipe:
    return CONFIG.replace(**changes).recipe


def window(seed=0, first=False, epoch=0) -> Window:
    tokens = jax.device_put(np.random.default_rng(seed).integers(0, V, (T + 1, B)))
    return Window(tokens[:-1], tokens[1:], epoch=epoch, first=first)


def state_of(recipe=RECIPE, seed=0):
    return begun(recipe, jax.random.key(seed), B, seed)


@jax.jit
def outputs(model, params, x, carry, noise=None):
    return stack.features(model, params, Noise() if noise is None else noise, x, carry)


@jax.jit
def plain_cost(params, recipe, w, carry):
    """The cost written plainly: log-softmax of all logits;
    the mean over the batch, summed over the steps.
    """
    h, carry = outputs(recipe.model, params, stack.embed(params, w.inputs), carry)
    log_p = jax.nn.log_softmax(h @ params["softmax"]["kernel"] + params["softmax"]["bias"])
    nats = -jnp.take_along_axis(log_p, w.targets[..., None], -1)[..., 0]
    return nats.mean(1).sum(), carry


def test_the_cost_is_summed_over_steps_and_averaged_over_the_batch():
    state = state_of()
    expected, _ = plain_cost(state.params, RECIPE, window(), state.carry)
    _, metrics = step(RECIPE, state, window())
    assert float(metrics.cost) == pytest.approx(float(expected), rel=1e-6)
    assert metrics.finite


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters_and_carry():
    half = recipe_of(compute_dtype="bfloat16")
    (state, metrics), (plain, expected) = (
        step(half, state_of(half), window()),
        step(RECIPE, state_of(), window()),
    )
    assert float(metrics.cost) == pytest.approx(float(expected.cost), rel=0.02)
    assert float(metrics.cost) != float(expected.cost)
    assert float(metrics.grad_norm) == pytest.approx(float(expected.grad_norm), rel=0.05)
    assert jax.tree.map(lambda a: a.dtype, (state.params, state.carry)) == jax.tree.map(
        lambda a: a.dtype, (plain.params, plain.carry)
    )


def test_an_update_is_that_costs_gradient_clipped_by_its_global_norm():
    """The norm counts each read of an embedding row by itself, as TensorFlow's IndexedSlices do."""
    state = state_of()
    w = window()
    clip = 0.5
    recipe = recipe_of(clip_norm=clip, learning_rate=0.3)
    after, metrics = step(recipe, state, w)
    dense = jax.jit(jax.grad(lambda p: plain_cost(p, recipe, w, state.carry)[0]))(state.params)

    def cost_of_rows(x):
        h, _ = outputs(recipe.model, state.params, x, state.carry)
        return heads.summed_nats(recipe.model, state.params, h, w.targets) / B

    rows = jax.jit(jax.grad(cost_of_rows))(stack.embed(state.params, w.inputs))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves({**dense, "embedding": rows})))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert norm > clip
    expected = jax.tree.map(lambda p, g: p - 0.3 * g * clip / norm, state.params, dense)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, expected
    )


def test_a_gradient_within_the_norm_is_not_scaled():
    recipes = [recipe_of(clip_norm=clip) for clip in (1e3, 1e6, None)]
    a, b, c = (step(recipe, state_of(recipe), window())[0].params for recipe in recipes)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(np.testing.assert_array_equal, a, c)


@pytest.mark.parametrize(
    ("offset", "rates"), [(1.0, [1, 1, 1, 1, 0.5, 0.25]), (0.0, [1, 1, 1, 1, 1, 0.5])]
)
def test_the_rate_decays_once_an_epoch_after_hold(offset, rates):
    schedule = recipe_of(decay=0.5, hold=4.0, schedule_offset=offset).schedule
    assert [float(schedule.factor(0, epoch, 60)) for epoch in range(6)] == rates


def test_the_rate_decays_once_every_so_many_epochs():
    schedule = recipe_of(decay=0.5, hold=2.0, schedule_offset=0.0, decay_every=3.0).schedule
    rates = [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert [float(schedule.factor(0, epoch, 90)) for epoch in range(9)] == rates


def test_initialisation():
    params = jax.jit(stack.init_params)(
        recipe_of(
            vocab_size=500, init_scale=0.25, hidden_sizes=(256, 128), embedding_size=200
        ).model,
        jax.random.key(0),
    )
    params = jax.device_get(params)
    for layer in params["layers"]:
        assert not layer["bias"].any()
    for leaf in (
        params["embedding"],
        params["layers"][0]["kernel"],
        params["layers"][1]["kernel"],
        params["softmax"]["kernel"],
        params["softmax"]["bias"],
    ):
        assert 0.24 < np.abs(leaf).max() <= 0.25
        assert abs(leaf.mean()) < 0.25 * 4 / np.sqrt(3 * leaf.size)
        assert leaf.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.1)


def test_initialisation_as_pytorch_s():
    """Two biases of a gate, of which ours is the sum, where PyTorch has two;
    a Linear's alone for minGRU.
    """
    H = 400
    E = 100
    initialised = jax.jit(stack.init_params)
    params = {
        kind: initialised(
            MODELS[kind](vocab_size=4, embedding_size=E, hidden_sizes=(H,), torch_init=True),
            jax.random.key(0),
        )["layers"][0]
        for kind in ("lstm", "gru", "mingru")
    }
    # Half the width of a uniform distribution.
    spread = {
        kind: {
            name: np.asarray(leaf).std() * np.sqrt(3)
            for name, leaf in layer.items()
            if isinstance(leaf, jax.Array)
        }
        for kind, layer in params.items()
    }
    one = H**-0.5
    two = H**-0.5 * np.sqrt(2)
    assert spread["lstm"]["bias"] == pytest.approx(two, rel=0.1)
    assert spread["gru"]["recurrent_bias"] == pytest.approx(one, rel=0.1)
    bias = np.asarray(params["gru"]["bias"])
    assert bias[: 2 * H].std() * np.sqrt(3) == pytest.approx(two, rel=0.1)
    assert bias[2 * H :].std() * np.sqrt(3) == pytest.approx(one, rel=0.1)
    assert [spread["mingru"][name] for name in ("bias", "kernel")] == pytest.approx(
        [E**-0.5] * 2, rel=0.1
    )
    low, high = (
        initialised(
            Mogrifier(
                vocab_size=4, embedding_size=E, hidden_sizes=(H,), torch_init=True, forget_bias=bias
            ),
            jax.random.key(0),
        )["layers"][0]["bias"]
        for bias in (1.0, 3.0)
    )
    assert (np.asarray(high) - np.asarray(low)).max() == pytest.approx(2)


def test_shapes_of_the_tree():
    params = jax.eval_shape(stack.init_params, RECIPE.model, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {
        "embedding": (V, E),
        "layers": [{"kernel": (E + 5, 20), "bias": (20,)}, {"kernel": (5 + 4, 16), "bias": (16,)}],
        "softmax": {"kernel": (4, V), "bias": (V,)},
    }


def test_dropout_falls_on_the_input_and_each_output_with_a_fresh_mask_each_step():
    """With an identity-like model the zeros can be seen: kept values are scaled by 1 / keep."""
    plain_model = recipe_of(embedding_size=64, hidden_sizes=(64,), init_scale=0.5).model
    params = drawn_params(plain_model)
    x = np.ones((T, B, 64), np.float32)
    carry = stack.zero_carry(plain_model, B)
    plain, _ = jax.device_get(outputs(plain_model, params, x, carry))

    def dropped(**keep):
        model = recipe_of(embedding_size=64, hidden_sizes=(64,), init_scale=0.5, **keep).model
        noise = drawn_noise(model, jax.random.key(1), T, B)
        return jax.device_get(outputs(model, params, x, carry, noise))

    y, final = dropped(keep_output=0.5)
    kept = y != 0
    np.testing.assert_allclose(
        y[kept], 2 * plain[kept], rtol=1e-5
    )  # the recurrence itself saw no dropout
    np.testing.assert_allclose(final[0].h, plain[-1], rtol=1e-5)
    assert 0.4 < float(kept.mean()) < 0.6
    assert all((kept[t] != kept[t + 1]).any() for t in range(T - 1))
    embedded, _ = dropped(keep_embedding=0.5)
    assert (embedded != plain).any(axis=-1).all()


def test_noise_is_an_input():
    """A recorded mask gives the same outputs, whoever drew it."""
    model = recipe_of(keep_embedding=0.5, keep_output=0.5).model
    params = drawn_params(model)
    x = np.ones((T, B, E), np.float32)
    rng = np.random.default_rng(0)
    noise = Noise(
        jax.device_put(rng.random((T, B, E)) < 0.5),
        tuple(jax.device_put(rng.random((T, B, H)) < 0.5) for H in HIDDEN),
    )
    y, _ = outputs(model, params, x, stack.zero_carry(model, B), noise)
    by_hand = np.where(np.asarray(noise.embedding), x * 2, 0)
    for layer, mask, H in zip(params["layers"], noise.outputs, HIDDEN, strict=True):
        one_layer = recipe_of(hidden_sizes=(H,), embedding_size=by_hand.shape[-1]).model
        by_hand, _ = outputs(
            one_layer, {"layers": [layer]}, by_hand, stack.zero_carry(one_layer, B)
        )
        by_hand = np.where(np.asarray(mask), np.asarray(by_hand) * 2, 0)
    np.testing.assert_allclose(y, by_hand, rtol=1e-6)


def test_dropout_is_new_at_each_step_of_training_and_absent_from_evaluation():
    recipe = recipe_of(keep_embedding=0.5, keep_output=0.5, learning_rate=1e-12)
    state = state_of(recipe)
    again, first = step(recipe, state, window(first=True))
    _, second = step(recipe, again, window(first=True))
    assert abs(float(first.cost) - float(second.cost)) > 1e-2
    zero = stack.zero_carry(recipe.model, B)
    nats, _ = evaluation(recipe.model, state.params, window().inputs, window().targets, zero)
    expected, _ = plain_cost(state.params, RECIPE, window(), zero)
    assert float(nats.sum()) / B == pytest.approx(float(expected), rel=1e-5)
    assert state_of().key is None  # a model without dropout holds no key


def test_the_carry_passes_between_windows_is_zero_at_an_epochs_start_and_stops_gradients():
    recipe = recipe_of(learning_rate=1e-12)
    state, _ = step(recipe, state_of(), window(0, first=True))
    expected, _ = plain_cost(state.params, recipe, window(1), state.carry)
    _, metrics = step(recipe, state, window(1))
    assert float(metrics.cost) == pytest.approx(float(expected), rel=1e-6)
    fresh, _ = plain_cost(state.params, recipe, window(1), stack.zero_carry(recipe.model, B))
    _, metrics = step(recipe, state, window(1, first=True))
    assert float(metrics.cost) == pytest.approx(float(fresh), rel=1e-6)
    assert abs(float(fresh) - float(expected)) > 1e-3


def test_windows_are_read_in_order_and_each_epoch_begins_anew():
    tokens = jax.device_put(np.repeat(np.arange(14, dtype=np.int32)[:, None], B, 1))
    read_window_at = jax.jit(read_window, static_argnums=2)
    plan = WindowPlan(rows=14, length=3, epochs=3)
    assert (plan.per_epoch, plan.total) == (4, 12)
    read = [
        jax.device_get(
            read_window_at(
                tokens, jax.tree.map(lambda column: column[0], plan.windows(at, 1, 1)), 3
            )
        )
        for at in range(9)
    ]
    assert [int(w.inputs[0, 0]) for w in read] == [0, 3, 6, 9] * 2 + [0]
    assert [bool(w.first) for w in read] == [True, False, False, False] * 2 + [True]
    assert [int(w.epoch) for w in read] == [0] * 4 + [1] * 4 + [2]
    assert all((w.targets == w.inputs + 1).all() and w.total == 12 for w in read)


@pytest.fixture(scope="module")
def tokens():
    return jax.device_put(np.random.default_rng(0).integers(0, V, (7 * T + 1, B)))


def test_many_windows_in_one_call_equal_single_steps(tokens):
    plan = WindowPlan(len(tokens), T, 1)
    recipe = jax.tree.map(jnp.float32, RECIPE)
    together, metrics = train_windows(
        recipe, state_of(), tokens, plan.windows(0, 7, 8), jnp.int32(7), bptt_length=T
    )
    alone = state_of()
    costs = []
    for at in range(7):
        where = jax.tree.map(lambda column: column[0], plan.windows(at, 1, 1))
        alone, one = step(recipe, alone, read_window(tokens, where, T))
        costs.append(float(one.cost))
    np.testing.assert_allclose(metrics.cost[:7], costs, rtol=1e-6)
    assert not metrics.cost[7:].any()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), together, alone
    )


def poisoned(state):
    bias = np.full(V, np.nan, np.float32)
    return replace(
        state, params={**state.params, "softmax": {**state.params["softmax"], "bias": bias}}
    )


def test_a_cost_that_is_not_finite_keeps_parameters_and_carry():
    state = poisoned(state_of())
    after, metrics = step(RECIPE, state, window())
    assert not metrics.finite and not np.isfinite(metrics.cost)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.carry, state.carry)


@pytest.mark.parametrize(
    "fields",
    [
        dict(average_decay=0.9),
        dict(optimizer="asgd", nonmonotone=0),
        dict(optimizer="awd-lstm", nonmonotone=0),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_window_that_is_not_finite_changes_the_step_count_alone(fields, first):
    """Averages, optimiser and carry stay; at an epoch's start the carry is zero."""
    recipe = CONFIG.replace(**fields).recipe
    before, _ = step(recipe, state_of(recipe), window())
    nan = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), before.params["softmax"])
    before = replace(before, params={**before.params, "softmax": nan})
    after, metrics = step(recipe, before, replace(window(), first=jnp.bool_(first)))
    assert not metrics.finite and int(after.step) == int(before.step) + 1
    carry = jax.tree.map(np.zeros_like, before.carry) if first else before.carry
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.device_get(before.carry))) > 0
    jax.tree.map(
        np.testing.assert_array_equal, after, replace(before, step=after.step, carry=carry)
    )
    assert int(before.average.iterates) == 1


@pytest.mark.parametrize(("skip", "trained"), [(False, 1), (True, 5)])
def test_a_call_ends_at_a_window_that_is_not_finite_or_skips_it(tokens, skip, trained):
    windows = WindowPlan(len(tokens), T, 1).windows(0, 5, 8)
    state, metrics = train_windows(
        RECIPE, poisoned(state_of()), tokens, windows, jnp.int32(5), skip, bptt_length=T
    )
    assert int(state.step) == trained
    assert list(np.asarray(metrics.finite)) == [False] * trained + [True] * (8 - trained)


def test_a_sweep_is_vmap_over_recipes():
    rates = jnp.array([0.1, 1.0])
    recipes = jax.vmap(
        lambda rate: replace(RECIPE, optimizer=replace(RECIPE.optimizer, learning_rate=rate))
    )(rates)
    states = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), state_of())
    recipes = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), 2), recipes)
    together, _ = jax.jit(jax.vmap(train_step, (0, 0, None)))(recipes, states, window())
    for i in range(2):
        alone, _ = step(recipe_of(learning_rate=float(rates[i])), state_of(), window())
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7),
            together.params,
            alone.params,
        )


def test_parameters_go_to_tensorflows_names_and_back():
    params = state_of().params
    named = jaxlm.to_tensorflow(params)
    assert list(named) == [
        "m/embedding_vocab:0",
        *(
            f"m/rnn/multi_rnn_cell/cell_{i}/basic_lstm_cell/{part}:0"
            for i in (0, 1)
            for part in ("kernel", "bias")
        ),
        "m/softmax_w:0",
        "m/softmax_b:0",
    ]
    jax.tree.map(
        np.testing.assert_array_equal, jaxlm.from_tensorflow({**named, "global_step": 774}), params
    )
    with pytest.raises(jaxlm.JaxlmError, match=r"softmax_b"):
        jaxlm.from_tensorflow(
            {name: array for name, array in named.items() if "softmax_b" not in name}
        )
    for kind in ("gru", "mingru", "minlstm", "mogrifier", "hawk"):
        model = jaxlm.preset("test").replace(model=kind, vocab_size=9).model
        with pytest.raises(jaxlm.JaxlmError, match="LSTM layers alone"):
            jaxlm.to_tensorflow(drawn_params(model))


def test_the_schedules_warm_up_and_come_down():
    total = 100
    cosine = recipe_of(schedule="cosine", warmup=0.1, final=0.2).schedule.factor
    linear = recipe_of(schedule="linear", warmup=0.1, final=0.2).schedule.factor
    for rate in (cosine, linear):
        values = jax.jit(jax.vmap(lambda at, rate=rate: rate(at, 0, total)))(np.arange(total + 1))
        values = np.asarray(values).tolist()
        assert values[0] == pytest.approx(0.1) and values[9] == pytest.approx(1, abs=0.02)
        assert values[total] == pytest.approx(0.2)
        assert all(a > b for a, b in pairwise(values[10:]))
    assert float(cosine(55, 0, total)) == pytest.approx(0.6) == float(linear(55, 0, total))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_of_all_windows_needs_their_number(schedule):
    recipe = recipe_of(schedule=schedule)
    with pytest.raises(JaxlmError, match="total"):
        step(recipe, state_of(recipe), window())
    step(recipe, state_of(recipe), replace(window(), total=9))
