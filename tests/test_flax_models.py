"""The whole model as a Flax module:
of every kind and head it is jaxlm's own, in linen and in NNX.
"""

from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from recipes import BASE, CASES, MODEL_CASES, B, T, V, drawn_params, parameters

import jaxlm
from jaxlm import linen
from jaxlm import nnx as ours
from jaxlm.models import stack
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.scoring.stream import eval_step
from jaxlm.training.gradient import minimised

TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, V, (B, T + 1)), jnp.int32)
X = TOKENS[:, :-1]
Y = TOKENS[:, 1:]
LENGTHS = jnp.array([5, 1, 3, 4])
DROPPING = {name: CASES[name] for name in ("weight-drop", "mixture", "tied-sampled")}
DROPPING["mixture"] = DROPPING["mixture"].replace(
    keep_latent=0.8, keep_output=0.7, locked_dropout=True
)


def close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), a, b)


# Every kind of carry and head by default; the other kinds pass through the same function.
USUAL = {
    "lstm",
    "projection",
    "tied-mixture",
    "hawk-tied",
    "gated-block",  # of mLSTMs
} & {*MODEL_CASES}


@pytest.mark.parametrize("config", parameters(MODEL_CASES, USUAL))
def test_a_module_reads_as_jaxlm_with_its_carry_and_lengths(config):
    model = config.model
    zero = stack.zero_carry(config.model, B)
    params = drawn_params(model)

    @jax.jit
    def step_by_step(tokens):
        def step(carry, tokens):
            nats, carry = eval_step(model, params, tokens[:1], tokens[1:], carry)
            return carry, (carry, nats[0])

        return jax.lax.scan(step, zero, jnp.stack([tokens[:-1], tokens[1:]], 1))[1]

    @jax.jit
    def of_module(x, y, lengths):
        def call(*given, **options):
            return linen.LanguageModel(model).apply(
                {"params": params}, *given, deterministic=True, **options
            )

        half, first = call(x[:, :2], y[:, :2])
        return first, call(x[:, 2:], initial_carry=half), call(x, y, seq_lengths=lengths)

    lengths = np.array([5, 1, 3, 4])
    carries, nats = jax.device_get(step_by_step(TOKENS.T))
    first, (carry, logits), (after, counted) = jax.device_get(of_module(X, Y, lengths))
    close(first, nats[:2].sum())
    log_p = scipy.special.log_softmax(logits, -1)
    close(-np.take_along_axis(log_p, np.asarray(Y)[:, 2:, None], -1)[..., 0], nats[2:].T)
    close(carry, jax.tree.map(lambda leaf: leaf[-1], carries))
    close(counted, np.where(np.arange(T)[:, None] < lengths, nats, 0).sum())
    close(after, jax.tree.map(lambda leaf: leaf[lengths - 1, np.arange(B)], carries))


@pytest.mark.parametrize("name", DROPPING)
def test_training_drops_as_jaxlm_does_by_flax_s_streams(name):
    config = DROPPING[name].replace(dropout_ramp=None, sampled_share=None, l2_penalty=None)
    model = config.model
    plain = replace(config.recipe, optimizer=jaxlm.SGD())
    params = drawn_params(model)
    carry = stack.zero_carry(model, B)
    carry = jax.tree.map(lambda leaf: leaf + 0.1, carry)

    def expected(params, key):
        noise = draw_noise(model, key, T, B)
        cost, (_, carried) = minimised(plain, params, noise, X.T, Y.T, carry)
        return B * cost, carried

    module = linen.LanguageModel(model)
    rngs = {"dropout": jax.random.key(7)}
    key = module.apply(
        {"params": params}, rngs=rngs, method=lambda module: module.make_rng("dropout")
    )

    def actual(params):
        carried, nats = module.apply({"params": params}, X, Y, initial_carry=carry, rngs=rngs)
        return nats, carried

    def graded(cost, *given):
        return jax.jit(jax.value_and_grad(cost, has_aux=True))(*given)

    plainly = jax.jit(jax.value_and_grad(expected, has_aux=True))
    close(graded(actual, params), plainly(params, key))
    if name != "mixture":  # NNX reads by the same function: its streams are held once
        return
    of_nnx = ours.LanguageModel(model, params=params, rngs=nnx.Rngs(9))
    graph, state, rest = nnx.split(of_nnx, nnx.Param, ...)

    def actual_nnx(state):
        carried, nats = nnx.merge(graph, state, rest, copy=True)(X, Y, initial_carry=carry)
        return nats, carried

    (nats, carried), grads = plainly(params, nnx.Rngs(9).dropout.fork()())
    found, found_grads = graded(actual_nnx, state)
    close(found, (nats, carried))
    close(jax.tree.leaves(nnx.to_pure_dict(found_grads)), jax.tree.leaves(grads))


def test_lengths_keep_the_masks_of_each_row():
    model = BASE.replace(
        keep_output=0.5, keep_embedding=0.6, keep_carry=0.5, keep_recurrent_weights=0.5
    ).model
    params = drawn_params(model)
    carry = stack.zero_carry(model, B)
    module = linen.LanguageModel(model)
    rngs = {"dropout": jax.random.key(7)}
    given = dict(initial_carry=jax.tree.map(lambda leaf: leaf + 0.5, carry), rngs=rngs)
    whole, one_less = (
        jax.jit(partial(module.apply, seq_lengths=lengths, **given))({"params": params}, X)[0]
        for lengths in (None, jnp.array([T, T, T - 1, T]))
    )
    rows = jnp.array([0, 1, 3])
    close(*(jax.tree.map(lambda leaf: leaf[rows], carry) for carry in (one_less, whole)))


def test_a_carry_after_rows_of_their_own_lengths_has_no_gradient():
    model = MODEL_CASES["mingru"].model
    module = linen.LanguageModel(model)

    def total(params):
        carry, _ = module.apply({"params": params}, X, Y, seq_lengths=LENGTHS)
        return sum(leaf.sum() for leaf in jax.tree.leaves(carry))

    gradients = jax.jit(jax.grad(total))(drawn_params(model))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_the_tree_is_jaxlm_s_own_both_ways():
    model = MODEL_CASES["tied-mixture"].model
    shapes = jax.tree.map(jnp.shape, drawn_params(model))
    variables = jax.jit(linen.LanguageModel(model).init)(jax.random.key(1), X)
    assert jax.tree.map(jnp.shape, variables) == {"params": shapes}
    module = ours.LanguageModel(model, rngs=nnx.Rngs(1))
    assert jax.tree.map(jnp.shape, module.tree()) == shapes
    bfloat16 = replace(model, compute_dtype="bfloat16", keep_output=0.5)
    half = linen.LanguageModel(replace(bfloat16, keep_output=None))
    expected = jax.jit(linen.LanguageModel(model).apply)(variables, X)
    evaluated = partial(linen.LanguageModel(bfloat16).apply, deterministic=True)
    close(jax.jit(evaluated)(variables, X), expected)
    module = ours.LanguageModel(
        bfloat16, params=dict(variables["params"]), deterministic=True, rngs=nnx.Rngs(1)
    )
    close(module(X), expected)
    narrow, wide = (
        jax.jit(partial(half.apply, deterministic=evaluates))(variables, X, Y)[1]
        for evaluates in (False, True)
    )
    assert narrow != wide
    with pytest.raises(jaxlm.JaxlmError, match="float32 or bfloat16"):
        linen.LanguageModel(replace(model, compute_dtype="auto")).init(jax.random.key(1), X)


def test_nnx_evaluates_in_float32():
    model = replace(BASE.model, compute_dtype="bfloat16")
    params = drawn_params(model)
    module = ours.LanguageModel(model, params=params, rngs=nnx.Rngs(1))
    wide = ours.LanguageModel(BASE.model, params=params, rngs=nnx.Rngs(1))
    nats = nnx.jit(lambda module: module(X, Y)[1])
    assert nats(module) != nats(wide)

    @nnx.jit
    def logits_and_features(module):
        carry = stack.zero_carry(model, B)
        return module(X)[1], stack.read(model, module.tree(), Noise(), X.T, carry)[2]

    logits, features = logits_and_features(module)
    assert (logits.dtype, features.dtype) == (jnp.float32, jnp.bfloat16)
    # Logits are in the parameters' dtype, and so is the product that makes them.
    softmax = params["softmax"]
    exact = np.asarray(features, np.float64) @ np.float64(softmax["kernel"]) + softmax["bias"]
    close(np.moveaxis(logits, 1, 0), exact)
    module.eval()
    assert nats(module) == nats(wide)


def test_nnx_draws_dropout_by_a_stream_of_its_own():
    rngs = nnx.Rngs(1)
    model = BASE.replace(keep_output=0.5).model
    module = ours.LanguageModel(model, params=drawn_params(model), rngs=rngs)
    count = int(rngs.dropout.count[...])
    module(X)
    assert int(rngs.dropout.count[...]) == count  # the caller's is not drawn from


def test_nnx_trains_and_turns_dropout_on_and_off():
    model = BASE.replace(keep_output=0.5).model
    module = ours.LanguageModel(model, params=drawn_params(model), rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def nats(module):
        return module(X, Y, seq_lengths=LENGTHS)[1]

    @nnx.jit
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(nats)(module))

    module.eval()
    before = nats(module)
    assert before == nats(module)
    module.train()
    assert nats(module) != nats(module)
    for _ in range(5):
        step(module, optimizer)
    module.eval()
    assert nats(module) < 0.95 * before


@pytest.mark.parametrize("text", ["embedded-tiny", pytest.param("ptb", marks=pytest.mark.slow)])
def test_the_example_follows_jaxlm_and_evaluates_its_checkpoint(
    text, tmp_path, monkeypatch, request, capsys
):
    """50 windows, in which clipping acts;
    on the small text over an epoch's end, after which the rate is halved.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments")
    example = import_module("flax_example")
    monkeypatch.setattr(example, "HOLD", 1)
    monkeypatch.setattr(example, "CLIP", 2.0)
    data_dir = request.getfixturevalue("ptb_dir") if text == "ptb" else None
    corpus = jaxlm.load_corpus(text, data_dir=data_dir)
    seen = []
    model = example.MODEL(vocab_size=len(corpus.vocab))
    model = model if text == "ptb" else replace(model, embedding_size=16, hidden_sizes=(16, 16))
    params = drawn_params(model)
    jaxlm.train(
        jaxlm.preset("small").replace(model=model, hold=1.0, clip_norm=2.0),
        corpus,
        tmp_path / "run",
        params=params,
        steps=50,
        quiet=True,
        on_metrics=lambda step, values: seen.append(values),
    )
    run = jaxlm.load(tmp_path / "run")
    states, nats = zip(*islice(example.train(model, params, corpus.train), 50), strict=True)
    close(
        np.array(nats),
        np.array([values["train/cost"] for values in seen if "train/cost" in values]) / 20,
    )
    close(states[-1].params, run.params)
    found = example.perplexity(run.config.model, run.params, corpus.test)
    close(found, jaxlm.evaluate(run, corpus=corpus).perplexity)
    if text == "embedded-tiny":
        monkeypatch.setattr("sys.argv", ["flax_example.py", str(tmp_path / "run")])
        example.main()
        assert capsys.readouterr().out == f"embedded-tiny test: perplexity {found:.2f}\n"
