"""What a program runs on: the platform that it is lowered for, and how many devices share its batch."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
from jax import lax

T = TypeVar("T")


def by_platform(function: Callable[..., T], *arguments: object) -> T:
    """`function(on_cpu, *arguments)`: programs for CPUs hold the call with True, programs for others that with False.

    The platform is the one that the program is lowered for, which need not be the platform of this process's devices.
    The arguments are pytrees of arrays; results of both calls have the same shapes.
    """
    return lax.platform_dependent(
        *arguments, cpu=partial(function, True), default=partial(function, False)
    )


def batch_devices() -> int:
    """How many devices share the batch of the program: the first axis of `distributed/mesh.py`'s mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return 1
    return mesh.axis_sizes[0]
