"""What `auto` takes, where it is said, and that bfloat16's products really multiply bfloat16."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, CASES, B, T

import jaxlm
from jaxlm.errors import JaxlmError
from jaxlm.models.kinds import MODELS
from jaxlm.ops.softmax import summed_nats
from jaxlm.runs import precision
from jaxlm.runs.directory import saved_config


@pytest.mark.parametrize(
    "line, native",
    [
        ("flags\t\t: fpu sse avx512f amx_bf16 amx_tile", True),
        ("flags : fpu avx512_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags : fpu avx512f avx2", False),
        ("model name : bf16", False),
        ("", False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(tmp_path, line, native):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert precision.multiplies_bfloat16(jax.local_devices()[0], tmp_path / "cpuinfo") == native


def test_a_cpu_without_a_description_counts_as_one_that_does_not(tmp_path):
    assert not precision.multiplies_bfloat16(jax.local_devices()[0], tmp_path / "absent")


@pytest.mark.parametrize(
    "device, native",
    [
        (dict(platform="gpu", compute_capability="7.5"), False),
        (dict(platform="gpu", compute_capability="9.0"), True),
        (dict(platform="cuda", compute_capability="10.0"), True),
        (dict(platform="gpu", compute_capability="gfx90a"), True),
        (dict(platform="tpu"), True),
    ],
)
def test_an_accelerator_is_asked_for_its_capability(device, native):
    assert precision.multiplies_bfloat16(SimpleNamespace(**device)) == native


@pytest.mark.parametrize("native, taken", [(True, "bfloat16"), (False, "float32")])
def test_auto_is_resolved_said_and_recorded(tmp_path, monkeypatch, capsys, native, taken):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda *_: native)
    config = BASE.replace(vocab_size=100, compute_dtype="auto", corpus="embedded-tiny")
    result = jaxlm.train(config, run_dir=tmp_path / "run", steps=2)
    assert result.config.model.compute_dtype == saved_config(tmp_path / "run").model.compute_dtype == taken
    assert f"compute_dtype auto: {taken}, since this cpu" in " ".join(capsys.readouterr().out.split())
    resumed = jaxlm.train(config, run_dir=tmp_path / "run", resume=True, steps=3, quiet=True)
    assert resumed.config == result.config


def test_bfloat16_without_instructions_for_it_is_said_to_be_slow(monkeypatch, capsys):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda *_: False)
    jaxlm.train(BASE.replace(vocab_size=100, compute_dtype="bfloat16", corpus="embedded-tiny"), steps=1)
    assert capsys.readouterr().out.count("does not multiply bfloat16 by itself") == 1


def test_a_step_of_ones_own_is_told_to_take_a_dtype():
    with pytest.raises(JaxlmError, match=r"auto, which jaxlm\.train resolves"):
        jaxlm.init_state(BASE.replace(compute_dtype="auto").recipe, jax.random.key(0), 2)


def _products(function, *arguments):
    """The operands' and result's dtypes of every matrix product, as they are handed to the compiler."""
    text = jax.jit(function).lower(*arguments).as_text()
    array = r"tensor<[^>]*x(\w+)>"
    found = re.findall(rf"stablehlo\.dot_general.*?: \({array}, {array}\) -> {array}", text)
    assert found
    return set(found)


@pytest.mark.parametrize("name", [*MODELS, "mogrifier-all", "layer-norm", "projection", "mixture", "sampled", "muon"])
def test_every_product_of_a_bfloat16_step_multiplies_bfloat16_and_sums_float32(name):
    recipe = CASES[name].replace(compute_dtype="bfloat16").recipe
    state = jaxlm.init_state(recipe, jax.random.key(0), B)
    window = jaxlm.Window(*jnp.zeros((2, T, B), jnp.int32))
    step = partial(jaxlm.train_step, recipe)
    assert _products(step, state, window) == {("bf16", "bf16", "f32")}
    assert jax.jit(step)(state, window)[1].finite  # and the device's compiler takes them all


def test_a_transpose_is_never_the_first_factor_of_a_product():
    """XLA turns such a product of bfloat16 into a slow one of float32: it must have been written out before."""
    x, kernel = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 96))
    text = (
        jax.jit(
            jax.grad(
                lambda x, kernel: summed_nats(x, kernel, jnp.zeros(96), jnp.zeros(64, jnp.int32), jnp.ones(64)), (0, 1)
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
        jaxlm.train(BASE.replace(vocab_size=100, compute_dtype=dtype, corpus="embedded-tiny"), steps=20, quiet=True)
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(second.params["layers"][0]["kernel"], first.params["layers"][0]["kernel"], atol=0.02)
