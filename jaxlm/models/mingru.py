"""The minGRU and the minLSTM.

    minGRU:     z, n = x W + b           h' = (1 - sigmoid(z)) * h + sigmoid(z) * n
    minLSTM:    f, i, n = x W + b        h' = (sigmoid(f) * h + sigmoid(i) * n) / (sigmoid(f) +
        sigmoid(i))

A minLSTM is a minGRU with z = log sigmoid(i) - log sigmoid(f). No gate depends on h, so that a
layer is a linear recurrence, whose steps can be computed at once. A layer's parameters are `kernel`
[E, 2H or 3H] and `bias`.
"""

import jax
import jax.numpy as jnp

from jaxlm.base.fields import flag
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    longest_memory,
    torch_biases,
    uniform,
)
from jaxlm.ops.product import product
from jaxlm.ops.scans import Hidden, Units, last_step, linear_recurrence


@MODELS.kind("mingru")
class MinGRU(Recurrent):
    """Minimal GRU, whose gates depend on the input alone (Feng et al. 2024, arXiv:2410.01201)."""

    gates = 2
    longest_memory: float | None = longest_memory()
    positive: bool = flag(
        False,
        "n is made positive, as in the paper's appendix B: n + 1/2, or sigmoid(n) where n is "
        "negative",
    )

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        scale = self.layer_scale(inputs)
        size = self.gates * width
        bias = jnp.zeros(size)
        if self.torch_init:
            # As of PyTorch's Linear, which has one bias.
            bias, _ = torch_biases(key, scale, size)
        memory = self.memory_biases(key, width)
        bias = bias.at[-2 * width : -width].add(-memory)  # of the input gate
        if self.gates == 3:
            bias = bias.at[:width].add(memory)  # of the forget gate
        return {"kernel": uniform(key, scale, inputs, size), "bias": bias}

    def apply_layer(
        self,
        params,
        x,
        state: Hidden,
        noise,
        length,
    ) -> tuple[Units, Hidden]:
        projected = product(x, params["kernel"], x.dtype) + params["bias"]
        if self.gates == 3:
            f, i, n = jnp.split(projected, 3, -1)
            z = jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f)
        else:
            z, n = jnp.split(projected, 2, -1)
        if self.positive:
            n = jnp.where(n >= 0, n + 0.5, jax.nn.sigmoid(n))
        y = linear_recurrence(jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * n, state)
        return y.astype(x.dtype), last_step(y, length)


@MODELS.kind("minlstm")
class MinLSTM(MinGRU):
    """Minimal LSTM, whose gates depend on the input alone and sum to one (arXiv:2410.01201)."""

    gates = 3
