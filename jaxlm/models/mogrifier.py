"""The Mogrifier LSTM layer: `kernel`, `bias`, `rounds` and `norms`, as `ops/mogrifier.py` lists them."""

import jax
import jax.numpy as jnp

from jaxlm.config.models import Mogrifier
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.models.lstm import change_recurrent
from jaxlm.ops.lstm import LSTMState, zero_state
from jaxlm.ops.mogrifier import Limits, mogrifier


def _init(model: Mogrifier, key: jax.Array, inputs: int, width: int) -> Params:
    kernel_key, *keys = jax.random.split(key, model.rounds + 1)
    gates = model.recurrent_gates
    bias = jnp.zeros(gates * width).at[-2 * width:-width].set(model.forget_bias)
    found = {"kernel": uniform(model, kernel_key, inputs + width, gates * width), "bias": bias,
             "rounds": [_round(model, one, *((inputs, width) if place % 2 else (width, inputs)))
                        for place, one in enumerate(keys)]}
    if model.layer_norm:
        found["norms"] = {"input": jnp.ones(gates * width), "state": jnp.ones(gates * width),
                          "cell": jnp.ones(width), "cell_bias": jnp.zeros(width)}
    return found


def _round(model: Mogrifier, key: jax.Array, inputs: int, outputs: int) -> Params:
    """One round's weights; a product of two matrices varies as much as the full one would."""
    if not model.rank:
        return {"full": uniform(model, key, inputs, outputs), "bias": jnp.zeros(outputs)}
    left, right = jax.random.split(key)
    scale = (3 / (model.rank * model.init_scale**2 + 1e-30)) ** 0.25
    return {"left": scale * uniform(model, left, inputs, model.rank),
            "right": scale * uniform(model, right, model.rank, outputs), "bias": jnp.zeros(outputs)}


def _apply(model: Mogrifier, params: Params, x: jax.Array, state: LSTMState, kept: jax.Array | None = None,
           length: jax.Array | None = None) -> tuple[jax.Array, LSTMState]:
    mask = None if kept is None or model.keep_state is None else jnp.where(kept, 1 / model.keep_state, 0)
    return mogrifier(x, params, state, model.input_gate, Limits(model.cell_clip, mask, length=length))


CELL = Cell(_init, zero_state, _apply, lambda model: model.recurrent_gates, change_recurrent)
