"""Flax NNX modules: `LSTM` with Flax's own parameters, and `LanguageModel` with jaxlm's."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.linen import read_rows, run
from jaxlm.models import stack
from jaxlm.models.noise import is_random
from jaxlm.models.recurrent import Params, Recurrent


class LSTM(nnx.RNN):
    """`nnx.RNN(nnx.OptimizedLSTMCell(E, H, rngs=rngs))`, faster.

    Parameters, outputs, carry and arguments of a call are the same.

    Options are `time_major`, `return_carry`, `reverse` and `keep_order`. Outputs beyond
    `seq_lengths` are undefined. Parameters (`cell.dense_i.kernel`, `cell.dense_h.kernel` and
    `cell.dense_h.bias`) load from one into the other both ways, by `nnx.update(module,
    nnx.state(other, nnx.Param))`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        cell = nnx.OptimizedLSTMCell(
            in_features, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        super().__init__(cell, rngs=False, **options)

    def __call__(self, inputs: jax.Array, *, rngs: Any = None, **options: Any) -> Any:
        """As `nnx.RNN` is called: maps inputs [..., T, E] to outputs [..., T, H]."""
        # `rngs` is for Flax's initial carry, which is zero.
        cell: Any = self.cell
        kernel = _gates(jnp.concatenate([cell.dense_i.kernel[...], cell.dense_h.kernel[...]]))
        return run(self, inputs, kernel, _gates(cell.dense_h.bias[...]), **options)


def _gates(columns: jax.Array) -> jax.Array:
    """Four blocks of columns from Flax's order i, f, g, o to i, j, f, o."""
    i, f, g, o = jnp.split(columns, 4, -1)
    return jnp.concatenate([i, g, f, o], -1)


class LanguageModel(nnx.Module):
    """A whole model for NNX, as in `LanguageModel(jaxlm.LSTM(vocab_size=10_000), rngs=...)`.

    `params` is jaxlm's own tree with an `nnx.Param` at each leaf; `tree()` returns the arrays.

    Args:
        params: in place of fresh ones, as `jaxlm.load(run).params`.
        deterministic: drops nothing and computes in float32, as an evaluation; `train()` and
            `eval()` change it.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        model: Recurrent,
        *,
        params: Params | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs,
    ):
        stack.check_dtype(model)
        params = stack.init_params(model, rngs.params()) if params is None else params
        self.model = nnx.static(model)
        self.deterministic = deterministic
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.rngs = rngs.dropout.fork() if is_random(model) else None

    def tree(self) -> Params:
        """The parameters as jaxlm has them."""
        return jax.tree.map(
            lambda leaf: leaf[...], self.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
        )

    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        **options: Any,
    ) -> tuple[stack.Carry, jax.Array]:
        """As `jaxlm.linen.LanguageModel` is called, but for `deterministic`."""
        key = None if self.rngs is None or self.deterministic else self.rngs()
        model = stack.exact(self.model) if self.deterministic else self.model
        return read_rows(model, self.tree(), key, tokens, targets, **options)
