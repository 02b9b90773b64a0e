"""Scans over time: as few kernels as the platform wants; and over padded steps, of which only some count."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.ops.devices import by_platform

# Steps in one turn of a loop on accelerators: it halves the kernels of a step (docs/lab/tries.csv). CPUs gain nothing.
UNROLLED = 5


def scan(cell: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan(cell, carry, steps, reverse=reverse)`, its loop partly written out on accelerators."""

    def on(on_cpu: bool, carry: Any, steps: Any) -> tuple[Any, Any]:
        return lax.scan(cell, carry, steps, reverse=reverse, unroll=1 if on_cpu else UNROLLED)

    return by_platform(on, carry, steps)


def bounded_scan(
    cell: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, length: jax.Array | None
) -> tuple[Any, Any]:
    """`lax.scan(cell, carry, steps)`, after `length` steps of which the carry stays as it is.

    Args:
        cell: (carry, step) -> (carry, output).
        carry: before the first step.
        steps: arrays [T, ...].
        length: how many steps count, traced, at least 1; None: all.

    Returns:
        The final carry, and the outputs [T, ...], of which those after `length` mean nothing.
    """
    if length is None:
        return scan(cell, carry, steps)

    def bounded(state: tuple[jax.Array, Any], step: Any) -> tuple[tuple[jax.Array, Any], Any]:
        done, carry = state
        new, output = cell(carry, step)
        return (done + 1, jax.tree.map(lambda a, b: jnp.where(done < length, a, b), new, carry)), output

    (_, carry), outputs = scan(bounded, (jnp.int32(0), carry), steps)
    return carry, outputs


def last_step(outputs: Any, length: jax.Array | None) -> Any:
    """Of arrays [T, ...] the last step that counts: [...]."""
    return jax.tree.map(lambda leaf: leaf[-1 if length is None else length - 1], outputs)
