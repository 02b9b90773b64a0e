"""optimizers/: AdamW against optax's Adam and a decay written by hand. (Muon: test_muon.py.)"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipes import BASE

from jaxlm.optimizers.adamw import AdamW
from jaxlm.training.step import init_state

RATE = 0.25  # the schedule's factor


def test_adamw_decays_matrices_and_no_bias():
    config = BASE.replace(model="gru", optimizer="adamw", clip_norm=None, beta1=0.8, beta2=0.9, weight_decay=0.3)
    rule = config.optimizer
    assert isinstance(rule, AdamW)
    params = init_state(config.recipe, jax.random.key(0), 2).params
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)  # biases begin at zero, where a decay would not show
    ours, adam = rule.transformation(config.model, RATE), optax.scale_by_adam(0.8, 0.9, rule.epsilon)
    states: list[Any] = [ours.init(params), adam.init(params)]
    for seed in (1, 2):
        grads = jax.tree.map(lambda leaf, seed=seed: jax.random.normal(jax.random.key(seed), leaf.shape), params)
        found, states[0] = ours.update(grads, states[0], params, grad_norm=jnp.ones(()))
        scaled, states[1] = adam.update(grads, states[1])
        by_hand = jax.tree.map(
            lambda update, leaf: -RATE * rule.learning_rate * (update + (0.3 * leaf if leaf.ndim == 2 else 0)),
            scaled,
            params,
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, by_hand)
    assert {leaf.ndim for leaf in jax.tree.leaves(params)} == {1, 2}
