"""Muon: the orthogonalised update against optax's,
and the whole optimiser against Jordan's rule written plainly.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import scale_by_muon
from recipes import BASE, MODELS, drawn_params

from jaxlm.ops.newton_schulz import POLAR_EXPRESS, orthogonalized
from jaxlm.optimizers.muon import Muon

orthogonal = jax.jit(orthogonalized, static_argnums=(1, 2), static_argnames="rule")


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_each_matrix_is_orthogonalised_as_optax_does(shape):
    matrices = drawn(0, 3, *shape)
    rule = scale_by_muon(ns_steps=5, beta=0.0, nesterov=False, eps=1e-7)
    update = jax.jit(lambda matrix: rule.update(matrix, rule.init(matrix))[0])
    for matrix, found in zip(matrices, np.asarray(orthogonal(matrices, 5)), strict=True):
        expected: Any = update(matrix)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_singular_values_end_near_one():
    values = np.linalg.svd(orthogonal(drawn(1, 2, 32, 20), 5), compute_uv=False)
    assert values.min() > 0.68 and values.max() < 1.21


def test_polar_express_comes_closer_to_one_in_as_many_iterations_from_its_smallest_value():
    size = 40
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    values = np.geomspace(0.02, 1, size)
    matrices = jnp.asarray(rotation * values, jnp.float32)[None]

    def farthest(steps, rule):
        found = orthogonal(matrices, steps, rule=rule)
        return np.abs(np.linalg.svd(found, compute_uv=False) - 1).max()

    assert (
        farthest(3, "polar-express") < 0.3 < farthest(3, "jordan")
        and farthest(6, "polar-express") < 1e-3
    )
    grid = np.linspace(0.01, 1, 10_000)
    # An equal error at both ends and where it is level: no quintic has less.
    for a, b, c in POLAR_EXPRESS[:4]:
        grid = np.linspace(grid.min(), grid.max(), 10_000)
        grid = a * grid + b * grid**3 + c * grid**5
        np.testing.assert_allclose(
            [1 - grid[0], 1 - grid.min(), grid.max() - 1, grid[-1] - 1], grid.max() - 1, rtol=1e-3
        )


def test_bfloat16_rounds_the_products_alone():
    matrices = drawn(2, 4, 40, 24)
    exact, rounded = (orthogonal(matrices, 5, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.06)


@pytest.mark.parametrize("nesterov", [True, False])
def test_two_steps_are_those_of_jordans_rule(nesterov):
    config = BASE.replace(optimizer="muon", clip_norm=None, nesterov=nesterov, weight_decay=0.1)
    rule = config.optimizer
    params = jax.device_get(drawn_params(config.model))
    assert isinstance(rule, Muon)
    transformation = rule.transformation(config.model, 0.5)
    update = jax.jit(partial(transformation.update, grad_norm=jnp.ones(())))
    begun = jax.jit(transformation.init)(params)
    state = begun
    kernel = params["layers"][0]["kernel"]
    momentum = np.zeros_like(kernel)
    for seed in (3, 4):
        grads = jax.device_get(drawn_params(config.model, seed))
        found, state = update(grads, state, params)
        updates: Any = found
        gradient = grads["layers"][0]["kernel"]
        momentum = rule.momentum * momentum + gradient
        direction = gradient + rule.momentum * momentum if nesterov else momentum
        H = kernel.shape[1] // 4
        for gate in range(4):
            columns = slice(gate * H, (gate + 1) * H)
            step = np.asarray(orthogonal(direction[None, :, columns], rule.newton_schulz_steps))[0]
            by_hand = -0.5 * rule.learning_rate * (step + rule.weight_decay * kernel[:, columns])
            np.testing.assert_allclose(
                np.asarray(updates["layers"][0]["kernel"])[:, columns],
                by_hand,
                rtol=1e-5,
                atol=1e-7,
            )
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(updates))
    plain = optax.adam(0.5 * rule.adam_learning_rate, rule.beta1, rule.beta2, rule.epsilon)
    grads = params["embedding"]
    first: Any = jax.jit(lambda grads: plain.update(grads, plain.init(grads))[0])
    expected = first(grads)
    given: Any = update(params, begun, params)[0]
    np.testing.assert_allclose(given["embedding"], expected, rtol=1e-6)
    transformation = config.replace(adam_weight_decay=0.2).optimizer.transformation(
        config.model, 0.5
    )
    decayed = jax.jit(partial(transformation.update, grad_norm=jnp.ones(())))
    given = decayed(params, jax.jit(transformation.init)(params), params)[0]
    rate = 0.5 * rule.adam_learning_rate
    np.testing.assert_allclose(
        given["embedding"], expected - rate * 0.2 * params["embedding"], rtol=1e-5
    )
    bias = params["softmax"]["bias"]  # not a matrix
    np.testing.assert_allclose(given["softmax"]["bias"], first(bias), rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kernel_of_a_layer_is_its_gates_side_by_side(kind):
    """What Muon splits into the gates' matrices."""
    model = MODELS[kind](embedding_size=3, hidden_sizes=(8,))
    layer = jax.eval_shape(lambda: model.init_layer(jax.random.key(0), 3, 8))
    kernels = {name: leaf for name, leaf in layer.items() if name.endswith("kernel")}
    assert kernels
    for name, leaf in kernels.items():
        assert leaf.shape[1] == model.kernel_gates.get(name, model.gates) * 8
