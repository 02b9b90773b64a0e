"""linen.py: a one-line swap for Flax's own LSTM, with parameters that load both ways."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlm.linen import LSTM

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 5)), jnp.float32)


def apply(module: nn.Module, params: Any, x: jax.Array, **options: Any) -> Any:
    """In one program, as all that is computed here: op by op, each op would compile."""
    return jax.jit(partial(module.apply, **options))(params, x)


def init(module: nn.Module, x: jax.Array) -> Any:
    return jax.jit(module.init)(jax.random.key(1), x)


def theirs_of(features: int, **options: Any) -> nn.RNN:
    return nn.RNN(nn.OptimizedLSTMCell(features, **options))


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_major": True, "return_carry": True},
        {"reverse": True, "keep_order": True, "return_carry": True},
    ],
)
def test_the_same_tree_output_carry_and_gradients(options):
    theirs = nn.RNN(nn.OptimizedLSTMCell(4), **options)
    ours = LSTM(4, **options)
    params = init(theirs, X)
    mine = init(ours, X)
    close(mine, params)  # even the initial values, key for key
    # biases start at zero: move them, so that a mistake in their order shows
    params = jax.tree.map(
        lambda p: p + 0.1 * np.arange(p.size, dtype="f").reshape(p.shape) / p.size, params
    )
    close(apply(ours, params, X), apply(theirs, params, X))
    close(apply(theirs, mine, X), apply(ours, mine, X))

    def loss(module):
        return jax.jit(
            jax.grad(
                lambda p, x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(module.apply(p, x))),
                argnums=(0, 1),
            )
        )

    close(loss(ours)(params, X), loss(theirs)(params, X))


def test_a_carry_goes_in_and_out_and_several_batch_axes_are_kept():
    x: Any = np.random.default_rng(0).normal(size=(2, 3, 7, 5)).astype(np.float32)
    ours = LSTM(4, return_carry=True)
    theirs = nn.RNN(nn.OptimizedLSTMCell(4), return_carry=True)
    params = init(theirs, x)
    carry, first = apply(ours, params, x[..., :3, :])
    carry, second = apply(ours, params, x[..., 3:, :], initial_carry=carry)
    expected_carry, expected = apply(theirs, params, x)
    close((carry, np.concatenate([first, second], -2)), (expected_carry, expected))


def test_half_precision_computes_in_half_precision():
    params = init(LSTM(4), X)
    half = apply(LSTM(4, dtype=jnp.bfloat16), params, X)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, apply(LSTM(4), params, X), atol=0.03)
    x = X.astype(jnp.bfloat16)
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    ours = LSTM(4, param_dtype=jnp.bfloat16)
    # (The parameters are given; jax 0.12 draws no orthogonal matrix in bfloat16, as Flax's own
    # initialiser would.)
    theirs = theirs_of(
        4, param_dtype=jnp.bfloat16, recurrent_kernel_init=nn.initializers.zeros_init()
    )
    np.testing.assert_allclose(apply(ours, short, x), apply(theirs, short, x), atol=0.03)


@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}, {"time_major": True}]
)
def test_sequences_have_lengths_of_their_own(options):
    lengths = jnp.array([7, 1, 4])
    T = X.shape[1]
    x = jnp.moveaxis(X, 0, 1) if "time_major" in options else X
    ours = LSTM(4, **options)
    theirs = nn.RNN(nn.OptimizedLSTMCell(4), **options)
    params = init(theirs, x)
    counted = jnp.arange(T) < lengths[:, None]
    counted = counted.T if "time_major" in options else counted

    @partial(jax.jit, static_argnums=0)
    def answers(module, params, x):
        carry, y = module.apply(params, x, seq_lengths=lengths, return_carry=True)
        return carry, jnp.where(counted[..., None], y, 0)

    close(answers(ours, params, x), answers(theirs, params, x))
    padded = jnp.where(counted[..., None], x, jnp.nan)
    close(answers(ours, params, padded), answers(theirs, params, padded))

    def loss(module):
        return jax.jit(
            jax.grad(
                lambda *a: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(answers(module, *a))),
                (0, 1),
            )
        )

    if "keep_order" in options:
        close(loss(ours)(params, x), loss(theirs)(params, x))


def test_parameters_that_are_made_inline_have_the_names_of_flax_s_own():
    class Model(nn.Module):
        layer: Any

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.layer(4)(self.layer(3)(x)))

    ours = Model(LSTM)
    theirs = Model(lambda features: nn.RNN(nn.OptimizedLSTMCell(features)))
    params = init(theirs, X)
    assert set(params["params"]) == {"OptimizedLSTMCell_0", "OptimizedLSTMCell_1", "Dense_0"}
    close(init(ours, X), params)
    close(apply(ours, params, X), apply(theirs, params, X))


def test_the_options_of_a_call_come_before_those_of_the_module():
    ours = LSTM(4)
    theirs = nn.RNN(nn.OptimizedLSTMCell(4))
    params = init(theirs, X)
    options = {"time_major": True, "reverse": True, "keep_order": True, "return_carry": True}
    close(apply(ours, params, X, **options), apply(theirs, params, X, **options))


def test_an_option_that_flax_does_not_have_is_refused():
    x = jnp.zeros((2, 3, 4))
    module = LSTM(5)
    params = init(module, x)
    with pytest.raises(TypeError, match="unexpected keyword arguments: reversed"):
        module.apply(params, x, reversed=True)
