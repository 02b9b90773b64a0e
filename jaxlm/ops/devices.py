"""What a program runs on: its platform, the devices that share its batch, and arrays that fit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def by_platform(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls a function that is told for which platform the program is lowered.

    That need not be the platform of this process's devices.

    Args:
        function: Called as `function(on_cpu, *arguments)`. Both calls return the same shapes.
        *arguments: Pytrees of arrays.

    Returns:
        In programs for CPUs the result of the call with True, in others that of the call with
        False.
    """
    return lax.platform_dependent(
        *arguments, cpu=partial(function, True), default=partial(function, False)
    )


def batch_devices() -> int:
    """How many devices share the program's batch: the mesh's first axis (`distributed/mesh.py`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return 1
    return mesh.axis_sizes[0]


def shared_by_devices(
    function: Callable[[jax.Array], jax.Array],
    matrices: Float[Array, "G M N"],
) -> Float[Array, "G M N"]:
    """A function of each matrix. Of devices that share the batch each computes a part of them.

    Args:
        function: Of matrices, each by itself and each to one of its own shape.
        matrices: The same on all devices.

    Returns:
        The results, whole on all devices.
    """
    devices = batch_devices()
    if devices == 1:
        return function(matrices)
    axis = jax.sharding.get_abstract_mesh().axis_names[0]
    G = len(matrices)
    padded = jnp.pad(matrices, [(0, -G % devices), (0, 0), (0, 0)])
    parts = lax.with_sharding_constraint(padded, PartitionSpec(axis))
    return lax.with_sharding_constraint(function(parts), PartitionSpec())[:G]


def check_array(
    name: str,
    array: jax.Array,
    shape: tuple[int, ...],
    integers: bool = False,
) -> None:
    """Checks an argument of an op.

    Args:
        name: The argument's name.
        array: Its value.
        shape: The shape it should have.
        integers: Whether it should hold integers, and not floating-point numbers.

    Raises:
        ValueError: It has another shape or dtype.
    """
    kind = jnp.integer if integers else jnp.floating
    numbers = "integers" if integers else "floating-point numbers"
    if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
        raise ValueError(
            f"{name} should be {numbers} of the shape {shape}; it is {array.dtype} {array.shape}"
        )
