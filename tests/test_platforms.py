"""Programs lowered for devices that are not here:
they are made for the platform they are lowered for.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, CASES, MODEL_CASES, MODELS, B, T, drawn_params

import jaxlm
from jaxlm.models import stack
from jaxlm.ops import softmax
from jaxlm.ops.lstm import LSTMState, lstm
from jaxlm.scoring import generation
from jaxlm.scoring.sampling import Sampling
from jaxlm.scoring.stream import eval_step
from jaxlm.scoring.token_scores import Detail, Network, Tokens, own_scores

EVERY_PLATFORM = True  # (`one_platform` in conftest.py)
TOKENS = jnp.zeros((T, B), jnp.int32)
PLATFORMS = "cpu", "cuda", "tpu"


def lowered(function, *arguments):
    """The text of a program for each platform."""
    traced = jax.jit(function).trace(*arguments)
    return [traced.lower(lowering_platforms=(platform,)).as_text() for platform in PLATFORMS]


def together(function, *arguments):
    """The text of the one program for all platforms, which has what is of one of them alone."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=PLATFORMS).as_text()


def precisions(text):
    """The precisions that the matrix products of a program ask for."""
    found = re.findall(r"stablehlo\.dot_general.*?precision = \[(\w+), (\w+)\]", text)
    assert found and len(found) == text.count("stablehlo.dot_general")
    return {name for pair in found for name in pair}


@pytest.mark.parametrize("name", [*MODELS, "mogrifier-all", "tied-mixture", "projection"])
def test_evaluation_and_generation_multiply_float32_whatever_trained(name):
    model = MODEL_CASES[name].replace(compute_dtype="bfloat16", matmul_precision="default").model
    params = drawn_params(model)
    network = Network(model, params)
    key = jax.random.key(0)
    start = partial(generation.begin, network, Sampling(), np.zeros(1, np.int32), 2)
    position = jax.eval_shape(start)
    for text in (
        together(eval_step, model, params, TOKENS, TOKENS, stack.zero_carry(model, B)),
        together(generation.advance, network, Sampling(), position, key, 3, 0),
    ):
        assert precisions(text) == {"HIGHEST"} and "bf16" not in text


@pytest.mark.parametrize(
    "name, fields, asked",
    [
        ("tied-muon-average", {}, "HIGHEST"),
        ("sampled", {"matmul_precision": "high"}, "HIGH"),
        ("lstm", {"matmul_precision": "default"}, "DEFAULT"),
        (
            "mixture",
            {"compute_dtype": "bfloat16"},
            "DEFAULT",
        ),  # narrow factors keep their digits in any case
    ],
)
def test_training_multiplies_as_precisely_as_its_recipe_says(name, fields, asked):
    recipe = CASES[name].replace(**fields).recipe
    state = jax.eval_shape(partial(jaxlm.init_state, recipe, batch_size=B), jax.random.key(0))
    window = jaxlm.Window(TOKENS, TOKENS, total=9)
    assert precisions(together(partial(jaxlm.train_step, recipe), state, window)) == {asked}


def rows_of(text, V):
    """How many rows of logits [..., V] the largest product of a program has."""
    shapes = re.findall(rf"stablehlo\.dot_general.*-> tensor<([\dx]+)x{V}xf32>", text)
    return max(int(np.prod([int(size) for size in shape.split("x")])) for shape in shapes)


def test_a_chunk_has_the_rows_that_its_platform_is_fast_with():
    """4,096 rows of logits are 128 MB:
    one chunk on an accelerator, many on a CPU, whose cache they should stay in.
    """
    V = 8192
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        jax.device_put(rng.normal(size=shape).astype(np.float32))
        for shape in ((64, 64, 8), (8, V), (V,))
    )
    targets = jnp.zeros((64, 64), jnp.int32)
    weights = jnp.ones((64, 64))
    gradient = jax.grad(lambda x: softmax.summed_nats(x, kernel, bias, targets, weights))
    for texts in (lowered(softmax.token_nats, x, kernel, bias, targets), lowered(gradient, x)):
        assert [rows_of(text, V) for text in texts] == [320, 4096, 4096]


def test_tokens_are_scored_in_chunks_of_the_platforms_size():
    model = BASE.model
    network = Network(model, drawn_params(model))
    ids = jnp.zeros((64, 64), jnp.int32)
    features = jnp.zeros((64, 64, model.hidden_sizes[-1]))
    texts = lowered(
        partial(own_scores, detail=Detail()), network, features, Tokens(ids, ids, ids > 0)
    )
    assert [rows_of(text, model.vocab_size) for text in texts] == [128, 1024, 1024]


def test_a_loop_over_time_is_partly_written_out_on_accelerators():
    """So that a step launches fewer kernels: of 7 steps 5 are one turn."""
    x = jnp.zeros((7, 2, 3))
    kernel = jnp.zeros((3 + 4, 16))
    texts = lowered(
        lambda x: lstm(x, kernel, jnp.zeros(16), LSTMState(jnp.zeros((2, 4)), jnp.zeros((2, 4)))), x
    )
    assert ["1x5x2x4xf32" in text for text in texts] == [False, True, True]  # outputs of a turn


def test_one_program_for_all_platforms_gives_the_cpu_s_numbers_on_cpus():
    model = MODEL_CASES["mogrifier-all"].model
    params = drawn_params(model)
    carry = stack.zero_carry(model, B)
    leaves, tree = jax.tree.flatten((params, carry))

    def nats(*leaves):
        params, carry = jax.tree.unflatten(tree, leaves)
        return eval_step(model, params, TOKENS, TOKENS, carry)[0]

    exported = jax.export.export(jax.jit(nats), platforms=PLATFORMS)(*leaves)
    np.testing.assert_array_equal(exported.call(*leaves), jax.jit(nats)(*leaves))
