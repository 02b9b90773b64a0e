"""xLSTM's sLSTM over time (Beck et al. 2024, arXiv:2405.04517), with stabilised exponential gates.

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width, `D` units of a head.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.ops.gates import sigmoid
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import Linear, recurrence


class SLSTMState(NamedTuple):
    """Cell and normaliser, each over exp(m), the stabiliser m, and the output h: [B, H] each."""

    c: jax.Array
    n: jax.Array
    m: jax.Array
    h: jax.Array


def slstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    state: SLSTMState,
    length: jax.Array | None = None,
) -> tuple[jax.Array, SLSTMState]:
    """Runs one sLSTM layer over time.

    Args:
        x: inputs [T, B, E].
        kernel, recurrent_kernel, bias: [E, 4H], [D, 4H] and [4H], gates in the order i, f, z, o.
        state: the carry.
        length: how many steps count, traced; the carry is that after them. None: all.

    Returns:
        h [T, B, H] and the new carry. Products multiply in x's dtype and sum in float32 or wider.
    """
    D = len(recurrent_kernel)
    of_heads = jnp.moveaxis(recurrent_kernel.reshape(D, 4, -1, D), 2, 0).reshape(-1, D, 4 * D)
    matrices = {str(head): matrix for head, matrix in enumerate(of_heads)}
    cell = partial(_cell, len(matrices))
    return recurrence(cell, product(x, kernel, x.dtype) + bias, matrices, None, state, length, x.dtype)


def _cell(heads: int, linear: Linear, state: SLSTMState, projected: jax.Array, _: None) -> tuple[SLSTMState, jax.Array]:
    c, n, m, h = state
    of_heads = [linear(str(head), part) for head, part in enumerate(jnp.split(h, heads, -1))]
    recurrent = jnp.stack(of_heads, 1).reshape(h.shape[0], heads, 4, -1).swapaxes(1, 2).reshape(projected.shape)
    i, f, z, o = jnp.split(projected + recurrent, 4, -1)
    f = jnp.where(n == 0, -jnp.inf, jax.nn.log_sigmoid(f) + m)  # before the first step there is nothing to keep
    m = lax.stop_gradient(jnp.maximum(i, f))  # it scales both sides of c / n, so that it has no gradient
    i, f = jnp.exp(i - m), jnp.exp(f - m)
    c, n = f * c + i * jnp.tanh(z), f * n + i
    h = sigmoid(o) * c / n
    return SLSTMState(c, n, m, h), h
