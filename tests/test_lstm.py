"""ops/lstm.py: the fast op equals its reference in values and gradients,
and refuses shapes that do not fit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.ops.lstm import LSTMState, lstm, lstm_reference

TOLERANCE = {jnp.float32: 2e-5, jnp.float64: 1e-12}


def draw(T, B, E, H, dtype, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray((rng.normal(size=shape) * 0.5).astype(dtype))  # noqa: E731
    return (
        normal(T, B, E),
        normal(E + H, 4 * H),
        normal(4 * H),
        LSTMState(normal(B, H), normal(B, H)),
    )


def values_and_gradients(op, x, kernel, bias, state, forget_bias):
    """A scalar in which outputs and both parts of the final carry weigh differently,
    and all its gradients.
    """

    def scalar(x, kernel, bias, state, forget_bias):
        h, final = op(x, kernel, bias, state, forget_bias)
        return jnp.sum(jnp.sin(h)) + jnp.sum(final.c**2) + 2 * jnp.sum(
            final.h * jnp.cos(final.c)
        ), (h, final)

    return jax.value_and_grad(scalar, argnums=(0, 1, 2, 3, 4), has_aux=True)(
        x, kernel, bias, state, forget_bias
    )


fast = jax.jit(functools.partial(values_and_gradients, lstm))
plain = jax.jit(functools.partial(values_and_gradients, lstm_reference))
compiled = jax.jit(lstm, static_argnames="keep")  # by itself each of its ops would be compiled


def assert_close(a, b, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 10), a, b
    )


@settings(max_examples=4)
@given(
    T=st.integers(1, 6),
    B=st.integers(1, 4),
    E=st.integers(1, 5),
    H=st.integers(1, 5),
    wide=st.booleans(),
    forget_bias=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(T, B, E, H, wide, forget_bias, seed):
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        arguments = (*draw(T, B, E, H, dtype, seed), np.asarray(forget_bias, dtype))
        assert_close(fast(*arguments), plain(*arguments), TOLERANCE[dtype])


def test_equals_the_reference_where_the_gates_do_not_read_all_of_h():
    kept = np.random.default_rng(0).random((4, 5)) < 0.6
    dropped = [
        jax.jit(functools.partial(values_and_gradients, functools.partial(op, kept=kept, keep=0.6)))
        for op in (lstm, lstm_reference)
    ]
    arguments = (*draw(6, 4, 3, 5, jnp.float32), jnp.float32(1))
    assert_close(dropped[0](*arguments), dropped[1](*arguments), TOLERANCE[jnp.float32])


def test_bfloat16_multiplies_in_bfloat16_and_carries_in_float32():
    x, kernel, bias, state = draw(9, 4, 16, 24, jnp.float32)
    arguments = (x.astype(jnp.bfloat16), kernel / 4, bias, state, jnp.float32(0))
    values = fast(*arguments)
    (_, (h, final)), gradients = values
    assert (h.dtype, final.c.dtype) == (jnp.bfloat16, jnp.float32)
    assert [leaf.dtype for leaf in jax.tree.leaves(gradients)] == [
        leaf.dtype for leaf in jax.tree.leaves(arguments)
    ]
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(plain(*arguments)), strict=True):
        difference = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()
        assert difference < 0.03 * np.abs(np.asarray(b, np.float32)).max()


@pytest.mark.parametrize(("T", "H"), [(1, 64), (2, 1), (41, 63)])
def test_equals_the_reference_at_any_length_and_width(T, H):
    x, kernel, bias, state = draw(T, 1, 2, H, jnp.float32)
    arguments = (x, kernel / 8, bias, state, jnp.float32(0))
    assert_close(fast(*arguments), plain(*arguments), 1e-4)


def test_vmap_equals_a_loop():
    members = [draw(4, 3, 5, 2, jnp.float32, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    together = jax.vmap(fast)(*stacked, np.arange(3, dtype=np.float32))
    alone = [fast(*member, np.float32(i)) for i, member in enumerate(members)]
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *alone), 2e-5)


def test_two_halves_with_the_carry_equal_the_whole():
    x, kernel, bias, state = draw(7, 2, 3, 4, jnp.float32)
    x = np.asarray(x)
    whole, final = compiled(x, kernel, bias, state)
    first, carry = compiled(x[:3], kernel, bias, state)
    second, carry = compiled(x[3:], kernel, bias, carry)
    assert_close((whole, final), (np.concatenate([first, second]), carry), 1e-6)


@pytest.mark.parametrize("dropped", [False, True])
def test_one_step_at_a_time_is_all_steps_at_once(dropped):
    x, kernel, bias, state = draw(5, 2, 3, 4, jnp.float32)
    masks = {"kept": np.random.default_rng(1).random((2, 4)) < 0.6, "keep": 0.6} if dropped else {}
    whole, final = compiled(x, kernel, bias, state, 1.0, **masks)
    found = []
    carry = state
    for step in np.asarray(x):
        h, carry = compiled(step[None], kernel, bias, carry, 1.0, **masks)
        found.append(h)
    assert_close((whole, final), (np.concatenate(found), carry), 1e-6)


def test_no_output_depends_on_a_later_input():
    x, kernel, bias, state = draw(6, 2, 3, 4, jnp.float32)
    later = np.asarray(x) + np.eye(6, dtype=np.float32)[4, :, None, None]
    before, after = (np.asarray(compiled(given, kernel, bias, state)[0]) for given in (x, later))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert (before[4:] != after[4:]).all()


def test_one_step_by_hand():
    """The cell written in NumPy from the definition, gate by gate: i, j, f, o."""
    x, kernel, bias, state = draw(1, 2, 3, 4, jnp.float32)
    x, kernel, bias, state = jax.device_get((x, kernel, bias, state))
    z = np.concatenate([x[0], state.h], 1) @ kernel + bias
    i, j, f, o = np.split(np.asarray(z, np.float64), 4, 1)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    c = state.c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    h, final = jax.device_get(compiled(x, kernel, bias, state, 1.0))
    np.testing.assert_allclose(final.c, c, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h[0], np.tanh(c) * sigmoid(o), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(h[0], final.h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(kernel=np.zeros((6, 16))),
            r"kernel should be floating-point numbers of the shape \(7, 16\).*\(6, 16\)",
        ),
        (
            dict(bias=np.zeros(15)),
            r"bias should be floating-point numbers of the shape \(16,\).*\(15,\)",
        ),
        (
            dict(state=LSTMState(*(jax.device_put(np.zeros((3, 4), np.float32)),) * 2)),
            r"state.c should be floating-point numbers of the shape \(2, 4\).*\(3, 4\)",
        ),
        (dict(x=np.zeros((5, 3))), r"x should be \[T, B, E\].*\(5, 3\)"),
    ],
)
@pytest.mark.parametrize("op", [lstm, lstm_reference])
def test_shapes_that_do_not_fit_are_named(op, change, message):
    fitting = dict(
        zip(("x", "kernel", "bias", "state"), draw(5, 2, 3, 4, jnp.float32), strict=True)
    )
    with pytest.raises(ValueError, match=message):
        op(**{**fitting, **change})
