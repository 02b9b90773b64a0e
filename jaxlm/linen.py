"""Flax modules over `ops/`: the parameters are Flax's own, the work is done by the fast ops."""

from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import linen as nn
    from flax.linen.dtypes import promote_dtype
except ModuleNotFoundError:
    raise ModuleNotFoundError("jaxlm.linen needs Flax: pip install 'jaxlm[flax]'") from None

from jaxlm.ops.lstm import LSTMState, lstm


class LSTM(nn.Module):
    """`nn.RNN(nn.OptimizedLSTMCell(features))`, faster: the same parameter tree, the same output, the same carry.

    Parameters load from one into the other both ways, as
    `{"params": {"cell": {"ii": {"kernel"}, ..., "ho": {"kernel", "bias"}}}}`. (A cell that a compact parent makes for
    nn.RNN is under the name that the parent gives it.) There is no argument for sequence lengths: mask the outputs.

    Attributes:
      features: width H.
      time_major: inputs are [T, ..., E] in place of [..., T, E], and outputs likewise.
      return_carry: return the carry too.
      reverse: run from the last step to the first.
      keep_order: with `reverse`, outputs are in the order of the inputs.
      dtype: what is computed in (default: promoted from inputs and parameters).
      param_dtype: of the parameters.
    """

    features: int
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, initial_carry: tuple[jax.Array, jax.Array] | None = None) -> Any:
        """Runs the layer over a sequence.

        Args:
          inputs: [..., T, E], or [T, ..., E] if time_major.
          initial_carry: (c, h), each [..., H] (default: zeros).

        Returns:
          Outputs [..., T, H], or (carry, outputs) if return_carry.
        """
        cell = nn.OptimizedLSTMCell(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="cell")
        x = inputs if self.time_major else jnp.moveaxis(inputs, -2, 0)
        carry = initial_carry
        if carry is None:
            carry = cell.initialize_carry(jax.random.key(0), x.shape[1:])
        if self.is_initializing():
            cell(carry, x[0])  # makes the parameters, as nn.RNN's first step does
        gates = cell.variables["params"]
        kernel = jnp.concatenate(
            [jnp.concatenate([gates[side + gate]["kernel"] for gate in "igfo"], -1) for side in "ih"]
        )
        bias = jnp.concatenate([gates["h" + gate]["bias"] for gate in "igfo"])
        x = promote_dtype(x, kernel, dtype=self.dtype)[0]
        c, h = (part.astype(kernel.dtype) for part in carry)  # the op sums and carries in the parameters' dtype

        if self.reverse:
            x = x[::-1]
        batch = x.shape[1:-1]
        state = LSTMState(c.reshape(-1, self.features), h.reshape(-1, self.features))
        y, final = lstm(x.reshape(len(x), -1, x.shape[-1]), kernel, bias, state)
        y = y.reshape(len(x), *batch, self.features)
        if self.reverse and self.keep_order:
            y = y[::-1]
        y = y if self.time_major else jnp.moveaxis(y, 0, -2)
        carry = (final.c.reshape(*batch, self.features), final.h.reshape(*batch, self.features))
        return (carry, y) if self.return_carry else y
