"""Flax modules: `LSTM`, whose parameters are those of Flax's own, and `LanguageModel`, whose parameters are jaxlm's."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.recurrent import flip_sequences
from jax import lax

from jaxlm.models import heads, stack
from jaxlm.models.noise import draw_noise, is_random
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.ops.lstm import LSTMState, lstm

LSTMCarry = tuple[jax.Array, jax.Array]  # (c, h), each [..., H]


def LSTM(
    features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, **options: Any
) -> nn.RNN:
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
        initial_carry: LSTMCarry | None = None,
        init_key: jax.Array | None = None,  # (Flax's own draws nothing by it either)
        seq_lengths: jax.Array | None = None,
        **options: bool | None,
    ) -> Any:
        cell: Any = self.cell
        if self.is_initializing():  # make the parameters, as nn.RNN's first step does
            cell(
                cell.initialize_carry(jax.random.key(0), inputs[..., 0, :].shape), inputs[..., 0, :]
            )
        gates = cell.variables["params"]
        kernel = jnp.block([[gates[side + gate]["kernel"] for gate in "igfo"] for side in "ih"])
        bias = jnp.concatenate([gates["h" + gate]["bias"] for gate in "igfo"])
        return run(self, inputs, kernel, bias, initial_carry, seq_lengths, **options)


def run(
    rnn: Any,
    inputs: jax.Array,
    kernel: jax.Array,  # [E + H, 4H], gates in the order i, g (or j), f, o
    bias: jax.Array,  # [4H]
    carry: LSTMCarry | None,  # None: zeros
    lengths: jax.Array | None,  # steps of each sequence [...], behind which is padding; None: all T
    time_major: bool | None = None,
    return_carry: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
) -> Any:
    """What Flax's RNN returns of its cell: the outputs, or with `return_carry` (the carry, the outputs).

    The carry is the one after each sequence's last step. Options that are None are those of the module `rnn`.
    """
    given = time_major, return_carry, reverse, keep_order
    own = rnn.time_major, rnn.return_carry, rnn.reverse, rnn.keep_order
    time_major, return_carry, reverse, keep_order = (
        b if a is None else a for a, b in zip(given, own, strict=True)
    )
    x = promote_dtype(inputs, kernel, dtype=rnn.cell.dtype)[0]
    x = x if time_major else jnp.moveaxis(x, -2, 0)
    kernel, bias = (
        part.astype(jnp.promote_types(part.dtype, jnp.float32)) for part in (kernel, bias)
    )
    T = len(x)
    batch = x.shape[1:-1]
    H = len(bias) // 4
    x = x.reshape(T, -1, x.shape[-1])
    lengths = None if lengths is None else lengths.reshape(-1)
    x = flip_sequences(x, lengths, 1, True) if reverse else x
    if lengths is not None:
        # One more input, which is 1 in padding, shuts the gate i and opens f: the cell state c stays as it was.
        padding = (jnp.arange(T)[:, None] >= lengths).astype(x.dtype)
        x = jnp.concatenate([padding[..., None], jnp.where(padding[..., None] > 0, 0, x)], -1)
        i = jnp.full(H, -1e4, kernel.dtype)
        f = jnp.full(H, 1e4, kernel.dtype)
        kernel = jnp.concatenate([jnp.concatenate([i, 0 * i, f, 0 * i])[None], kernel])
    state = (jnp.zeros((x.shape[1], H)),) * 2 if carry is None else carry
    state = LSTMState(
        *(part.astype(kernel.dtype).reshape(-1, H) for part in state)
    )  # (a wide dtype)
    y, end = lstm(x, kernel, bias, state)
    if lengths is not None:
        end = LSTMState(
            end.c, jnp.take_along_axis(y, (lengths - 1)[None, :, None], 0)[0].astype(end.h.dtype)
        )
    y = (flip_sequences(y, lengths, 1, True) if reverse and keep_order else y).reshape(T, *batch, H)
    y = y if time_major else jnp.moveaxis(y, 0, -2)
    if return_carry:
        return ((end.c.reshape(*batch, H), end.h.reshape(*batch, H)), y)
    return y


class LanguageModel(nn.Module):
    """A whole model of any kind and head: `LanguageModel(jaxlm.LSTM(vocab_size=10_000))`.

    `variables["params"]` is jaxlm's own tree, both ways: that of `jaxlm.init_params` and of `jaxlm.load(run).params`.
    Dropout draws from the rng stream `dropout`, its full share from the start.
    """

    model: Recurrent

    def setup(self) -> None:
        stack.check_dtype(self.model)
        if self.is_initializing():
            for name, part in stack.init_params(self.model, self.make_rng("params")).items():
                self.param(name, lambda _, part=part: part)

    def __call__(
        self,
        tokens: jax.Array,
        targets: jax.Array | None = None,
        *,
        initial_carry: stack.Carry | None = None,
        seq_lengths: jax.Array | None = None,
        deterministic: bool = False,
    ) -> tuple[stack.Carry, jax.Array]:
        """Reads a window.

        Args:
            tokens, targets: [B, T].
            initial_carry: one state a layer; None: zeros.
            seq_lengths: steps of each row that count [B], at least 1; None: all.
            deterministic: drops nothing and computes in float32, as an evaluation.

        Returns:
            The carry after the steps that count (with `seq_lengths`, without a gradient); and logits [B, T, V] in the
            parameters' dtype (of a mixture, log p), or where there are targets the sum of their nats (with
            `sampled_words`, unless deterministic, an estimate), for which no logits are held in memory.
        """
        drops = is_random(self.model) and not deterministic and not self.is_initializing()
        key = self.make_rng("dropout") if drops else None
        params = dict(self.variables["params"])
        model = stack.exact(self.model) if deterministic else self.model
        return read_rows(model, params, key, tokens, targets, initial_carry, seq_lengths)


def read_rows(
    model: Recurrent,
    params: Params,
    key: jax.Array | None,
    tokens: jax.Array,
    targets: jax.Array | None,
    carry: stack.Carry | None,
    lengths: jax.Array | None,
) -> tuple[stack.Carry, jax.Array]:
    """`LanguageModel.__call__`; `key` is of the noise."""
    B, T = tokens.shape
    noise = draw_noise(model, key, T, B)
    carry = stack.zero_carry(model, B, params["embedding"].dtype) if carry is None else carry
    kept, _, features, after = stack.read(model, params, noise, tokens.T, carry)

    def after_row(
        params: Params, carry: stack.Carry, row: jax.Array, length: jax.Array
    ) -> stack.Carry:
        def of_row(tree: Any, axis: int) -> Any:
            return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, row, 1, axis), tree)

        axes = {"embedding": 1, "outputs": 1, "states": 0, "updates": 0, "carry": 0}
        one = replace(
            noise, **{name: of_row(getattr(noise, name), axis) for name, axis in axes.items()}
        )
        *_, new = stack.read(model, params, one, of_row(tokens.T, 1), of_row(carry, 0), length)
        return jax.tree.map(lambda leaf: leaf[0], new)

    if lengths is not None:
        rows = jax.vmap(after_row, (None, None, 0, 0))
        after = rows(*lax.stop_gradient((params, carry)), jnp.arange(B), lengths)
    if targets is None:
        logits = heads.logits(
            model, kept, features.astype(params["embedding"].dtype), noise.latents
        )
        return after, jnp.moveaxis(logits, 0, 1)
    weights = None if lengths is None else (jnp.arange(T)[:, None] < lengths).astype(jnp.float32)
    return after, heads.summed_nats(
        model, kept, features, targets.T, weights, noise.latents, noise.drawn
    )
