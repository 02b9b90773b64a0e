"""The LSTM over time: a plain reference, and the same function with a derivative of its own.

Letters: `T` steps, `B` batch, `E` input width, `H` hidden width. The cell is TensorFlow's
BasicLSTMCell (Zaremba et al. 2014, arXiv:1409.2329), its gates in the order i, j, f, o:

    c' = c * sigmoid(f + forget_bias) + sigmoid(i) * tanh(j)        h' = tanh(c') * sigmoid(o)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Scalar

from jaxlm.ops.activations import activated
from jaxlm.ops.devices import check_array
from jaxlm.ops.dropout import Kept, apply_mask
from jaxlm.ops.product import columns_times_rows, product
from jaxlm.ops.scans import Hidden, Inputs, Length, Units, last_step, scan

Kernel = Float[Array, "E+H 4*H"]
Bias = Float[Array, " 4*H"]


class LSTMState(NamedTuple):
    """The carry of one layer.

    Attributes:
        c: The cell.
        h: The output.
    """

    c: Hidden
    h: Hidden


def lstm_reference(
    x,
    kernel,
    bias,
    state,
    forget_bias=0.0,
    kept=None,
    keep=None,
):
    """`lstm` written plainly: a scan of the cell, differentiated by JAX. All steps count.

    Args:
        x: As the other arguments, what `lstm` takes.
        kernel: Gates in the order i, j, f, o.
        bias: Likewise.
        state: The carry before the first step.
        forget_bias: Added to the forget gate before its sigmoid.
        kept: Which units of h the gates read.
        keep: The probability that a unit is kept.

    Returns:
        The outputs, and the new carry.
    """

    def cell(state, x):
        inputs = jnp.concatenate([x, apply_mask(state.h, kept, keep)], -1)
        i, j, f, o = jnp.split(inputs @ kernel + bias, 4, -1)
        c = state.c * jax.nn.sigmoid(f + forget_bias) + jax.nn.sigmoid(i) * jnp.tanh(j)
        h = jnp.tanh(c) * jax.nn.sigmoid(o)
        return LSTMState(c, h), h

    _check_shapes(x, kernel, bias, state)
    final, h = lax.scan(cell, state, x)
    return h, final


def lstm(
    x: Inputs,
    kernel: Kernel,
    bias: Bias,
    state: LSTMState,
    forget_bias: Scalar | float = 0.0,
    length: Length = None,
    kept: Kept = None,
    keep: Scalar | float | None = None,
) -> tuple[Units, LSTMState]:
    """Runs one LSTM layer over time, fast.

    Whatever does not depend on the step before is computed for all steps at once, outside the
    scans: the input projection, the gates' derivatives, the gradients of kernel, bias and input.
    The backward scan carries only (dc, dh); differentiating a scan would add a kernel-sized array
    at each step.

    Args:
        x: The inputs. In bfloat16 the products multiply bfloat16 and sum in float32, and the
            outputs are bfloat16; the carry and all gradients except that of x keep the parameters'
            dtype.
        kernel: Gates in the order i, j, f, o; rows of x, then of h.
        bias: Gates in the order i, j, f, o.
        state: The carry before the first step.
        forget_bias: Added to the forget gate before its sigmoid.
        length: How many steps count. Where it is given the new carry has no gradients.
        kept: Which units of h the gates read, the same at all steps (Gal and Ghahramani 2016,
            arXiv:1512.05287). Outputs and carry have all units. None: the gates read all.
        keep: The probability that a unit is kept; the units read are divided by it.

    Returns:
        The outputs, and the new carry.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    >>> T, B, E, H = 20, 4, 3, 2
    >>> kernel, bias, h = jnp.zeros((E + H, 4 * H)), jnp.zeros(4 * H), jnp.zeros((B, H))
    >>> y, carry = lstm(jnp.ones((T, B, E)), kernel, bias, LSTMState(c=h, h=h))
    >>> y.shape, carry.c.shape
    ((20, 4, 2), (4, 2))
    """
    _check_shapes(x, kernel, bias, state)
    return _lstm(x, kernel, bias, state, jnp.asarray(forget_bias, bias.dtype), length, kept, keep)


def _forward(
    x,
    kernel,
    bias,
    state,
    forget_bias,
    length,
    kept,
    keep,
):
    H = state.h.shape[-1]
    gate_bias = bias.at[2 * H : 3 * H].add(forget_bias)

    def activate(state, z):
        gates = activated(z, 4, 1)
        i, j, f, o = jnp.split(gates, 4, -1)
        c = state.c * f + i * j
        h = jnp.tanh(c) * o
        return LSTMState(c, h), (h, c, gates)

    if len(x) == 1:  # the whole kernel at once: splitting would copy it, which costs more
        inputs = jnp.concatenate([x[0], apply_mask(state.h, kept, keep).astype(x.dtype)], -1)
        final, outputs = activate(state, product(inputs, kernel, x.dtype) + gate_bias)
        h, c, gates = (output[None] for output in outputs)
    else:
        # Cast once, not at each step.
        kernel_x, kernel_h = jnp.split(kernel.astype(x.dtype), [x.shape[-1]])

        def cell(state, projected):
            h = apply_mask(state.h, kept, keep)
            return activate(state, projected + product(h, kernel_h, x.dtype))

        final, (h, c, gates) = scan(cell, state, product(x, kernel_x, x.dtype) + gate_bias)
    if length is not None:
        final = last_step(LSTMState(c, h), length)
    return (h.astype(x.dtype), final), (x, kernel, state, h, c, gates, length, kept, keep)


def _backward(saved, cotangents):
    """The gradient of each argument of `_lstm`.

    The slopes are the derivatives of c and h: of c by the gates i, j and f before their
    activations, of h by o (`gate_slopes`), and of h by c (`cell_slope`).
    """
    x, kernel, state, h, c, gates, length, kept, keep = saved
    dy, dfinal = cotangents
    if length is not None:
        dfinal = jax.tree.map(jnp.zeros_like, dfinal)
    kernel_x, kernel_h = jnp.split(kernel.astype(x.dtype), [x.shape[-1]])
    c_before = jnp.concatenate([state.c[None], c[:-1]])
    h_read = apply_mask(jnp.concatenate([state.h[None], h[:-1]]), kept, keep)

    i, j, f, o = jnp.split(gates, 4, -1)
    tanh_c = jnp.tanh(c)
    gate_slopes = jnp.concatenate(
        [j * i * (1 - i), i * (1 - j * j), c_before * f * (1 - f), tanh_c * o * (1 - o)], -1
    )
    cell_slope = o * (1 - tanh_c * tanh_c)

    def cell(carry, step):
        dc, dh = carry
        dy, gate_slopes, cell_slope, f = step
        dh = dh + dy
        dc = dc + dh * cell_slope
        dz = jnp.concatenate([dc, dc, dc, dh], -1) * gate_slopes
        return (dc * f, apply_mask(product(dz, kernel_h, x.dtype, transposed=True), kept, keep)), dz

    (dc, dh), dz = scan(
        cell, (dfinal.c, dfinal.h), (dy.astype(c.dtype), gate_slopes, cell_slope, f), reverse=True
    )

    # The concatenation writes the transposes out, as the fast product wants its first factor.
    inputs = jnp.concatenate([jnp.moveaxis(a, -1, 0).astype(x.dtype) for a in (x, h_read)])
    dkernel = columns_times_rows(inputs, dz, x.dtype)
    dbias = dz.sum((0, 1))
    H = h.shape[-1]
    dx = product(dz, kernel_x, x.dtype, transposed=True).astype(x.dtype)
    return dx, dkernel, dbias, LSTMState(dc, dh), dbias[2 * H : 3 * H].sum(), None, None, None


_lstm = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0])
_lstm.defvjp(_forward, _backward)


def _check_shapes(
    x,
    kernel,
    bias,
    state,
):
    if x.ndim != 3 or state.h.ndim != 2:
        raise ValueError(
            "x should be [T, B, E] and state.h [B, H]; "
            f"their shapes are {x.shape} and {state.h.shape}"
        )
    _, B, E = x.shape
    H = state.h.shape[-1]
    check_array("x", x, x.shape)
    check_array("state.c", state.c, (B, H))
    check_array("state.h", state.h, (B, H))
    check_array("kernel", kernel, (E + H, 4 * H))
    check_array("bias", bias, (4 * H,))
