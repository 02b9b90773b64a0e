"""The GRU, in the variant of cuDNN and PyTorch.

    r, z = sigmoid(x W + h U + b)        n = tanh(x W_n + b_n + r * (h U_n + c_n))
    h' = (1 - z) * n + z * h

A layer's parameters: `kernel` [E, 3H], `recurrent_kernel` [H, 3H] and `bias` [3H], in the order r,
z, n; and `recurrent_bias` [H], which is c_n.
"""

import jax
import jax.numpy as jnp

from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    longest_memory,
    torch_biases,
    uniform,
    weight_drop,
)
from jaxlm.ops.activations import sigmoid
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import recurrence
from jaxlm.ops.scans import Hidden, Units


@MODELS.kind("gru")
class GRU(Recurrent):
    """Gated recurrent unit, the variant of cuDNN and PyTorch (Cho et al. 2014, arXiv:1406.1078)."""

    gates = 3
    longest_memory: float | None = longest_memory()
    keep_recurrent_weights: float | None = weight_drop()

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        from_input, from_state = jax.random.split(key)
        scale = self.layer_scale(width)
        bias = jnp.zeros(3 * width)
        recurrent_bias = jnp.zeros(width)
        if self.torch_init:
            of_x, of_h = torch_biases(key, scale, 3 * width)
            # The reset gate multiplies h's bias of the candidate: it cannot be added to x's.
            bias = of_x + of_h.at[-width:].set(0)
            recurrent_bias = of_h[-width:]
        # z is the share of the state that is kept.
        bias = bias.at[width : 2 * width].add(self.memory_biases(key, width))
        return {
            "kernel": uniform(from_input, scale, inputs, 3 * width),
            "bias": bias,
            "recurrent_kernel": uniform(from_state, scale, width, 3 * width),
            "recurrent_bias": recurrent_bias,
        }

    def apply_layer(
        self,
        params,
        x,
        state: Hidden,
        noise,
        length,
    ) -> tuple[Units, Hidden]:
        z = product(x, params["kernel"], x.dtype) + params["bias"]
        matrices = {"state": params["recurrent_kernel"]}
        y, h = recurrence(_cell, z, matrices, params["recurrent_bias"], state, length, x.dtype)
        return y.astype(x.dtype), h


def _cell(
    linear,
    h,
    projected,
    recurrent_bias,
):
    H = h.shape[-1]
    recurrent = linear("state", h)
    x_rz, x_n = jnp.split(projected, [2 * H], -1)
    h_rz, h_n = jnp.split(recurrent, [2 * H], -1)
    r, z = jnp.split(sigmoid(x_rz + h_rz), 2, -1)
    n = jnp.tanh(x_n + r * (h_n + recurrent_bias))
    h = (1 - z) * n + z * h
    return h, h
