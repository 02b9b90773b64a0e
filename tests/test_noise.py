"""models/noise.py: what each mask falls on, at which rate, and that recorded masks can be given."""

from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, HIDDEN, B, E, T, V, begun, drawn_params

from jaxlm.base.errors import JaxlmError
from jaxlm.models import stack
from jaxlm.models.noise import Noise, draw_noise, drop_words, growing, is_random
from jaxlm.training.step import Window, train_step

KEY = jax.random.key(3)
TOKENS = jax.device_put(np.random.default_rng(0).integers(0, V, (T + 1, B)))
WINDOW = Window(TOKENS[:-1], TOKENS[1:])


step = jax.jit(train_step)
draw = jax.jit(draw_noise, static_argnums=(2, 3))


def drawn(**fields):
    return draw(BASE.replace(**fields).model, KEY, T, B)


@jax.jit
def outputs(model, params, noise):
    x = drop_words(model, noise, stack.embed(params, TOKENS[:-1]), TOKENS[:-1])
    return stack.features(model, params, noise, x, stack.zero_carry(model, B))[0]


def params_of(config):
    return drawn_params(config.model)


def test_masks_have_the_shapes_of_what_they_fall_on():
    noise = drawn(
        locked_dropout=True,
        keep_embedding=0.5,
        keep_output=0.5,
        keep_words=0.5,
        keep_recurrent_weights=0.5,
        keep_state=0.5,
    )
    shapes = jax.tree.map(
        jnp.shape,
        (noise.embedding, noise.outputs, noise.words, noise.recurrent_weights, noise.states),
    )
    assert shapes == (
        (1, B, E),
        tuple((1, B, H) for H in HIDDEN),
        (V, 1),
        tuple((H, 4 * H) for H in HIDDEN),
        tuple((B, H) for H in HIDDEN),
    )
    assert jax.tree.leaves(drawn()) == [] == jax.tree.leaves(Noise())


@pytest.mark.parametrize(
    "field",
    [
        "keep_embedding",
        "keep_output",
        "keep_last_output",
        "keep_words",
        "keep_recurrent_weights",
        "keep_state",
        "keep_carry",
    ],
)
def test_each_rate_is_drawn_by_itself(field):
    config = BASE.replace(**{field: 0.6}, hidden_sizes=(40, 40), embedding_size=40, vocab_size=2000)
    model = config.model
    assert is_random(model) and not is_random(BASE.model)
    masks = jax.tree.leaves(draw(model, KEY, T, 400 if field == "keep_carry" else 20))
    rates = [float(mask.mean()) for mask in masks]
    assert len(masks) == (
        2 if field in ("keep_output", "keep_recurrent_weights", "keep_state") else 1
    )
    np.testing.assert_allclose(rates, 0.6, atol=0.06)
    if len(masks) == 2:
        assert (masks[0] != masks[1]).any()  # each layer its own


def test_no_two_places_have_the_same_mask():
    noise = jax.device_get(
        drawn(
            model="mogrifier",
            hidden_sizes=(E, E),
            keep_embedding=0.5,
            keep_output=0.5,
            keep_recurrent_weights=0.5,
            keep_state=0.5,
            keep_update=0.5,
        )
    )
    for masks in (
        (noise.embedding, *noise.outputs),
        noise.recurrent_weights,
        (*noise.states, *noise.updates),
    ):
        for a, b in combinations(masks, 2):
            assert a.shape == b.shape
            share = float((a == b).mean())
            assert 0.2 < share < 0.8, "half of the units are the same by chance"


def test_a_locked_mask_is_one_for_all_steps_and_another_for_each_row():
    config = BASE.replace(locked_dropout=True, keep_output=0.5)
    kept = np.asarray(outputs(config.model, params_of(config), draw(config.model, KEY, T, B))) != 0
    assert (kept == kept[:1]).all() and not kept.all()
    assert len({row.tobytes() for row in kept[0]}) == B


def test_a_dropped_word_reads_as_zero_wherever_it_stands_and_is_still_an_output():
    config = BASE.replace(keep_words=0.5, tied=True)
    params = params_of(config)
    tokens = np.asarray(TOKENS)
    word = tokens[1, 0]
    noise = replace(Noise(), words=jnp.asarray((np.arange(V) != word)[:, None]))

    def read(params):
        return drop_words(config.model, noise, stack.embed(params, TOKENS), TOKENS)

    x = np.asarray(params["embedding"])[tokens]
    expected = np.where((tokens == word)[..., None], 0, 2 * x)
    np.testing.assert_allclose(jax.jit(read)(params), expected)
    gradient = jax.jit(jax.grad(lambda params: read(params).sum()))(params)
    gradient = np.asarray(gradient["embedding"])
    assert not gradient[word].any() and gradient.any()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weight_drop_is_the_same_layer_with_fewer_recurrent_weights(kind):
    config = BASE.replace(model=kind, keep_recurrent_weights=0.5)
    model = config.model
    params = params_of(config)
    noise = draw(model, KEY, T, B)
    by_hand = jax.tree.map(np.array, params)
    for layer, mask in zip(
        by_hand["layers"], jax.tree.leaves(noise.recurrent_weights), strict=True
    ):
        recurrent = layer["kernel"][-len(mask) :] if kind == "lstm" else layer["recurrent_kernel"]
        recurrent[...] = np.where(mask, 2 * recurrent, 0)  # (a view: the input's part stays)
    np.testing.assert_allclose(
        outputs(model, params, noise), outputs(model, by_hand, Noise()), rtol=1e-5
    )


def test_gates_do_not_read_a_dropped_unit_and_the_carry_has_it():
    config = BASE.replace(hidden_sizes=(5,), keep_state=0.5)
    model = config.model
    params = jax.device_get(params_of(config))
    kept = np.array([True, False, True, True, False])
    noise = replace(Noise(), states=(np.broadcast_to(kept, (B, 5)),))
    kernel = params["layers"][0]["kernel"]
    recurrent = np.where(
        kept[:, None], 2 * kernel[E:], 0
    )  # the same mask in all rows: a kernel can take it up
    equal = {
        **params,
        "layers": [{**params["layers"][0], "kernel": np.concatenate([kernel[:E], recurrent])}],
    }
    np.testing.assert_allclose(
        outputs(model, params, noise), outputs(model, equal, Noise()), rtol=1e-5
    )
    total = jax.jit(jax.grad(lambda params, noise: outputs(model, params, noise).sum()))
    grads = [
        np.asarray(total(given, noise)["layers"][0]["kernel"])
        for given, noise in ((params, noise), (equal, Noise()))
    ]
    np.testing.assert_allclose(grads[0][:E], grads[1][:E], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        grads[0][E:], np.where(kept[:, None], 2 * grads[1][E:], 0), rtol=1e-4, atol=1e-6
    )


def test_rows_of_dropped_words_have_no_gradient_whether_it_is_sparse_or_dense():
    """SGD takes the gradient one row for each token read; with momentum it is dense."""
    rates = dict(keep_words=0.5, keep_embedding=0.7, clip_norm=None, learning_rate=0.1)
    sparse = BASE.replace(**rates)
    dense = BASE.replace(**rates, momentum=0.0)
    state = begun(sparse.recipe, jax.random.key(0), B)
    noise = jax.device_get(draw(sparse.model, KEY, T, B))
    after = [
        step(
            config.recipe,
            replace(state, opt_state=begun(config.recipe, jax.random.key(0), B).opt_state),
            WINDOW,
            noise,
        )[0].params
        for config in (sparse, dense)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *after)
    moved = (np.asarray(after[0]["embedding"]) != state.params["embedding"]).any(1)
    read = np.isin(np.arange(V), TOKENS[:-1])
    assert noise.words is not None
    np.testing.assert_array_equal(moved, read & noise.words[:, 0])


def test_a_row_whose_carry_does_not_go_on_begins_from_zero_and_the_others_do_not():
    config = BASE.replace(keep_carry=0.5)
    state = begun(config.recipe, jax.random.key(0), B)
    carry = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.5), state.carry)
    goes_on = (np.arange(B) % 2 == 0)[:, None]

    def end(carry, kept):
        given = replace(Noise(), carry=kept)
        return jax.device_get(
            step(config.recipe, replace(state, carry=carry), WINDOW, given)[0].carry
        )

    zeroed = jax.tree.map(lambda leaf: np.where(goes_on, leaf, np.float32(0)), carry)
    jax.tree.map(np.testing.assert_array_equal, end(carry, goes_on), end(zeroed, None))
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (end(carry, goes_on), end(carry, None))), strict=True)
    )


def test_noise_given_is_the_noise_drawn():
    config = BASE.replace(keep_output=0.5, keep_recurrent_weights=0.5)
    state = begun(config.recipe, jax.random.key(0), B)
    assert state.key is not None
    noise = draw(config.model, jax.random.fold_in(state.key, state.step), T, B)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        step(config.recipe, state, WINDOW, noise)[0].params,
        step(config.recipe, state, WINDOW)[0].params,
    )


def test_growing_dropout_goes_from_its_start_to_its_full_share_in_a_line_and_stays_there():
    kept = dict(keep_output=0.6, keep_words=0.9, keep_carry=0.5)
    model = BASE.replace(**kept, dropout_ramp=0.5, dropout_start=0.2).model
    for step, share in ((0, 0.2), (10, 0.6), (20, 1.0), (40, 1.0)):  # of 40 windows
        now = growing(model, jnp.int32(step), 40)
        np.testing.assert_allclose(
            np.array([now.keep_output, now.keep_words, now.keep_carry]),
            np.array([1 - share * 0.4, 1 - share * 0.1, 0.5]),
            rtol=1e-6,
        )
        assert now.keep_embedding is None
    assert growing(BASE.replace(**kept).model, jnp.int32(0), 40) == BASE.replace(**kept).model


def test_a_step_drops_nothing_where_dropout_starts_and_all_of_it_where_it_has_grown():
    kept = dict(keep_output=0.5, keep_recurrent_weights=0.5, keep_embedding=0.7, keep_words=0.7)
    ramped = BASE.replace(**kept, dropout_ramp=0.5)
    constant = BASE.replace(**kept)
    window = replace(WINDOW, total=10)
    state = begun(constant.recipe, jax.random.key(0), B)
    for number, noise, config in ((0, Noise(), BASE), (5, None, constant), (9, None, constant)):
        at = replace(state, step=jnp.int32(number))
        found = step(ramped.recipe, at, window)[0].params
        expected = step(config.recipe, at, window, noise)[0].params
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
        )
    half = replace(state, step=jnp.int32(2))
    assert (
        step(ramped.recipe, half, window)[0].params["embedding"]
        != step(constant.recipe, half, window)[0].params["embedding"]
    ).any()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(dropout_ramp=0.5), "dropout_ramp .* keep_output"),
        (dict(dropout_ramp=0.5, keep_carry=0.5), "dropout_ramp .* keep_output"),
        (
            dict(dropout_start=0.5, keep_output=0.5),
            "dropout_start needs dropout_ramp, and dropout_ramp is none: set dropout_ramp, or "
            "dropout_start to none",
        ),
        (
            dict(model="mingru", keep_recurrent_weights=0.5),
            "keep_recurrent_weights .* lstm, gru, mogrifier, rlstm .* is mingru",
        ),
        (dict(model="gru", keep_state=0.5), "keep_state is .* lstm, mogrifier, rlstm .* is gru"),
    ],
)
def test_what_means_nothing_is_refused_by_both_fields(fields, says):
    with pytest.raises(JaxlmError, match=says) as caught:
        BASE.replace(**fields)
    assert "\n" not in str(caught.value)
