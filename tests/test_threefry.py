"""Threefry in one pass: JAX's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.ops.threefry import in_one_pass


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), max_size=3))
def test_the_numbers_are_those_of_jax(seed, shape):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(jax.random.bits(in_one_pass(key), shape), jax.random.bits(key, shape))


@pytest.mark.parametrize("draw", [
    lambda key: jax.random.uniform(key, (300, 7), minval=-1.0),
    lambda key: jax.random.bernoulli(key, 0.3, (5, 40)),
    lambda key: jax.random.normal(key, (11,), jnp.bfloat16),
    lambda key: jax.random.uniform(jax.random.fold_in(key, 2**31 + 3)),
    lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    lambda key: jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(one, 1), (4,)))(jax.random.split(key, 3)),
])
def test_whatever_is_drawn_is_the_same_and_so_it_is_compiled(draw):
    key = jax.random.key(7)
    np.testing.assert_array_equal(draw(in_one_pass(key)), draw(key))
    np.testing.assert_array_equal(jax.jit(lambda key: draw(in_one_pass(key)))(key), draw(key))


def test_a_key_of_another_kind_is_left_as_it_is():
    key = jax.random.key(1, impl="rbg")
    assert in_one_pass(key) is key


@pytest.mark.parametrize(("shape", "loops"), [((2**16, 2**16), True), ((2**16, 2**15), False)])
def test_arrays_that_32_bits_do_not_count_are_left_to_jax(shape, loops):
    drawn = jax.jit(lambda key: jax.random.bits(in_one_pass(key), shape))
    assert ("while" in drawn.lower(jax.random.key(0)).as_text()) == loops
