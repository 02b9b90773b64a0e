"""Whether devices share a program, for ops that do better to know. A mesh's first axis shares the batch."""

import jax


def batch_devices() -> int:
    """How many devices share the batch of the program, by where its arguments lie (`distributed/mesh.py`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.axis_sizes[0]


def everywhere(x: jax.Array) -> jax.Array:
    """x, whole on each of the devices."""
    return x if batch_devices() == 1 else jax.lax.with_sharding_constraint(x, jax.P())
