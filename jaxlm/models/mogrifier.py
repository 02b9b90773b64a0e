"""The Mogrifier LSTM layer: `kernel`, `bias`, `rounds` and `norms`, as `ops/mogrifier.py` lists them."""

import jax
import jax.numpy as jnp

from jaxlm.config.models import Mogrifier
from jaxlm.models.cell import Cell, Params, uniform
from jaxlm.models.lstm import change_recurrent
from jaxlm.ops.lstm import LSTMState, zero_state
from jaxlm.ops.mogrifier import Limits, mogrifier

LAMB_S_UPDATE = 1.5  # what lamb scales a kept update by, whatever its probability, and in evaluation too


def _init(model: Mogrifier, key: jax.Array, inputs: int, width: int) -> Params:
    kernel_key, *keys = jax.random.split(key, model.rounds + 1)
    gates = model.recurrent_gates
    bias = jnp.zeros(gates * width).at[-2 * width : -width].set(model.forget_bias)
    found = {
        "kernel": uniform(model, kernel_key, inputs + width, gates * width),
        "bias": bias,
        "rounds": [
            _round(model, one, *((inputs, width) if place % 2 else (width, inputs))) for place, one in enumerate(keys)
        ],
    }
    if model.layer_norm:
        found["norms"] = {
            "input": jnp.ones(gates * width),
            "state": jnp.ones(gates * width),
            "cell": jnp.ones(width),
            "cell_bias": jnp.zeros(width),
        }
    return found


def _round(model: Mogrifier, key: jax.Array, inputs: int, outputs: int) -> Params:
    """One round's weights; a product of two matrices varies as much as the full one would."""
    if not model.rank:
        return {"full": uniform(model, key, inputs, outputs), "bias": jnp.zeros(outputs)}
    left, right = jax.random.split(key)
    scale = (3 / (model.rank * model.init_scale**2 + 1e-30)) ** 0.25
    return {
        "left": scale * uniform(model, left, inputs, model.rank),
        "right": scale * uniform(model, right, model.rank, outputs),
        "bias": jnp.zeros(outputs),
    }


def _apply(
    model: Mogrifier,
    params: Params,
    x: jax.Array,
    state: LSTMState,
    kept: jax.Array | None = None,
    updated: jax.Array | None = None,
    length: jax.Array | None = None,
) -> tuple[jax.Array, LSTMState]:
    of_state, of_update = _scaled(kept, model.keep_state), _scaled(updated, model.keep_update)
    if model.model_compatibility == "lamb" and model.keep_update is not None and model.input_gate != "free":
        of_update = LAMB_S_UPDATE if updated is None else jnp.where(updated, LAMB_S_UPDATE, 0)
    return mogrifier(x, params, state, model.input_gate, Limits(model.cell_clip, of_state, of_update, length))


def _scaled(kept: jax.Array | None, keep: jax.Array | float | None) -> jax.Array | None:
    return None if kept is None or keep is None else jnp.where(kept, 1 / keep, 0)


CELL = Cell(_init, zero_state, _apply, lambda model: model.recurrent_gates, change_recurrent)
