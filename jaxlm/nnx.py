"""Flax NNX modules over `ops/`: the parameters are Flax's own, the work is done by the fast ops."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from jaxlm.linen import Carry, run


class LSTM(nnx.Module):
    """`nnx.RNN(nnx.OptimizedLSTMCell(E, H, rngs=rngs))`, faster: the same parameters, the same output, the same carry.

    inputs [..., T, E] (or [T, ..., E] if time_major) -> outputs [..., T, H], after the carry (c, h), each [..., H], if
    return_carry. Outputs beyond `seq_lengths` are undefined. Parameters (`cell.dense_i.kernel`, `cell.dense_h.kernel`
    and `cell.dense_h.bias`) load from one into the other both ways, by
    `nnx.update(module, nnx.state(other, nnx.Param))`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.cell = nnx.OptimizedLSTMCell(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.time_major, self.return_carry = time_major, return_carry
        self.reverse, self.keep_order = reverse, keep_order

    def __call__(
        self, inputs: jax.Array, *, initial_carry: Carry | None = None, seq_lengths: jax.Array | None = None
    ) -> Any:
        inward, across, bias = self.cell.dense_i.kernel, self.cell.dense_h.kernel, self.cell.dense_h.bias
        assert bias is not None
        kernel, bias = _gates(jnp.concatenate([inward[...], across[...]])), _gates(bias[...])
        x = promote_dtype((inputs, kernel), dtype=self.cell.dtype)[0]
        x = x if self.time_major else jnp.moveaxis(x, -2, 0)
        zeros = jnp.zeros((*x.shape[1:-1], self.cell.hidden_features), kernel.dtype)
        carry, y = run(x, kernel, bias, initial_carry or (zeros, zeros), seq_lengths, self.reverse, self.keep_order)
        y = y if self.time_major else jnp.moveaxis(y, 0, -2)
        return (carry, y) if self.return_carry else y


def _gates(columns: jax.Array) -> jax.Array:
    """Four blocks of columns from Flax's order i, f, g, o to i, j, f, o."""
    i, f, g, o = jnp.split(columns, 4, -1)
    return jnp.concatenate([i, g, f, o], -1)
