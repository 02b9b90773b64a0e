"""The LSTM over time by NVIDIA's cuDNN: the signature and the numbers of `ops.lstm.lstm`, on CUDA devices only."""

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from jaxlm.ops.lstm import LSTMState


def lstm_cudnn(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    state: LSTMState,
    forget_bias: jax.Array | float = 0.0,
    length: jax.Array | None = None,
) -> tuple[jax.Array, LSTMState]:
    """Runs one LSTM layer over time on a CUDA device, in float32.

    cuDNN takes [B, T, E], its gates in the order i, f, j, o, kernels transposed and flattened, and two biases.

    Args:
      x: inputs [T, B, E].
      kernel: [E + H, 4H], gates in the order i, j, f, o.
      bias: [4H].
      state: the carry, c and h [B, H].
      forget_bias: added to the forget gate before its sigmoid.
      length: how many steps count, traced; the carry is that after them, and later outputs are zero. None: all.

    Returns:
      Outputs [T, B, H] and the new carry.
    """
    (T, B, E), H = x.shape, state.h.shape[-1]

    def in_its_order(gates: jax.Array) -> jax.Array:
        i, j, f, o = jnp.split(gates, 4, -1)
        return jnp.concatenate([i, f + forget_bias if gates.ndim == 1 else f, j, o], -1)

    weights = jnp.concatenate(
        [
            in_its_order(kernel[:E]).T.ravel(),
            in_its_order(kernel[E:]).T.ravel(),
            in_its_order(bias),
            jnp.zeros_like(bias),
        ]
    )
    y, h, c = rnn.lstm(
        jnp.swapaxes(x, 0, 1),
        state.h[None],
        state.c[None],
        weights,  # pyright: ignore
        jnp.full(B, T if length is None else length, jnp.int32),
        input_size=E,
        hidden_size=H,
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
    )
    return jnp.swapaxes(y, 0, 1), LSTMState(c=c[0], h=h[0])
