"""The LSTM.

A layer's parameters are `kernel` [E + H, 4H] and `bias` [4H]. The gates' order is i, j, f, o, as in
TensorFlow's BasicLSTMCell.
"""

from jaxlm.base.fields import number
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    longest_memory,
    state_dropout,
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
        kernel = uniform(key, self.layer_scale(width), inputs + width, 4 * width)
        bias = self.initial_bias(key, 4, width)
        forget = self.memory_biases(key, width)
        return {"kernel": kernel, "bias": bias.at[2 * width : 3 * width].add(forget)}

    def zero_state(self, zeros, width) -> LSTMState:
        return LSTMState(c=zeros(width), h=zeros(width))

    def apply_layer(
        self,
        params,
        x,
        state: LSTMState,
        noise,
        length,
    ) -> tuple[Units, LSTMState]:
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
