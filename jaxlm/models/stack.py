"""The recurrent language model: an embedding, a stack of layers, and a head.

The parameter tree: `embedding` [V, E]; `layers`, a list with the parameters of each layer or block
    (`block.py`); `softmax`, the head's (`heads.py`); after blocks `norm` [H], and before them with
    `projection` `input_projection` [E, H]. `model` is the config's model, a pytree of its numbers.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.base.errors import JaxlmError
from jaxlm.models.block import apply_block, block_norm, init_block, zero_block_state
from jaxlm.models.heads import init_head
from jaxlm.models.noise import (
    Noise,
    drop_carry,
    drop_rows,
    drop_weights,
    drop_words,
    keep_of_output,
)
from jaxlm.models.recurrent import Params, Recurrent, State, uniform, zeros_of
from jaxlm.ops.dropout import apply_mask
from jaxlm.ops.embedding import Rows
from jaxlm.ops.product import product
from jaxlm.ops.scans import Length, Units

Carry = tuple[State, ...]
Embedded = Float[Array, "T B E"]


def init_params(model: Recurrent, key: PRNGKeyArray) -> Params:
    """Fresh parameters, uniform in +-init_scale; biases of layers are as their kind says.

    With `torch_init` the layers begin as PyTorch's, and the softmax's bias is zero.

    Args:
        model: The config's model.
        key: For all values.

    Returns:
        The tree of parameters.
    """
    widths = (model.embedding_size, *model.hidden_sizes)
    embedding_key, *layer_keys, kernel_key, bias_key = jax.random.split(
        key, len(model.hidden_sizes) + 3
    )
    params = {
        "embedding": uniform(
            embedding_key, model.init_scale, model.vocab_size, model.embedding_size
        ),
        "softmax": init_head(model, kernel_key, bias_key),
    }
    layers = []
    by_layer = zip(model.layers, layer_keys, widths, model.hidden_sizes, strict=False)
    for layer, layer_key, inputs, width in by_layer:
        if model.block == "plain":
            layers.append(layer.init_layer(layer_key, inputs, width))
        else:
            layers.append(init_block(layer, layer_key, width))
    if model.block != "plain":
        H = model.hidden_sizes[-1]
        params["norm"] = jnp.ones(H)
        if model.projection:
            projection_key = jax.random.fold_in(embedding_key, 0)
            params["input_projection"] = model.matrix(projection_key, model.embedding_size, H)
    return {**params, "layers": layers}


def zero_carry(
    model: Recurrent,
    batch_size: int,
    dtype: Any = jnp.float32,
) -> Carry:
    """The carry before the first token.

    Args:
        model: The config's model.
        batch_size: Rows B.
        dtype: The parameters' dtype.

    Returns:
        One state a layer.
    """
    zeros = zeros_of(batch_size, dtype)
    carry = []
    for layer, width in zip(model.layers, model.hidden_sizes, strict=True):
        if layer.block == "plain":
            carry.append(layer.zero_state(zeros, width))
        else:
            carry.append(zero_block_state(layer, zeros, width))
    return tuple(carry)


def embed(params: Params, tokens: Int[Array, "T B"]) -> Embedded:
    """Reads the embedding.

    Args:
        params: All parameters; in place of the embedding they may have the `Rows` read of it.
        tokens: Ids.

    Returns:
        The tokens' rows.
    """
    table = params["embedding"]
    if isinstance(table, Rows):
        return table.values
    return table[tokens]


def read(
    model: Recurrent,
    params: Params,
    noise: Noise,
    tokens: Int[Array, "T B"],
    carry: Carry,
    length: Length = None,
) -> tuple[Params, Units, Units, Carry]:
    """Reads a window of tokens.

    Args:
        model: The config's model.
        params: All parameters.
        noise: What the window keeps.
        tokens: Ids.
        carry: The carry after the window before.
        length: How many steps count, traced; None: all.

    Returns:
        The parameters that the head takes; then what `last_outputs` returns.
    """
    params = drop_rows(model, noise, params)
    x = drop_words(model, noise, embed(params, tokens), tokens).astype(model.compute_dtype)
    carry = drop_carry(noise, carry)
    return params, *last_outputs(model, params, noise, x, carry, length)


def features(
    model: Recurrent,
    params: Params,
    noise: Noise,
    x: Embedded,
    carry: Carry,
    length: Length = None,
) -> tuple[Units, Carry]:
    """What the head reads: the last layer's outputs, or a sum of all (`skip`, `running_sum`).

    After blocks it is the norm of the embedded input and all that the blocks have added to it.
    Dropout falls on the embedded input and on every layer's outputs (arXiv:1409.2329); on the
    recurrence only where the noise has masks for it.

    Args:
        model: The config's model.
        params: All parameters.
        noise: What the window keeps.
        x: Embedded tokens.
        carry: The carry before the first step.
        length: How many steps count, traced; None: all.

    Returns:
        The features, and the carry after the last step that counts.
    """
    return last_outputs(model, params, noise, x, carry, length)[1:]


def last_outputs(
    model: Recurrent,
    params: Params,
    noise: Noise,
    x: Embedded,
    carry: Carry,
    length: Length = None,
) -> tuple[Units, Units, Carry]:
    """Runs all layers: what the head reads, and the same before dropout falls on it.

    Args:
        model: The config's model.
        params: All parameters.
        noise: What the window keeps.
        x: Embedded tokens.
        carry: The carry before the first step.
        length: How many steps count, traced; None: all.

    Returns:
        The features before dropout; then what `features` returns.
    """
    dtype = x.dtype
    in_blocks = model.block != "plain"
    if model.scale_embedding:
        # In float32, where the root is exact; in bfloat16 it would be rounded.
        wide = x.astype(jnp.promote_types(dtype, jnp.float32))
        x = (wide * model.embedding_size**0.5).astype(dtype)
    x = apply_mask(x, noise.embedding, model.keep_embedding)
    if in_blocks:  # their sums are float32 or wider
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        if model.projection:
            x = product(x, params["input_projection"], dtype)
    raw = x
    outputs = []
    new_carry = []
    by_layer = zip(model.layers, params["layers"], carry, strict=True)
    for index, (kind, layer, state) in enumerate(by_layer):
        kept = noise.of_layer(index)
        layer = drop_weights(model, kept.weights, layer)
        if in_blocks:
            x, state = apply_block(kind, layer, x, state, kept, length, dtype)
        else:
            raw, state = kind.apply_layer(layer, x, state, kept, length)
            outputs.append(raw)
            if model.skip and index == len(carry) - 1:
                raw = sum(outputs[:-1], raw)
            dropped = apply_mask(raw, kept.output, keep_of_output(model, index))
            x = x + dropped if model.running_sum and index > 0 else dropped
        new_carry.append(state)
    if in_blocks:
        raw = block_norm(model, params["norm"], x).astype(dtype)
    elif model.running_sum:
        raw = x
    if model.drops_features:
        x = apply_mask(raw, noise.features, model.keep_last_output)
    return raw, x, tuple(new_carry)


def exact(model: Recurrent) -> Recurrent:
    """The model as evaluation runs it: in float32, whatever dtype training multiplied in."""
    return replace(model, compute_dtype="float32")


def check_dtype(model: Recurrent) -> None:
    """Raises JaxlmError for the compute_dtype `auto`, which only `jaxlm.train` resolves."""
    if model.compute_dtype == "auto":
        raise JaxlmError(
            "compute_dtype is auto, which jaxlm.train resolves: for a step of your own take "
            "float32 or bfloat16"
        )
