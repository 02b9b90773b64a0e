"""optimizers/: SGD with momentum by hand; AdamW against optax's Adam and a decay by hand.

Muon has a file of its own, test_muon.py.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import BASE, drawn_params

from jaxlm.optimizers.adamw import AdamW

RATE = 0.25  # the schedule's factor


@pytest.mark.parametrize("model", ["gru", "hawk"])
def test_adamw_decays_matrices_and_no_bias(model):
    config = BASE.replace(
        model=model, optimizer="adamw", clip_norm=None, beta1=0.8, beta2=0.9, weight_decay=0.3
    )
    rule = config.optimizer
    assert isinstance(rule, AdamW)
    params = drawn_params(config.model)  # (biases begin at zero, where a decay would not show)
    ours = rule.transformation(config.model, RATE)
    adam = optax.scale_by_adam(0.8, 0.9, rule.epsilon)
    update = jax.jit(partial(ours.update, grad_norm=jnp.ones(())))
    states: list[Any] = [jax.jit(ours.init)(params), jax.jit(adam.init)(params)]
    for seed in (1, 2):
        grads = drawn_params(config.model, seed)
        found, states[0] = update(grads, states[0], params)
        scaled, states[1] = jax.device_get(jax.jit(adam.update)(grads, states[1]))
        by_hand = jax.tree_util.tree_map_with_path(
            lambda path, update, leaf: (
                -RATE * rule.learning_rate * (update + 0.3 * leaf * is_matrix(path, leaf))
            ),
            scaled,
            jax.device_get(params),
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, by_hand)


def test_radam_follows_its_algorithm():
    """Liu et al. 2020, arXiv:1908.03265, algorithm 2, in float64."""
    b1, b2, eps = 0.8, 0.9, 1e-3
    config = BASE.replace(
        optimizer="adamw", rectified=True, clip_norm=None, beta1=b1, beta2=b2, epsilon=eps
    )
    rule = config.optimizer
    ours: Any = rule.transformation(config.model, RATE)
    params = {"bias": jnp.zeros(3)}
    update = jax.jit(partial(ours.update, grad_norm=jnp.ones(())))
    state = ours.init(params)
    m, v = np.zeros(3), np.zeros(3)
    rho_inf = 2 / (1 - b2) - 1
    rectified = []
    for t, gradient in enumerate(np.random.default_rng(0).normal(size=(12, 3)), 1):
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        direction = m / (1 - b1**t)
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        if rho >= 5:  # optax's threshold; the paper's is 4
            r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            direction = np.sqrt(r) * direction / (np.sqrt(v / (1 - b2**t)) + eps)
        rectified.append(rho >= 5)
        grads = {"bias": jnp.asarray(gradient, jnp.float32)}
        updates, state = update(grads, state, params)
        np.testing.assert_allclose(
            updates["bias"], -RATE * rule.learning_rate * direction, rtol=1e-4, atol=1e-9
        )
    assert any(rectified) and not all(rectified)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_accumulates_gradients_with_nesterovs_momentum_and_without(nesterov):
    rule = BASE.replace(clip_norm=None, momentum=0.75, nesterov=nesterov, learning_rate=2.0)
    ours: Any = rule.optimizer.transformation(rule.model, RATE)
    params = {"bias": jnp.zeros(3)}
    update = jax.jit(partial(ours.update, grad_norm=jnp.ones(())))
    state = ours.init(params)
    momentum = np.zeros(3)
    for gradient in np.array([[1, -2, 3], [0.5, 1, -1]], np.float32):
        grads = {"bias": jnp.asarray(gradient)}
        updates, state = update(grads, state, params)
        momentum = gradient + 0.75 * momentum
        direction = gradient + 0.75 * momentum if nesterov else momentum
        np.testing.assert_allclose(updates["bias"], -RATE * 2.0 * direction, rtol=1e-6)


def is_matrix(path, leaf: jax.Array) -> bool:
    return leaf.ndim > 1 and "bias" not in path[-1].key
