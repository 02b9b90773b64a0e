"""Flax modules over `ops/`: the parameters are Flax's own, the work is done by the fast ops."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxlm.ops.lstm import LSTMState, lstm

Carry = tuple[jax.Array, jax.Array]  # (c, h), each [..., H]


def LSTM(features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, **options: Any) -> nn.RNN:
    """`nn.RNN(nn.OptimizedLSTMCell(features), **options)`, faster: same parameters, outputs, carry and call arguments.

    The parameters are those of the cell, `{"ii": {"kernel"}, ..., "ho": {"kernel", "bias"}}`, under the name that Flax
    gives the cell: `cell` in a module of its own, `OptimizedLSTMCell_0` of the module around one that is made inline,
    within a compact `__call__`.

    Args:
        features: width H.
        dtype: what is computed in (default: promoted from inputs and parameters).
        param_dtype: of the parameters.
        **options: those of nn.RNN: `time_major`, `return_carry`, `reverse`, `keep_order`, `name`.
    Returns:
        The module, which maps inputs [..., T, E] to outputs [..., T, H], or to (carry, outputs) if `return_carry`.
        Outputs beyond the length of a sequence are undefined.
    """
    return _FastRNN(nn.OptimizedLSTMCell(features, dtype=dtype, param_dtype=param_dtype), **options)


class _FastRNN(nn.RNN):
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        cell: Any = self.cell
        time_major = self.time_major if time_major is None else time_major
        x = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
        key = jax.random.key(0) if init_key is None else init_key
        carry = cell.initialize_carry(key, x.shape[1:]) if initial_carry is None else initial_carry
        if self.is_initializing():
            cell(carry, x[0])  # makes the parameters, as nn.RNN's first step does
        gates = cell.variables["params"]
        kernel = jnp.block([[gates[side + gate]["kernel"] for gate in "igfo"] for side in "ih"])
        bias = jnp.concatenate([gates["h" + gate]["bias"] for gate in "igfo"])
        x = promote_dtype(x, kernel, dtype=cell.dtype)[0]
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        carry, y = run(x, kernel, bias, carry, seq_lengths, reverse, keep_order)
        y = y if time_major else jnp.moveaxis(y, 0, -2)
        return (carry, y) if (self.return_carry if return_carry is None else return_carry) else y


def run(
    x: jax.Array,  # [T, ..., E]
    kernel: jax.Array,  # [E + H, 4H], gates in the order i, g (or j), f, o
    bias: jax.Array,  # [4H]
    carry: Carry,
    lengths: jax.Array | None,  # steps of each sequence [...], behind which is padding; None: all T
    reverse: bool,
    keep_order: bool,
) -> tuple[Carry, jax.Array]:
    """Runs the op as Flax's RNN runs its cell: the carry after each sequence's last step, and the outputs [T, ..., H].

    With `reverse` it runs from the last step to the first; with `keep_order` too, outputs are in the inputs' order.
    """
    T, batch, H = len(x), x.shape[1:-1], len(bias) // 4
    x = x.reshape(T, -1, x.shape[-1])
    length = jnp.full(x.shape[1], T) if lengths is None else lengths.reshape(-1)
    flipped = ((jnp.arange(T)[::-1, None] + length) % T)[..., None]  # padding stays at the end
    x = jnp.take_along_axis(x, flipped, 0) if reverse else x
    if lengths is not None:
        # One more input, which is 1 in padding, shuts the gate i and opens f: the cell state c stays as it was.
        padding = (jnp.arange(T)[:, None] >= length).astype(x.dtype)
        x = jnp.concatenate([padding[..., None], x], -1)
        i, f = jnp.full(H, -1e4, kernel.dtype), jnp.full(H, 1e4, kernel.dtype)
        kernel = jnp.concatenate([jnp.concatenate([i, 0 * i, f, 0 * i])[None], kernel])
    c, h = (part.astype(kernel.dtype).reshape(-1, H) for part in carry)  # the op carries in the parameters' dtype
    y, final = lstm(x, kernel, bias, LSTMState(c, h))
    h = final.h if lengths is None else jnp.take_along_axis(y, (length - 1)[None, :, None], 0)[0].astype(final.h.dtype)
    y = jnp.take_along_axis(y, flipped, 0) if reverse and keep_order else y
    return (final.c.reshape(*batch, H), h.reshape(*batch, H)), y.reshape(T, *batch, H)
