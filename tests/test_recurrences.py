"""The GRU, the linear recurrence and the short convolution beside Flax's cell,
a plain reference and NumPy.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.models.gru import GRU
from jaxlm.models.recurrent import LayerNoise
from jaxlm.ops.scans import (
    linear_recurrence_reference,
    parallel_linear_recurrence,
    short_convolution,
)


def test_the_gru_is_flax_s_cell():
    """Values and gradients; Flax's GRUCell is cuDNN's variant,
    with its bias on the candidate's recurrent part.
    """
    T = 6
    B = 3
    E = 4
    H = 5
    cell = nn.GRUCell(H)
    rng = np.random.default_rng(0)
    x, h = (
        jax.device_put(rng.normal(size=shape).astype(np.float32)) for shape in ((T, B, E), (B, H))
    )
    params = jax.jit(cell.init)(jax.random.key(0), h, np.asarray(x)[0])["params"]
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.device_put(rng.normal(size=leaf.shape).astype(np.float32)),
        params,
    )

    def ours(params, x, h):
        kernel = jnp.concatenate([params[f"i{gate}"]["kernel"] for gate in "rzn"], -1)
        recurrent = jnp.concatenate([params[f"h{gate}"]["kernel"] for gate in "rzn"], -1)
        bias = jnp.concatenate([params[f"i{gate}"]["bias"] for gate in "rzn"])
        layer: Any = dict(
            kernel=kernel,
            recurrent_kernel=recurrent,
            bias=bias,
            recurrent_bias=params["hn"]["bias"],
        )
        return GRU().apply_layer(layer, x, h, LayerNoise(), None)

    def theirs(params, x, h):
        def step(h, x):
            return cell.apply({"params": params}, h, x)

        h, y = jax.lax.scan(step, h, x)
        return y, h

    def scalar(op):
        def total(*arguments):
            y, h = op(*arguments)
            return jnp.sin(y).sum() + (h**2).sum(), (y, h)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(params, x, h)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        scalar(ours),
        scalar(theirs),
    )


@settings(max_examples=4)
@given(
    T=st.sampled_from([1, 2, 7]), B=st.integers(1, 2), H=st.integers(1, 2), seed=st.integers(0, 99)
)
def test_the_associative_scan_is_the_plain_recurrence(T, B, H, seed):
    rng = np.random.default_rng(seed)
    a, b, h = (
        jax.device_put(rng.uniform(-1, 1, shape).astype(np.float32))
        for shape in ((T, B, H), (T, B, H), (B, H))
    )

    def scalar(op):
        return jax.jit(
            jax.value_and_grad(lambda *args: jnp.sin(op(*args)).sum(), argnums=(0, 1, 2))
        )(a, b, h)

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        scalar(parallel_linear_recurrence),
        scalar(linear_recurrence_reference),
    )


@pytest.mark.parametrize("length", [None, 1, 5])
def test_the_short_convolution_is_numpy_s_of_each_unit(length):
    """Its inputs before the window come from the state; of padded steps nothing is kept."""
    T = 7
    B = 2
    H = 3
    K = 4
    rng = np.random.default_rng(0)
    x, kernel, bias, before = (
        rng.normal(size=shape) for shape in ((T, B, H), (K, H), (H,), (B, K - 1, H))
    )
    arrays = [jnp.asarray(one, jnp.float32) for one in (x, kernel, bias, before)]
    y, state = jax.jit(short_convolution)(*arrays, length=length and jnp.int32(length))
    inputs = np.concatenate([np.moveaxis(before, 1, 0), x])
    for row in range(B):
        for unit in range(H):
            expected = np.convolve(inputs[:, row, unit], kernel[::-1, unit], "valid") + bias[unit]
            np.testing.assert_allclose(y[:, row, unit], expected, rtol=1e-4, atol=1e-5)
    end = length or T
    np.testing.assert_allclose(state, np.moveaxis(inputs[end : end + K - 1], 0, 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gru_returns_outputs_in_its_input_s_dtype(dtype):
    model = GRU()

    def outputs(key, x, h):
        return model.apply_layer(model.init_layer(key, 3, 2), x, h, LayerNoise(), None)

    shapes = (jax.ShapeDtypeStruct(*one) for one in (((2, 1, 3), dtype), ((1, 2), jnp.float32)))
    y, h = jax.eval_shape(outputs, jax.random.key(0), *shapes)
    assert y.dtype == dtype and h.dtype == jnp.float32
