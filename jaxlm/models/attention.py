"""Attention over the last tokens, as a layer with a carry.

    q, k, v = x W        y = attention(q, k, v) W_o

A token reads itself and the `attention_window` tokens before it, also those of earlier windows of
training: their keys and values are the carry. In residual blocks with a feed-forward layer this is
the Transformer (Vaswani et al. 2017, arXiv:1706.03762).

A layer's parameters, of N heads with D = H / N units: `kernel` [E, 3 * N * D] of q, k and v, and
`output_kernel` [N * D, N * D].
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.base.fields import count
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    head_count,
)
from jaxlm.ops.attention import AttentionState, attention
from jaxlm.ops.product import product
from jaxlm.ops.scans import Units


@MODELS.kind("attention")
class Attention(Recurrent):
    """Causal attention over the last tokens, with rotary positions (arXiv:2104.09864)."""

    gates = 3
    kernel_gates: ClassVar[Mapping[str, int]] = {"output_kernel": 1}
    heads: int = head_count()
    attention_window: int = count(
        64, "tokens before each token that it reads", "tokens", low=1, high=2**20
    )

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        of_inputs, of_outputs = jax.random.split(key)
        return {
            "kernel": self.matrix(of_inputs, inputs, 3 * width),
            "output_kernel": self.matrix(of_outputs, width, width),
        }

    def zero_state(self, zeros, width) -> AttentionState:
        """A layer's carry before the first token, which holds no keys."""
        shape = (self.heads, self.attention_window, width // self.heads)
        return AttentionState(zeros(*shape), zeros(*shape), zeros())

    def apply_layer(
        self,
        params,
        x,
        state: AttentionState,
        noise,
        length,
    ) -> tuple[Units, AttentionState]:
        z = product(x, params["kernel"], x.dtype)
        heads = z.reshape(*x.shape[:2], 3 * self.heads, -1).astype(state.keys.dtype)
        q, k, v = jnp.split(heads, 3, 2)
        y, state = attention(q, k, v, state, length, x.dtype)
        y = product(y.reshape(*x.shape[:2], -1), params["output_kernel"], x.dtype)
        return y.astype(x.dtype), state
