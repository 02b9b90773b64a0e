"""The RLSTM: its equations in float64 by a loop of NumPy, its fast twin, its initialisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, drawn_params

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.models import stack
from jaxlm.models.noise import draw_noise
from jaxlm.models.recurrent import LayerNoise, zeros_of
from jaxlm.ops import rlstm as rlstm_op
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.recurrence import recurrence_reference
from jaxlm.ops.rlstm import rlstm

T, B, E, H = 6, 3, 5, 4


def rlstm_reference(*arguments):
    """The op, its cell in a plain scan that JAX differentiates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlstm_op, "recurrence", recurrence_reference)
        return rlstm(*arguments)


def init_layer(model, key, inputs: int, width: int):
    return jax.jit(model.init_layer, static_argnums=(1, 2))(key, inputs, width)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def written_out(x, p: dict[str, Any], c, h, scale) -> tuple[np.ndarray, np.ndarray]:
    """The thesis's equations, one step after the other: every h, and the last c."""
    W_i, W_j = np.split(p["kernel"], 2, 1)
    U_i, U_j, U_f = np.split(p["recurrent_kernel"], 3, 1)
    b_i, b_j, b_f, b_o = np.split(p["bias"], 4)
    outputs = []
    for x_t in x:
        s = h * scale
        for place, weights in enumerate(p["rounds"]):
            if place % 2 == 0:
                x_t = 2 * sigmoid(s @ weights["full"] + weights["bias"]) * x_t
            else:
                s = 2 * sigmoid(x_t @ weights["full"] + weights["bias"]) * s
        i = sigmoid(x_t @ W_i + s @ U_i + b_i)
        j = np.tanh(x_t @ W_j + s @ U_j + b_j)
        f = sigmoid((i * j) @ p["update_kernel"] + s @ U_f + b_f)
        c = f * c + np.minimum(i, 1 - f) * j
        h = sigmoid((c * scale) @ p["cell_kernel"] + b_o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs), c


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_layer_follows_the_equations(rounds):
    rng = np.random.default_rng(rounds)
    model = jaxlm.RLSTM(rounds=rounds, init_scale=0.9)
    params = jax.tree.map(np.float64, init_layer(model, jax.random.key(1), E, H))
    x, c, h = rng.normal(size=(T, B, E)), rng.normal(size=(B, H)), rng.normal(size=(B, H))
    scale = rng.integers(0, 2, (B, H)) * 1.5
    expected, last = written_out(x, params, c, h, scale)
    with jax.enable_x64(True):
        for op in (rlstm, rlstm_reference):
            y, state = jax.jit(op)(
                jnp.asarray(x),
                params,
                LSTMState(jnp.asarray(c), jnp.asarray(h)),
                jnp.asarray(scale),
            )
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(state.c, last, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keep_last_output", [pytest.param(None, marks=pytest.mark.slow), 0.7])
def test_each_of_three_layers_reads_the_sum_of_dropped_outputs_before_it(keep_last_output):
    """As the thesis writes it (section "Architecture"), in float64; dropout before the sum."""
    fields = {"hidden_sizes": (E, E, E), "rounds": 2, "running_sum": True, "embedding_size": E}
    drops = {"keep_output": 0.6, "keep_last_output": keep_last_output, "keep_state": 0.8}
    model = BASE.replace(model="rlstm", init_scale=0.9, **fields, **drops).model
    params = jax.tree.map(np.float64, drawn_params(model, seed=1))
    noise = jax.jit(lambda key: draw_noise(model, key, T, B))(jax.random.key(2))
    x = np.random.default_rng(0).normal(size=(T, B, E))
    zeros = np.zeros((B, E))
    total = np.zeros_like(x)
    reads = x
    for layer, state, mask in zip(params["layers"], noise.states, noise.outputs, strict=True):
        h, _ = written_out(reads, layer, zeros, zeros, np.asarray(state) / 0.8)
        total = total + np.asarray(mask) * h / 0.6
        reads = total
    features = total
    if keep_last_output is not None:
        features = np.asarray(noise.features) * total / keep_last_output
    with jax.enable_x64(True):
        carry = stack.zero_carry(model, B, jnp.float64)
        raw, dropped, _ = jax.jit(stack.last_outputs)(model, params, noise, x, carry)
    np.testing.assert_allclose(raw, total, rtol=1e-10)
    np.testing.assert_allclose(dropped, features, rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": (E, H)}, "running_sum adds up the layers' outputs, .*: hidden_sizes is"),
        ({"skip": True}, "running_sum and skip exclude each other"),
        ({"block": "residual"}, "running_sum and block exclude each other"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(fields, message):
    with pytest.raises(JaxlmError, match=message):
        BASE.replace(**{"hidden_sizes": (E, E), "running_sum": True, **fields})


@pytest.mark.parametrize("rounds", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_fast_twin_has_the_gradients_of_the_plain_one(rounds):
    model = jaxlm.RLSTM(rounds=rounds, init_scale=0.5)
    params = init_layer(model, jax.random.key(1), E, H)
    x = np.random.default_rng(2).normal(size=(T, B, E)).astype(np.float32)
    state = LSTMState(jnp.ones((B, H)) / 2, jnp.ones((B, H)) / 3)

    def loss(op):
        def of(params, x, state):
            y, last = op(x, params, state, 1.0, 4)
            return (y[:4] ** 2).sum() + (last.c * last.h).sum()

        return jax.jit(jax.grad(of, (0, 1, 2)))(params, x, state)

    pairs = zip(*map(jax.tree.leaves, map(loss, (rlstm, rlstm_reference))), strict=True)
    for fast, plain in pairs:
        np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "gru", "mingru", "minlstm", "mogrifier", "rlstm"])
def test_chrono_initialisation_spreads_the_time_scales(name):
    """A layer that reads nothing forgets its state within U(1, T_max - 1) + 1 steps."""
    width = 300
    model = jaxlm.Config().replace(model=name, longest_memory=100.0).model
    plain = jaxlm.Config().replace(model=name).model
    both = jax.jit(lambda key: [one.init_layer(key, 8, width) for one in (model, plain)])
    params, before = jax.device_get(both(jax.random.key(0)))
    bias = np.asarray(params["bias"] - before["bias"])
    jax.tree.map(np.testing.assert_array_equal, {**params, "bias": 0}, {**before, "bias": 0})
    assert np.count_nonzero(bias) in (width, 2 * width, width - 1)
    zeros = jax.tree.map(np.zeros_like, params)
    state = jax.device_get(model.zero_state(zeros_of(1, jnp.float32), width))
    state = state._replace(c=state.c + 1) if hasattr(state, "c") else state + 1
    layer = jax.jit(lambda params, x, h: model.apply_layer(params, x, h, LayerNoise(), None))
    _, after = layer({**zeros, "bias": bias}, np.zeros((1, 1, 8), np.float32), state)
    kept = np.asarray(getattr(after, "c", after), np.float64)[0]
    times = 1 / (1 - kept) - 1
    assert times.min() >= 0.99 and times.max() <= 99.1
    assert np.mean(times) == pytest.approx(50, abs=6)
