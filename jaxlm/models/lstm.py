"""The LSTM.

A layer's parameters are `kernel` [E + H, 4H] and `bias` [4H]. The gates' order is i, j, f, o, as in
TensorFlow's BasicLSTMCell.
"""

import jax.numpy as jnp

from jaxlm.base.fields import number
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    longest_memory,
    state_dropout,
    torch_biases,
    uniform,
    weight_drop,
)
from jaxlm.ops.lstm import LSTMState, lstm
from jaxlm.ops.scans import Units


@MODELS.kind("lstm")
class LSTM(Recurrent):
    """Long short-term memory, as TensorFlow's BasicLSTMCell (arXiv:1409.2329)."""

    gates = 4
    forget_bias: float = number(0.0, "added to the forget gate before its sigmoid")
    longest_memory: float | None = longest_memory(excludes=("forget_bias",))
    keep_recurrent_weights: float | None = weight_drop()
    keep_state: float | None = state_dropout()

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        """A layer's fresh parameters."""
        scale = self.layer_scale(width)
        bias = jnp.zeros(4 * width)
        if self.torch_init:
            bias = sum(torch_biases(key, scale, 4 * width), bias)
        bias = bias.at[2 * width : 3 * width].add(self.memory_biases(key, width))
        return {"kernel": uniform(key, scale, inputs + width, 4 * width), "bias": bias}

    def zero_state(self, zeros, width) -> LSTMState:
        """A layer's carry before the first token."""
        return LSTMState(c=zeros(width), h=zeros(width))

    def apply_layer(
        self,
        params,
        x,
        state: LSTMState,
        noise,
        length,
    ) -> tuple[Units, LSTMState]:
        """Runs a layer over a whole sequence, as `Recurrent.apply_layer` says."""
        return lstm(
            x,
            params["kernel"],
            params["bias"],
            state,
            self.forget_bias,
            length,
            noise.kept,
            self.keep_state,
        )
