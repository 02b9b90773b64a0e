"""Attention with a carry beside a plain one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE

from jaxlm.base.errors import JaxlmError
from jaxlm.ops.attention import AttentionState, attention, attention_reference

B = 2
N = 3
D = 4
ODD = 5


@pytest.mark.parametrize(
    ("T", "W", "held", "length"),
    [
        (5, 8, (0, 3), None),  # a chunk that is shorter than the window
        (10, 4, (2, 4), 6),  # chunks, the last of them padded, in a window that is padded
        (1, 6, (6, 1), None),
    ],
)
def test_it_is_the_plain_one(T, W, held, length):
    """Outputs, state and gradients, of carries that hold fewer keys than there is room for."""
    rng = np.random.default_rng(0)
    q, k, v = jax.device_put(rng.normal(size=(3, T, B, N, ODD)).astype(np.float32))
    before = jax.device_put(rng.normal(size=(2, B, N, W, ODD)).astype(np.float32))

    def run(op, q, k, v, before):
        y, state = op(
            q, k, v, AttentionState(before[0], before[1], jnp.array(held, jnp.float32)), length
        )
        counted = y[:length]
        return jnp.sin(counted).sum() + jnp.cos(state.keys * state.values).sum(), (counted, state)

    found, expected = (
        jax.jit(jax.grad(partial(run, op), (0, 1, 2, 3), has_aux=True))(q, k, v, before)
        for op in (attention, attention_reference)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    (_, (_, state)) = found
    assert state.held.tolist() == [min(count + (length or T), W) for count in held]


def test_a_step_reads_itself_and_the_window_before_it():
    """By formula, and with positions that count from anywhere: what is further away is not seen."""
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 12, 1, 1, D)).astype(np.float32)
    W = 3
    none = jnp.zeros((1, 1, W, D))
    zero = AttentionState(none, none, jnp.zeros(1))
    y, state = jax.jit(attention)(q, k, v, zero)
    turns = np.exp(1j * np.arange(12)[:, None] * 10_000.0 ** -np.array([0, 0.5]))
    turned_q, turned_k = ((x[:, 0, 0, :2] + 1j * x[:, 0, 0, 2:]) * turns for x in (q, k))
    for t in range(12):
        seen = slice(max(0, t - W), t + 1)
        shares = np.exp((turned_q[t] * turned_k[seen].conj()).sum(-1).real / D**0.5)
        expected = shares @ v[seen, 0, 0] / shares.sum()
        np.testing.assert_allclose(y[t, 0, 0], expected, rtol=1e-5, atol=1e-6)
    assert state.held.tolist() == [W]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_window=0), "attention_window must be at least 1 .*; it is 0"),
        (dict(hidden_sizes=(9,)), "hidden_sizes is 9, which 2 heads do not divide"),
    ],
)
def test_attention_that_cannot_be_is_refused(changes, message):
    with pytest.raises(JaxlmError, match=message):
        BASE.replace(model="attention", **changes)
