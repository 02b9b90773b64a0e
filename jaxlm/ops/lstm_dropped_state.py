"""The LSTM whose gates do not read some units of h, the same ones at all steps (Gal and Ghahramani 2016).

Letters and gates as in `ops/lstm.py`. Written plainly and differentiated by JAX: a mask differs from row to row, so
that no kernel can take it up.
"""

import jax
import jax.numpy as jnp

from jaxlm.ops.bounded_scan import bounded_scan
from jaxlm.ops.dropout import apply_mask
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.product import product


def lstm_with_dropped_state(x: jax.Array, kernel: jax.Array, bias: jax.Array, state: LSTMState,
                            forget_bias: jax.Array | float, kept: jax.Array, keep: jax.Array | float | None,
                            length: jax.Array | None = None) -> tuple[jax.Array, LSTMState]:
    """Runs one LSTM layer over time.

    Args:
      x: inputs [T, B, E].
      kernel: [E + H, 4H], gates in the order i, j, f, o.
      bias: [4H].
      state: the carry, c and h [B, H].
      forget_bias: added to the forget gate before its sigmoid.
      kept: bool [B, H], which units of h the gates read; outputs and carry have all.
      keep: the probability with which they were kept; those read are divided by it.
      length: how many steps count, traced; the carry is that after them. None: all.

    Returns:
      Outputs [T, B, H] and the new carry.
    """
    kernel_x, kernel_h = jnp.split(kernel, [x.shape[-1]])

    def cell(state: LSTMState, projected: jax.Array) -> tuple[LSTMState, jax.Array]:
        z = projected + product(apply_mask(state.h, kept, keep), kernel_h, x.dtype)
        i, j, f, o = jnp.split(z, 4, -1)
        c = state.c * jax.nn.sigmoid(f + forget_bias) + jax.nn.sigmoid(i) * jnp.tanh(j)
        h = jnp.tanh(c) * jax.nn.sigmoid(o)
        return LSTMState(c, h), h

    final, h = bounded_scan(cell, state, product(x, kernel_x, x.dtype) + bias, length)
    return h.astype(x.dtype), final
