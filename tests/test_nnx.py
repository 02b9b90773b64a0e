"""nnx.py: a one-line swap for Flax NNX's own LSTM, with parameters that load both ways."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.nnx import LSTM

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 5)), jnp.float32)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def pair(**options):
    """Flax's module and ours, of equal parameters that were loaded from Flax's,
    its bias moved from zero.
    """
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(1))
    assert cell.dense_h.bias is not None
    cell.dense_h.bias[...] += 0.1 * jnp.arange(16)
    theirs = nnx.RNN(cell, **options)
    ours = LSTM(5, 4, rngs=nnx.Rngs(2), **options)
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    return theirs, ours


def test_the_same_initial_parameters_which_load_both_ways():
    theirs = nnx.RNN(nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(1)))
    ours = LSTM(5, 4, rngs=nnx.Rngs(1))
    close(
        nnx.to_pure_dict(nnx.state(ours, nnx.Param)), nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    )
    other = LSTM(5, 4, rngs=nnx.Rngs(3))
    nnx.update(theirs, nnx.state(other, nnx.Param))
    close(theirs(X), other(X))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_major": True, "return_carry": True},
        {"reverse": True, "keep_order": True, "return_carry": True},
        {"reverse": True},
    ],
)
def test_the_same_output_carry_and_gradients(options):
    theirs, ours = pair(**options)

    def loss(module, x):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(module(x)))

    answers = []
    for module in (theirs, ours):
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        gradients = jax.jit(
            jax.grad(
                lambda p, x, rest, graph=graph: loss(nnx.merge(graph, p, rest, copy=True), x),
                argnums=(0, 1),
            )
        )(params, X, rest)
        answers.append((module(X), nnx.to_pure_dict(gradients[0]), gradients[1]))
    close(*answers)


def test_a_carry_goes_in_and_out_and_several_batch_axes_are_kept():
    theirs, ours = pair(return_carry=True)
    x = jax.random.normal(jax.random.key(0), (2, 3, 7, 5))
    carry, first = ours(x[..., :3, :])
    carry, second = ours(x[..., 3:, :], initial_carry=carry)
    close((carry, jnp.concatenate([first, second], -2)), theirs(x))


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_have_lengths_of_their_own(reverse):
    theirs, ours = pair(return_carry=True, reverse=reverse)
    lengths = jnp.array([7, 1, 4])
    counted = (jnp.arange(7) < lengths[:, None])[..., None]
    answers: list[Any] = [module(X, seq_lengths=lengths) for module in (theirs, ours)]
    close(*[(carry, jnp.where(counted, y, 0)) for carry, y in answers])


def test_half_precision_computes_in_half_precision():
    _, ours = pair()
    half = LSTM(5, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(2))
    nnx.update(half, nnx.state(ours, nnx.Param))
    assert half(X).dtype == jnp.bfloat16
    np.testing.assert_allclose(half(X), ours(X), atol=0.03)
    assert (half(X) != ours(X).astype(jnp.bfloat16)).any()
    # What a first step makes of the biases alone is not rounded.
    close(*(module(0 * X[:, :1], return_carry=True)[0][0] for module in (half, ours)))


def test_the_options_of_a_call_come_before_those_of_the_module():
    theirs, ours = pair()
    options: Any = {"time_major": True, "reverse": True, "keep_order": True, "return_carry": True}
    options["rngs"] = nnx.Rngs(0)
    close(ours(X, **options), theirs(X, **options))
    with pytest.raises(TypeError, match="unexpected keyword"):
        ours(X, revers=True)
