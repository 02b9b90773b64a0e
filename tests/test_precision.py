"""What `auto` takes, where it is said, and that bfloat16's products really multiply bfloat16."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, CASES, KINDS, B, T

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.models import stack
from jaxlm.models.noise import Noise
from jaxlm.ops.softmax import summed_nats
from jaxlm.runs import precision
from jaxlm.runs.directory import saved_config, saved_record

SMALL = BASE.replace(vocab_size=100, corpus="embedded-tiny")


@pytest.fixture
def measured(monkeypatch):
    """Rates to be measured, float32's and bfloat16's, and how often they were."""
    found = SimpleNamespace(rates=(100.0, 200.0), times=0)

    def measure(*shape):
        found.times += 1
        return dict(zip(precision.DTYPES, found.rates, strict=True))

    monkeypatch.setattr(precision, "_measured", measure)
    return found


@pytest.mark.parametrize(
    "rates, taken",
    [
        ((100, 116), "bfloat16"),
        ((100, 114), "float32"),
        ((181, 95), "float32"),
        ((9, 9e4), "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_faster_by_15_percent_says_and_records_it(
    tmp_path, measured, capsys, rates, taken
):
    measured.rates = rates
    config = SMALL.replace(compute_dtype="auto")
    result = jaxlm.train(config, run_dir=tmp_path / "run", steps=2)
    assert (
        result.config.model.compute_dtype
        == saved_config(tmp_path / "run").model.compute_dtype
        == taken
    )
    assert saved_record(tmp_path / "run")["rates"] == {"float32": rates[0], "bfloat16": rates[1]}
    said = (
        f"compute_dtype auto: {taken}; this model's products run here at "
        f"{rates[1]:,.0f} GFLOP/s in bfloat16 and"
    )
    assert f"{said} {rates[0]:,.0f} in float32" in " ".join(capsys.readouterr().out.split())
    measured.rates = rates[::-1]  # another machine: the run keeps its dtype
    resumed = jaxlm.train(config, run_dir=tmp_path / "run", resume=True, steps=3, quiet=True)
    assert resumed.config == result.config


def test_a_first_run_records_the_rates_at_its_corpus_vocabulary(tmp_path, measured):
    jaxlm.train(
        SMALL.replace(compute_dtype="auto", vocab_size=10_000),
        run_dir=tmp_path / "run",
        steps=1,
        quiet=True,
    )
    assert saved_record(tmp_path / "run")["rates"] == {"float32": 100, "bfloat16": 200}
    assert measured.times == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_is_named_is_taken_without_measuring(measured, dtype):
    config = SMALL.replace(compute_dtype=dtype)
    assert precision.resolved(config) == (config, None, []) and not measured.times


def test_what_is_measured_is_the_models_largest_product():
    assert precision.largest_product(jaxlm.preset("small")) == (256, 128, 1024)
    rates = precision._measured(20, 8, 32)
    assert all(0 < rate < 1e6 for rate in rates.values())
    text = precision._multiply.lower(
        1, jnp.ones((2, 3), "bfloat16"), jnp.ones((3, 4), "bfloat16")
    ).as_text()
    assert text.count("(tensor<2x3xbf16>, tensor<3x4xbf16>) -> tensor<2x4xf32>") == 1


def test_a_step_of_ones_own_is_told_to_take_a_dtype():
    with pytest.raises(JaxlmError, match=r"auto, which jaxlm\.train resolves"):
        jaxlm.init_state(BASE.replace(compute_dtype="auto").recipe, jax.random.key(0), 2)


def _products(function, *arguments):
    """The operands' and result's dtypes of every matrix product,
    as they are handed to the compiler.
    """
    text = jax.jit(function).lower(*arguments).as_text()
    array = r"tensor<[^>]*x(\w+)>"
    found = re.findall(rf"stablehlo\.dot_general.*?: \({array}, {array}\) -> {array}", text)
    assert found
    return set(found)


CASES_OF_PRODUCTS = (
    *KINDS,
    "mogrifier-all",
    "layer-norm",
    "projection",
    "mixture",
    "sampled",
    "muon",
)
COMPILED = ("lstm", "mlstm", "attention", "mixture", "muon")  # each shape of a product once


@pytest.mark.parametrize("name", CASES_OF_PRODUCTS)
def test_every_product_of_a_bfloat16_step_multiplies_bfloat16_and_sums_float32(name):
    recipe = CASES[name].replace(compute_dtype="bfloat16").recipe
    started = jax.jit(partial(jaxlm.init_state, recipe, batch_size=B))
    inputs, targets = jnp.zeros((2, T, B), jnp.int32)
    window = jaxlm.Window(inputs, targets)
    step = partial(jaxlm.train_step, recipe)
    key = jax.random.key(0)
    assert _products(step, jax.eval_shape(started, key), window) == {("bf16", "bf16", "f32")}
    if name in COMPILED:  # and the device's compiler takes them
        assert jax.jit(step)(started(key), window)[1].finite


def test_a_transpose_is_never_the_first_factor_of_a_product():
    """XLA turns such a product of bfloat16 into a slow one of float32:
    it must have been written out before.
    """
    x = jnp.ones((64, 32), jnp.bfloat16)
    kernel = jnp.ones((32, 96))
    text = (
        jax.jit(
            jax.grad(
                lambda x, kernel: summed_nats(
                    x, kernel, jnp.zeros(96), jnp.zeros(64, jnp.int32), jnp.ones(64)
                ),
                (0, 1),
            )
        )
        .lower(x, kernel)
        .compile()
        .as_text()
    )
    contracted = re.findall(r" dot\(.*?lhs_contracting_dims=\{(\d)\}", text or "")
    assert contracted and all(int(axis) == 1 for axis in contracted)


def test_costs_of_both_dtypes_stay_near():
    first, second = (
        jaxlm.train(
            BASE.replace(vocab_size=100, compute_dtype=dtype, corpus="embedded-tiny"),
            steps=20,
            quiet=True,
        )
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(
        second.params["layers"][0]["kernel"], first.params["layers"][0]["kernel"], atol=0.02
    )


def test_the_root_of_the_width_multiplies_exactly_in_bfloat16(monkeypatch):
    config = BASE.replace(embedding_size=912, hidden_sizes=(912,), scale_embedding=True)
    monkeypatch.setattr(
        type(config.model), "apply_layer", lambda self, params, x, state, noise, length: (x, state)
    )
    x = jnp.full((1, 1, 912), 1 / 3, jnp.bfloat16)
    params = {"layers": ({},)}
    y = stack.last_outputs(config.model, params, Noise(), x, ((),))[1]
    assert (y == jnp.bfloat16(float(x[0, 0, 0]) * 912**0.5)).all() and y.dtype == jnp.bfloat16
