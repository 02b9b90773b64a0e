"""Flax modules: `LSTM` with Flax's own parameters, and `LanguageModel` with jaxlm's."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.recurrent import flip_sequences
from jax import lax

from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, draw_noise, is_random
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.ops.lstm import LSTMState, lstm

LSTMCarry = tuple[jax.Array, jax.Array]  # (c, h), each [..., H]
# A gate that is shut or open whatever else it reads.
_SHUT = -1e4
_OPEN = 1e4


def LSTM(
    features: int,
    *,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    **options: Any,
) -> nn.RNN:
    """`nn.RNN(nn.OptimizedLSTMCell(features), **options)`, faster.

    Parameters, outputs, carry and arguments of a call are the same. The parameters are those of the
    cell, `{"ii": {"kernel"}, ..., "ho": {"kernel", "bias"}}`, under the name that Flax gives the
    cell: `cell` in a module of its own; `OptimizedLSTMCell_0` of the module around one that is made
    inline, within a compact `__call__`.

    Args:
        features: Width H.
        dtype: What is computed in; None: promoted from inputs and parameters.
        param_dtype: Of the parameters.
        **options: Those of nn.RNN: `time_major`, `return_carry`, `reverse`, `keep_order`, `name`.

    Returns:
        The module, which maps inputs [..., T, E] to outputs [..., T, H], or to (carry, outputs) if
        `return_carry`. Outputs beyond the length of a sequence are undefined.
    """
    return _FastRNN(nn.OptimizedLSTMCell(features, dtype=dtype, param_dtype=param_dtype), **options)


class _FastRNN(nn.RNN):
    def __call__(
        self,
        inputs: jax.Array,
        *,
        init_key: Any = None,
        **options: Any,
    ) -> Any:
        # Flax's own module draws nothing by `init_key` either.
        cell: Any = self.cell
        if self.is_initializing():  # make the parameters, as nn.RNN's first step does
            first = inputs[..., 0, :]
            cell(cell.initialize_carry(jax.random.key(0), first.shape), first)
        gates = cell.variables["params"]
        kernel = jnp.block([[gates[side + gate]["kernel"] for gate in "igfo"] for side in "ih"])
        bias = jnp.concatenate([gates["h" + gate]["bias"] for gate in "igfo"])
        return run(self, inputs, kernel, bias, **options)


def run(
    rnn: Any,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    initial_carry: LSTMCarry | None = None,
    seq_lengths: jax.Array | None = None,
    **options: bool | None,
) -> Any:
    """Runs an LSTM as Flax's RNN runs its cell.

    Args:
        rnn: The module, which has a cell and the options of nn.RNN.
        inputs: [..., T, E], or [T, ..., E] with `time_major`.
        kernel: [E + H, 4H], gates in the order i, g (or j), f, o.
        bias: [4H].
        initial_carry: Before the first step; None: zeros.
        seq_lengths: Steps of each sequence [...], behind which is padding; None: all T.
        **options: `time_major`, `return_carry`, `reverse` and `keep_order`; None: the module's.

    Returns:
        The outputs, or with `return_carry` (the carry after each sequence's last step, outputs).
    """

    def option(name: str) -> bool:
        value = options.pop(name, None)
        if value is None:
            return getattr(rnn, name)
        return value

    time_major = option("time_major")
    return_carry = option("return_carry")
    reverse = option("reverse")
    keep_order = option("keep_order")
    if options:
        raise TypeError(f"unexpected keyword arguments: {', '.join(options)}")
    x = promote_dtype(inputs, kernel, dtype=rnn.cell.dtype)[0]
    if not time_major:
        x = jnp.moveaxis(x, -2, 0)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel = kernel.astype(wide)
    T, *batch, E = x.shape
    H = len(bias) // 4
    x = x.reshape(T, -1, E)
    lengths = None if seq_lengths is None else seq_lengths.reshape(-1)
    if reverse:
        x = flip_sequences(x, lengths, 1, True)
    if lengths is not None:
        # One more input, which is 1 in padding, shuts the gate i and opens f, which keeps c.
        padding = (jnp.arange(T)[:, None] >= lengths).astype(x.dtype)[..., None]
        x = jnp.concatenate([padding, jnp.where(padding > 0, 0, x)], -1)
        unread = jnp.zeros(H, wide)
        row = jnp.concatenate([unread + _SHUT, unread, unread + _OPEN, unread])
        kernel = jnp.concatenate([row[None], kernel])
    if initial_carry is None:
        zeros = jnp.zeros((x.shape[1], H))
        initial_carry = (zeros, zeros)
    c, h = (state.astype(wide).reshape(-1, H) for state in initial_carry)
    y, (c, h) = lstm(x, kernel, bias.astype(wide), LSTMState(c, h))
    if lengths is not None:
        last = jnp.take_along_axis(y, (lengths - 1)[None, :, None], 0)[0]
        h = last.astype(h.dtype)
    if reverse and keep_order:
        y = flip_sequences(y, lengths, 1, True)
    y = y.reshape(T, *batch, H)
    if not time_major:
        y = jnp.moveaxis(y, 0, -2)
    if return_carry:
        return (c.reshape(*batch, H), h.reshape(*batch, H)), y
    return y


class LanguageModel(nn.Module):
    """A whole model of any kind and head: `LanguageModel(jaxlm.LSTM(vocab_size=10_000))`.

    `variables["params"]` is jaxlm's own tree, both ways: that of `jaxlm.init_params` and of
    `jaxlm.load(run).params`. Dropout draws from the rng stream `dropout`, its full share from the
    start.

    Attributes:
        model: The kind of model and its fields.
    """

    model: Recurrent

    def setup(self) -> None:
        """Makes fresh parameters where Flax initialises the module."""
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
            tokens: Ids [B, T].
            targets: Ids [B, T]; None: logits are wanted.
            initial_carry: One state a layer; None: zeros.
            seq_lengths: Steps of each row that count [B], at least 1; None: all.
            deterministic: Whether it drops nothing and computes in float32, as an evaluation.

        Returns:
            The carry after the steps that count (with `seq_lengths`, without a gradient); and
            logits [B, T, V] in the parameters' dtype (of a mixture, log p), or where there are
            targets the sum of their nats (with `sampled_words`, unless deterministic, an estimate),
            for which no logits are held in memory.
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
    initial_carry: stack.Carry | None = None,
    seq_lengths: jax.Array | None = None,
) -> tuple[stack.Carry, jax.Array]:
    """Reads a window, as `LanguageModel` is called.

    Args:
        model: The config's model.
        params: All parameters.
        key: Of the noise; None: nothing is dropped.
        tokens: Ids [B, T].
        targets: Ids [B, T]; None: logits are wanted.
        initial_carry: One state a layer; None: zeros.
        seq_lengths: Steps of each row that count [B]; None: all.

    Returns:
        What `LanguageModel` returns.
    """
    B, T = tokens.shape
    noise = draw_noise(model, key, T, B)
    if initial_carry is None:
        initial_carry = stack.zero_carry(model, B, params["embedding"].dtype)
    dropped_params, _, features, after = stack.read(model, params, noise, tokens.T, initial_carry)
    weights = None
    if seq_lengths is not None:
        after = _carry_after(model, params, noise, tokens.T, initial_carry, seq_lengths)
        weights = (jnp.arange(T)[:, None] < seq_lengths).astype(jnp.float32)
    if targets is None:
        wide = features.astype(params["embedding"].dtype)
        logits = heads.logits(model, dropped_params, wide, noise.latents)
        return after, jnp.moveaxis(logits, 0, 1)
    return after, heads.summed_nats(
        model, dropped_params, features, targets.T, weights, noise.latents, noise.drawn
    )


def _carry_after(
    model: Recurrent,
    params: Params,
    noise: Noise,
    tokens: jax.Array,
    carry: stack.Carry,
    lengths: jax.Array,
) -> stack.Carry:
    """The carry after the steps that count, without a gradient: each row is read alone."""
    params, carry = lax.stop_gradient((params, carry))

    def by_row(tree, axis):
        """Arrays [B, ...] of batches of one row each."""
        return jax.tree.map(
            lambda leaf: jnp.moveaxis(jnp.expand_dims(leaf, axis), axis + 1, 0), tree
        )

    def after_row(
        masks,
        tokens,
        carry,
        length,
    ):
        row_noise = replace(noise, **masks)
        *_, after = stack.read(model, params, row_noise, tokens, carry, length)
        return jax.tree.map(lambda leaf: leaf[0], after)

    axes = {"states": 0, "updates": 0, "carry": 0}
    axes |= dict.fromkeys(("embedding", "outputs", "feed_forwards", "features"), 1)
    masks = {name: by_row(getattr(noise, name), axis) for name, axis in axes.items()}
    return jax.vmap(after_row)(masks, by_row(tokens, 1), by_row(carry, 0), lengths)
