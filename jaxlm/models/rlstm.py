"""The RLSTM (Melis 2022, arXiv:2211.01848), with or without the Mogrifier's rounds.

A layer's parameters are those of `ops/rlstm.py`.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax

from jaxlm.models.mogrifier import WithRounds, scale_of_mask
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    state_dropout,
    uniform,
    weight_drop,
)
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.rlstm import rlstm
from jaxlm.ops.scans import Units


@MODELS.kind("rlstm")
class RLSTM(WithRounds):
    """LSTM whose forget gate reads the update and whose output gate the cell (arXiv:2211.01848)."""

    gates = 3
    kernel_gates: ClassVar[Mapping[str, int]] = {
        "kernel": 2,
        "update_kernel": 1,
        "cell_kernel": 1,
    }
    keep_recurrent_weights: float | None = weight_drop()
    keep_state: float | None = state_dropout()

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        keys = jax.random.split(key, 6)
        round_keys = list(jax.random.split(keys[4], self.rounds))
        scale = self.layer_scale(width)
        bias = self.initial_bias(key, 4, width)
        forget = self.forget_bias + self.memory_biases(key, width)
        return {
            "kernel": uniform(keys[0], scale, inputs, 2 * width),
            "recurrent_kernel": uniform(keys[1], scale, width, 3 * width),
            "update_kernel": uniform(keys[2], scale, width, width),
            "cell_kernel": uniform(keys[3], scale, width, width),
            "bias": bias.at[2 * width : 3 * width].add(forget),
            "rounds": self.init_rounds(round_keys, inputs, width),
        }

    def apply_layer(
        self,
        params,
        x,
        state: LSTMState,
        noise,
        length,
    ) -> tuple[Units, LSTMState]:
        scale = scale_of_mask(noise.kept, self.keep_state)
        return rlstm(x, params, state, 1.0 if scale is None else scale, length)
