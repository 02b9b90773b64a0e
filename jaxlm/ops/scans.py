"""Over time: scans, also over padded steps; linear recurrences; short convolutions.

Letters: `T` steps, `B` batch, `H` units, `K` taps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Scalar

from jaxlm.ops.devices import by_platform

# Steps in one turn of a loop on accelerators: it halves the kernels of a step (docs/devices.md).
# CPUs gain nothing.
UNROLLED = 5

Inputs = Float[Array, "T B E"]
Units = Float[Array, "T B H"]
Hidden = Float[Array, "B H"]  # of one step
# How many steps count, at least 1: the new carry is the one after them. None: all.
Length = Scalar | None


def scan(
    cell: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    steps: Any,
    length: Length = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`lax.scan`, its loop partly written out on accelerators.

    Args:
        cell: (carry, step) -> (new carry, output).
        carry: Before the first step.
        steps: A pytree of arrays [T, ...].
        length: How many steps count. After them the carry stays, and outputs are undefined.
        reverse: Runs from the last step to the first.

    Returns:
        The new carry, and the outputs [T, ...].
    """
    if length is not None:

        def bounded(state, step):
            done, carry = state
            new, output = cell(carry, step)
            after = done + 1
            carry = jax.tree.map(lambda a, b: jnp.where(done < length, a, b), new, carry)
            return (after, carry), output

        (_, carry), outputs = scan(bounded, (jnp.int32(0), carry), steps, reverse=reverse)
        return carry, outputs

    def unrolled(
        on_cpu,
        carry,
        steps,
    ):
        return lax.scan(cell, carry, steps, reverse=reverse, unroll=1 if on_cpu else UNROLLED)

    return by_platform(unrolled, carry, steps)


def last_step(outputs: Any, length: Length) -> Any:
    """The last step that counts.

    Args:
        outputs: A pytree of arrays [T, ...].
        length: How many steps count.

    Returns:
        Arrays [...].
    """
    return jax.tree.map(lambda leaf: leaf[-1 if length is None else length - 1], outputs)


def linear_recurrence_reference(
    a,
    b,
    h,
):
    """`linear_recurrence` written plainly: one step after the other.

    Args:
        a: The factors.
        b: The summands.
        h: The carry before the first step.

    Returns:
        h after each step.
    """

    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, h, (a, b))[1]


def linear_recurrence(
    a: Units,
    b: Units,
    h: Hidden,
) -> Units:
    """h_t = a_t * h_(t-1) + b_t: one step after the other on CPUs, elsewhere all at once.

    On a CPU the scan of steps takes about half of the time of the parallel one, or less, and at
    most a fifth of its compilation.

    Args:
        a: The factors.
        b: The summands.
        h: The carry before the first step.

    Returns:
        h after each step.

    >>> half, one = jnp.full((3, 1, 1), 0.5), jnp.ones((3, 1, 1))
    >>> linear_recurrence(half, one, jnp.zeros((1, 1))).ravel().tolist()
    [1.0, 1.5, 1.75]
    """

    def run(on_cpu, *arguments):
        if on_cpu:
            return linear_recurrence_reference(*arguments)
        return parallel_linear_recurrence(*arguments)

    return by_platform(run, a, b, h)


def parallel_linear_recurrence(
    a: Units,
    b: Units,
    h: Hidden,
) -> Units:
    """`linear_recurrence` in about log2(T) steps, each of which is parallel (arXiv:2410.01201).

    Args:
        a: The factors.
        b: The summands.
        h: The carry before the first step.

    Returns:
        h after each step.
    """

    def combine(earlier, later):
        return earlier[0] * later[0], earlier[1] * later[0] + later[1]

    first = b[:1] + a[:1] * h
    return lax.associative_scan(combine, (a, jnp.concatenate([first, b[1:]])))[1]


def short_convolution(
    x: Float[Array, "T B H"],
    kernel: Float[Array, "K H"],
    bias: Float[Array, " H"] | float,
    state: Float[Array, "B K-1 H"],
    length: Length = None,
) -> tuple[Float[Array, "T B H"], Float[Array, "B K-1 H"]]:
    """Convolves each unit over its last K inputs (arXiv:2402.19427 §2.3; arXiv:2412.06464).

    y_t = kernel_(K-1) * x_t + kernel_(K-2) * x_(t-1) + ... + kernel_0 * x_(t-K+1) + bias.

    Args:
        x: The inputs.
        kernel: A factor of each tap and unit, the oldest input's first.
        bias: Added to each output.
        state: The K - 1 inputs before x, the oldest first.
        length: How many steps count.

    Returns:
        The outputs, and the state after the last step that counts.

    >>> x, kernel = jnp.array([1.0, 2.0, 3.0])[:, None, None], jnp.array([[10.0], [1.0]])
    >>> y, state = short_convolution(x, kernel, 0.0, jnp.full((1, 1, 1), 7.0))
    >>> y.ravel().tolist(), state.ravel().tolist()
    ([71.0, 12.0, 23.0], [3.0])
    """
    T = len(x)
    K = len(kernel)
    inputs = jnp.concatenate([jnp.moveaxis(state, 1, 0), x.astype(state.dtype)])
    y = sum((kernel[k] * inputs[k : k + T] for k in range(K)), bias)
    last = lax.dynamic_slice_in_dim(inputs, T if length is None else length, K - 1)
    return jnp.asarray(y), jnp.moveaxis(last, 0, 1)
