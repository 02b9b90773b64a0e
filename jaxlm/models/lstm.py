"""The LSTM layer: `kernel` [E + H, 4H] and `bias` [4H], gates in the order i, j, f, o (TensorFlow's BasicLSTMCell)."""

import jax
import jax.numpy as jnp

from jaxlm.config.models import LSTM
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.ops.cudnn import lstm_cudnn
from jaxlm.ops.lstm import LSTMState, lstm, zero_state

OPS = {"scan": lstm, "cudnn": lstm_cudnn}


def _init(model: LSTM, key: jax.Array, inputs: int, width: int) -> Params:
    return {"kernel": uniform(model, key, inputs + width, 4 * width), "bias": jnp.zeros(4 * width)}


def _apply(model: LSTM, params: Params, x: jax.Array, state: LSTMState) -> tuple[jax.Array, LSTMState]:
    return OPS[model.recurrent_op](x, params["kernel"], params["bias"], state, model.forget_bias)


CELL = Cell(_init, zero_state, _apply, gates=4)
