"""linen.py: a one-line swap for Flax's own LSTM, with parameters that load both ways."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlm.linen import LSTM

X = jax.random.normal(jax.random.key(0), (3, 7, 5))


def apply(module: nn.Module, params: Any, x: jax.Array, **options: Any) -> Any:
    return module.apply(params, x, **options)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize(
    "options",
    [{}, {"time_major": True, "return_carry": True}, {"reverse": True, "keep_order": True, "return_carry": True}],
)
def test_the_same_tree_output_carry_and_gradients(options):
    theirs, ours = nn.RNN(nn.OptimizedLSTMCell(4), **options), LSTM(4, **options)
    params = jax.jit(theirs.init)(jax.random.key(1), X)
    mine = jax.jit(ours.init)(jax.random.key(1), X)
    close(mine, params)  # even the initial values, key for key
    # biases start at zero: move them, so that a mistake in their order shows
    params = jax.tree.map(lambda p: p + 0.1 * jnp.arange(p.size).reshape(p.shape) / p.size, params)
    close(jax.jit(ours.apply)(params, X), jax.jit(theirs.apply)(params, X))
    close(jax.jit(theirs.apply)(mine, X), jax.jit(ours.apply)(mine, X))

    def loss(module):
        return jax.jit(
            jax.grad(lambda p, x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(module.apply(p, x))), argnums=(0, 1))
        )

    close(loss(ours)(params, X), loss(theirs)(params, X))


def test_a_carry_goes_in_and_out_and_several_batch_axes_are_kept():
    x = jax.random.normal(jax.random.key(0), (2, 3, 7, 5))
    ours, theirs = LSTM(4, return_carry=True), nn.RNN(nn.OptimizedLSTMCell(4), return_carry=True)
    params = theirs.init(jax.random.key(1), x)
    carry, first = apply(ours, params, x[..., :3, :])
    carry, second = apply(ours, params, x[..., 3:, :], initial_carry=carry)
    expected_carry, expected = apply(theirs, params, x)
    close((carry, jnp.concatenate([first, second], -2)), (expected_carry, expected))


def test_half_precision_computes_in_half_precision():
    params = LSTM(4).init(jax.random.key(1), X)
    half = apply(LSTM(4, dtype=jnp.bfloat16), params, X)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, apply(LSTM(4), params, X), atol=0.03)
