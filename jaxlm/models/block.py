"""What may stand around a layer's cell: a residual block.

    n = norm(x)        x' = x + drop(cell(n))        x'' = x' + drop(feed_forward(norm(x')))

With `convolution` the cell reads c = SiLU(the last steps of n, convolved), and n beside c if its
kind `reads_both`. With `inner_size` the cell has another width than x, and a matrix takes its
outputs to x's. A gated block projects up before the cell (Beck et al. 2024, arXiv:2405.04517):

    u = n W_up        y = cell(c)        x' = x + drop(((y + skip * c) * SiLU(n W_gate)) W_down)

where c is u convolved, or else u. The sums are float32 or wider, whatever products multiply in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.models.recurrent import LayerNoise, Params, Recurrent, State, Zeros, uniform
from jaxlm.ops.activations import gelu, layer_norm, rms_norm
from jaxlm.ops.dropout import apply_mask
from jaxlm.ops.product import product
from jaxlm.ops.scans import Length, short_convolution

Stream = Float[Array, "T B H"]

# The matrices of a block, each of one gate.
KERNELS = ("up_kernel", "gate_kernel", "down_kernel")
_ACTIVATIONS = {
    "swiglu": jax.nn.silu,
    "silu": jax.nn.silu,
    "geglu": gelu,
    "gelu": gelu,
    "geglu-tanh": jax.nn.gelu,
}


class BlockState(NamedTuple):
    """The cell's carry, and the last inputs of the convolution (None: there is none)."""

    cell: State
    inputs: Float[Array, "B _ U"] | None


def init_block(
    model: Recurrent,
    key: PRNGKeyArray,
    width: int,
) -> Params:
    """A block's fresh parameters.

    Args:
        model: The config's model.
        key: For the initial values.
        width: Width H of what the block reads and returns.

    Returns:
        `cell`, the parameters of the kind's layer; `norm` [H]; and what the fields ask for:
        `convolution` [K, C] and `convolution_bias` [C]; the matrices `up_kernel` and `gate_kernel`
        [H, U], `skip` [U] and `down_kernel` [U, H]; `feed_forward`, a dict.
    """
    of_cell, of_feed_forward, of_convolution, *keys = jax.random.split(key, 6)
    U = model.inner_size or width
    C = _width_of_c(model, width)
    cell_inputs = 2 * C if model.convolution and model.reads_both else C
    block: Params = {"norm": jnp.ones(width), "cell": model.init_layer(of_cell, cell_inputs, U)}
    shapes = {}
    if model.block == "gated":
        shapes = {"up_kernel": (width, U), "gate_kernel": (width, U)}
        block["skip"] = jnp.ones(U)
    if model.block == "gated" or model.inner_size:
        shapes["down_kernel"] = (U, width)
    block |= _matrices(model, keys, shapes)
    if model.convolution:
        K = model.convolution
        block["convolution"] = uniform(of_convolution, K**-0.5, K, C)  # as PyTorch's
        block["convolution_bias"] = jnp.zeros(C)
    if model.feed_forward_size:
        block["feed_forward"] = _init_feed_forward(model, of_feed_forward, width)
    return block


def _init_feed_forward(
    model: Recurrent,
    key: PRNGKeyArray,
    width: int,
) -> Params:
    """The parameters of a feed-forward layer: a norm, and matrices with their biases."""
    F = model.feed_forward_size
    shapes = {"up_kernel": (width, F), "down_kernel": (F, width)}
    biases = {"up_bias": jnp.zeros(F), "down_bias": jnp.zeros(width)}
    if "glu" in model.activation:
        shapes["gate_kernel"] = (width, F)
        biases["gate_bias"] = jnp.zeros(F)
    matrices = _matrices(model, list(jax.random.split(key, 3)), shapes)
    return {"norm": jnp.ones(width), **matrices, **biases}


def _matrices(
    model: Recurrent,
    keys: list[PRNGKeyArray],
    shapes: dict[str, tuple[int, int]],
) -> Params:
    """A fresh matrix of each shape, by name; there may be more keys than shapes."""
    return {
        name: model.matrix(key, *shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }


def _width_of_c(model: Recurrent, width: int) -> int:
    """The width C of c, which the convolution makes, or which is u."""
    if model.block == "gated":
        return model.inner_size or width
    return width


def zero_block_state(
    model: Recurrent,
    zeros: Zeros,
    width: int,
) -> BlockState:
    """A block's carry before the first token.

    Args:
        model: The config's model.
        zeros: As `Recurrent.zero_state` takes it.
        width: Width H of the block.

    Returns:
        Arrays of zeros [B, ...].
    """
    inputs = None
    if model.convolution:
        inputs = zeros(model.convolution - 1, _width_of_c(model, width))
    return BlockState(model.zero_state(zeros, model.inner_size or width), inputs)


def apply_block(
    model: Recurrent,
    params: Params,
    x: Stream,
    state: BlockState,
    noise: LayerNoise,
    length: Length,
    dtype: Any,
) -> tuple[Stream, BlockState]:
    """Runs a block over a whole sequence.

    Args:
        model: The config's model.
        params: As `init_block` makes them.
        x: What all blocks before have added up, in float32 or wider.
        state: The carry before the first step.
        noise: What the window keeps.
        length: How many steps count, traced; None: all.
        dtype: What products multiply in.

    Returns:
        x and what the block adds to it, and the carry after the last step that counts.
    """
    n = block_norm(model, params["norm"], x)
    u = n
    if model.block == "gated":
        u = product(n, params["up_kernel"], dtype)
    c = u
    cell_inputs = c
    inputs = state.inputs
    if inputs is not None:
        u = u.astype(inputs.dtype)
        kernel = params["convolution"]
        convolved, inputs = short_convolution(u, kernel, params["convolution_bias"], inputs, length)
        c = jax.nn.silu(convolved)
        cell_inputs = jnp.concatenate([c, u], -1) if model.reads_both else c
    cell_inputs = cell_inputs.astype(dtype)
    y, cell = model.apply_layer(params["cell"], cell_inputs, state.cell, noise, length)
    if model.block == "gated":
        gate = jax.nn.silu(product(n, params["gate_kernel"], dtype))
        y = (y + params["skip"] * c) * gate
    if "down_kernel" in params:
        y = product(y, params["down_kernel"], dtype)
    x = x + apply_mask(y.astype(x.dtype), noise.output, model.keep_output)
    if model.feed_forward_size:
        y = _feed_forward(model, params["feed_forward"], x, dtype)
        x = x + apply_mask(y.astype(x.dtype), noise.feed_forward, model.keep_output)
    return x, BlockState(cell, inputs)


def _feed_forward(
    model: Recurrent,
    params: Params,
    x: Stream,
    dtype: Any,
) -> Stream:
    """What a block's feed-forward layer adds to x."""
    n = block_norm(model, params["norm"], x)
    act = _ACTIVATIONS[model.activation]
    up = product(n, params["up_kernel"], dtype) + params["up_bias"]
    if "gate_kernel" in params:
        up = act(product(n, params["gate_kernel"], dtype) + params["gate_bias"]) * up
    else:
        up = act(up)
    return product(up, params["down_kernel"], dtype) + params["down_bias"]


def block_norm(
    model: Recurrent,
    factors: Float[Array, " H"],
    x: Stream,
) -> Stream:
    """Normalises as the field `block_norm` says.

    Args:
        model: The config's model.
        factors: Of the normalised units.
        x: What all blocks before have added up.

    Returns:
        The normalised vectors.
    """
    if model.block_norm == "layer":
        return factors * layer_norm(x)
    return factors * rms_norm(x, 1e-6)
