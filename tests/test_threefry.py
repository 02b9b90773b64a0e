"""Threefry in one pass: JAX's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxlm.ops import threefry

KEYS = st.integers(0, 2**32 - 1).map(jax.random.key)
LIMITS = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (0.25, 9.0)])


@pytest.mark.golden  # also as users compile, where a product and a sum are rounded once
@settings(max_examples=15, deadline=None)
@example(jax.random.key(0), (9, 6, 9), (0.25, 9.0))
@given(KEYS, st.lists(st.integers(0, 9), max_size=3).map(tuple), LIMITS)
def test_the_numbers_are_those_of_jax(key, shape, limits):
    expected = jax.random.uniform(key, shape, minval=limits[0], maxval=limits[1])
    np.testing.assert_array_equal(threefry.uniform(key, shape, *limits), expected)
    compiled = jax.jit(lambda key: threefry.uniform(key, shape, *limits))
    np.testing.assert_array_equal(compiled(key), expected)


def test_many_keys_draw_at_once():
    keys = jax.random.split(jax.random.key(3), 4)
    np.testing.assert_array_equal(
        jax.vmap(lambda key: threefry.uniform(key, (300, 7), -1.0))(keys),
        jax.vmap(lambda key: jax.random.uniform(key, (300, 7), minval=-1.0))(keys),
    )


def test_keys_of_another_kind_are_left_to_jax():
    key = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(threefry.uniform(key, (5,)), jax.random.uniform(key, (5,)))


def test_64_bits_are_left_to_jax():
    with jax.enable_x64(True):
        drawn = threefry.uniform(jax.random.key(1), (5,))
        assert drawn.dtype == jnp.float64
        np.testing.assert_array_equal(drawn, jax.random.uniform(jax.random.key(1), (5,)))


@pytest.mark.parametrize(("shape", "loops"), [((2**16, 2**16), True), ((2**16, 2**15), False)])
def test_arrays_that_32_bits_do_not_count_are_left_to_jax(shape, loops):
    drawn = jax.jit(lambda key: threefry.uniform(key, shape))
    assert ("while" in drawn.lower(jax.random.key(0)).as_text()) == loops
