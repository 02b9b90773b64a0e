"""The gated recurrent unit over time, in the variant of cuDNN and PyTorch (Cho et al. 2014, arXiv:1406.1078).

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width. Gates in the order r, z, n:

    r, z = sigmoid(x W + h U + b)        n = tanh(x W_n + b_n + r * (h U_n + c_n))        h' = (1 - z) * n + z * h
"""

import jax
import jax.numpy as jnp

from jaxlm.ops.gates import sigmoid
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import Linear, recurrence


def gru(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    recurrent_bias: jax.Array,
    h: jax.Array,
    length: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs one GRU layer over time.

    Args:
        x: inputs [T, B, E].
        kernel, recurrent_kernel: [E, 3H] and [H, 3H], gates in the order r, z, n.
        bias: [3H]; recurrent_bias: [H], added to the candidate's recurrent part before its gate.
        h: the carry [B, H].
        length: how many steps count, traced; the carry is that after them. None: all.

    Returns:
        Outputs [T, B, H] and the new carry. Products multiply in x's dtype and sum in float32 or wider.
    """
    y, h = recurrence(
        _cell, product(x, kernel, x.dtype) + bias, {"state": recurrent_kernel}, recurrent_bias, h, length, x.dtype
    )
    return y.astype(x.dtype), h


def _cell(linear: Linear, h: jax.Array, projected: jax.Array, recurrent_bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    gates = 2 * h.shape[-1]
    (rz, n), (hrz, hn) = (jnp.split(part, [gates], -1) for part in (projected, linear("state", h)))
    r, z = jnp.split(sigmoid(rz + hrz), 2, -1)
    n = jnp.tanh(n + r * (hn + recurrent_bias))
    h = (1 - z) * n + z * h
    return h, h
