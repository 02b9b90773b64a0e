"""Stacks whose layers are of several kinds. The laws over them are those of `recipes.py`."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from recipes import BASE, B, T, V, drawn_params

import jaxlm
from jaxlm import Config
from jaxlm.base.errors import JaxlmError
from jaxlm.cli import main
from jaxlm.models import stack
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.models.recurrent import MODELS
from jaxlm.sweeps.space import read_space
from jaxlm.training.step import Window, init_state, train_step

GRIFFIN = BASE.replace(
    model="hawk,hawk,attention",
    block="residual",
    hidden_sizes=(8,) * 4,
    feed_forward_size=6,
    attention_window=3,
)
TOKENS = jax.device_put(np.random.default_rng(0).integers(0, V, (T + 1, B)))


def test_layers_are_of_the_kinds_in_turn_with_the_fields_of_each():
    kinds = [layer.kind_name for layer in GRIFFIN.model.layers]
    assert kinds == ["hawk", "hawk", "attention", "hawk"]
    windows = [getattr(layer, "attention_window", None) for layer in GRIFFIN.model.layers]
    assert windows == [None, None, 3, None]
    changed = GRIFFIN.replace(heads=4, init_scale=0.25)
    layers: Any = changed.model.layers
    assert {(layer.heads, layer.init_scale) for layer in layers} == {(4, 0.25)}
    assert changed.title.startswith("small, changed: model hawk,hawk,attention")


def test_its_config_is_read_back_and_changes_to_other_kinds():
    assert Config.from_json(GRIFFIN.to_json()) == GRIFFIN
    assert type(GRIFFIN.model) is MODELS["hawk,hawk,attention"]
    model: Any = GRIFFIN.replace(model="attention").model
    assert (model.attention_window, model.block) == (3, "residual")
    assert "lstm,gru" not in MODELS  # help lists kinds, not what they can be joined to


def test_a_stack_of_one_kind_by_two_names_is_the_stack_of_that_kind():
    """The program of a whole step, with Muon, which splits kernels as each layer's kind says."""
    fields = dict(hidden_sizes=(8, 8), optimizer="muon", keep_recurrent_weights=0.5)

    def program(name):
        recipe = BASE.replace(model=name, **fields).recipe
        state = jax.eval_shape(partial(init_state, recipe, batch_size=B), jax.random.key(0))
        return str(jax.make_jaxpr(train_step)(recipe, state, Window(TOKENS[:-1], TOKENS[1:])))

    assert program("gru,gru") == program("gru")


def test_muon_splits_the_kernels_of_each_layer_as_its_kind_does():
    fields = dict(hidden_sizes=(8, 8), optimizer="muon")
    layers = drawn_params(BASE.replace(model="lstm,gru", **fields).model)["layers"]

    def updated(name, layers):
        recipe = BASE.replace(model=name, **fields).recipe
        rule = recipe.optimizer.rule(recipe.model, 1.0)
        grads = {"layers": layers}
        return jax.jit(lambda grads: rule.update(grads, rule.init(grads), grads)[0])(grads)

    found = updated("lstm,gru", layers)["layers"]
    for name, layer, update in zip(("lstm", "gru"), layers, found, strict=True):
        (alone,) = updated(name, [layer])["layers"]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), update, alone)


def test_each_layer_is_what_it_is_alone():
    fields = dict(embedding_size=8, hidden_sizes=(8, 8), forget_bias=1.0)
    model = BASE.replace(model="lstm,gru", **fields).model
    params = drawn_params(model)
    x = jax.device_put(np.random.default_rng(1).normal(size=(T, B, 8)).astype(np.float32))
    carry = stack.zero_carry(model, B)
    y, _ = stack.features(model, params, Noise(), x, carry)
    for layer, name in enumerate(("lstm", "gru")):
        own: Any = {"forget_bias": 1.0} if name == "lstm" else {}
        alone = BASE.replace(model=name, embedding_size=8, hidden_sizes=(8,), **own).model
        of_layer = {**params, "layers": params["layers"][layer : layer + 1]}
        x, _ = stack.features(alone, of_layer, Noise(), x, stack.zero_carry(alone, B))
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_griffin_is_hawk_s_blocks_with_attention_in_turn():
    kinds = [layer.kind_name for layer in jaxlm.preset("griffin").model.layers]
    assert kinds == ["hawk", "hawk", "attention", "hawk"]


def test_a_space_joins_the_kinds_of_a_stack_by_a_plus():
    read = read_space({"model": "gru,hawk+attention", "hidden_sizes": "8x8"}, BASE)
    assert read["model"].choices == ("gru", "hawk,attention")
    assert read_space(read, BASE) == read


def test_masks_fall_on_the_layers_whose_kind_has_them():
    model = BASE.replace(
        model="lstm,gru,hawk", hidden_sizes=(8,) * 3, keep_recurrent_weights=0.5, keep_state=0.5
    ).model
    noise = jax.eval_shape(partial(draw_noise, model, steps=T, rows=B), jax.random.key(0))
    weights = [mask and mask.shape for mask in noise.recurrent_weights]
    assert weights == [(8, 32), (8, 24), None]
    assert [mask and mask.shape for mask in noise.states] == [(B, 8), None, None]


def test_a_step_at_a_time_is_the_whole():
    model = GRIFFIN.model
    params = drawn_params(model)
    x = jax.device_put(np.random.default_rng(2).normal(size=(7, B, 8)).astype(np.float32))
    read = jax.jit(partial(stack.features, model, params, Noise()))
    whole, end = read(x, stack.zero_carry(model, B))
    carry = stack.zero_carry(model, B)
    for t in range(7):
        y, carry = read(x[t : t + 1], carry)
        np.testing.assert_allclose(y[0], whole[t], rtol=2e-5, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5), carry, end)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="lstm,gru", hidden_sizes=(8,)), "names the kinds of 2 layers: .* is 8; give"),
        (
            dict(model="lstm,lstn"),
            r"model must be lstm, .* or lamb-mogrifier; it is 'lstm,lstn' .* only commas between\)",
        ),
        (dict(model="lstm,"), "it is 'lstm,'"),
        (dict(model="lstm,gru", heads=2), "heads is a field of the model .* is lstm,gru, whose"),
        (dict(model="gru,hawk", hidden_sizes=(8, 7)), "is 8,7, which 2 heads do not divide"),
        (
            dict(model="gru,lstm", longest_memory=9.0, forget_bias=1.0),
            "longest_memory and forget_bias exclude each other, .*: set longest_memory to none, or "
            "forget_bias to 0",
        ),
        (dict(model="lstm,gru", optimizer="awd-lstm"), "for LSTMs; the model is lstm,gru"),
    ],
)
def test_a_mixed_stack_that_cannot_be_is_refused(changes, message):
    with pytest.raises(JaxlmError, match=message):
        BASE.replace(**changes)


def test_help_shows_the_fields_of_all_its_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "hawk,attention", "--help-all"])
    shown = capsys.readouterr().out
    assert "model (hawk,attention)" in shown and "--attention-window" in shown
    assert "--gate-cap" not in shown
