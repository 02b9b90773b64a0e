"""Devices by placement: a mesh, and where each array of a run lies on it.

A batch's rows lie over one axis of the mesh, the vocabulary over another, the members of a sweep
over a third. The program is one device's; XLA divides it by where its arguments lie (GSPMD,
arXiv:2105.04663).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked_value

# The axes of a mesh: the batch's rows, the vocabulary, the members of a sweep.
DATA = "data"
MODEL = "model"
MEMBERS = "members"
ROWS = P(None, DATA)  # of tokens [T, B]
MEMBER = P(MEMBERS)  # of arrays [M, ...]

Tree = TypeVar("Tree")


def make_mesh(
    batch_size: int,
    devices: int | None = None,
    model_devices: int = 1,
) -> tuple[Mesh | None, str | None]:
    """The mesh of `devices` x `model_devices` devices. Every process contributes equally many.

    Args:
        batch_size: Rows B.
        devices: How many the rows are spread over (default: as many as they divide over).
        model_devices: How many the vocabulary is spread over, for each of the `devices`.

    Returns:
        The mesh (None: one device), and a note for the user where devices are left unused.

    Raises:
        JaxlmError: The rows do not divide over the devices, or there are not so many.
    """
    there = len(jax.devices())
    processes = jax.process_count()
    devices = checked_value("devices", devices, int, low=1, optional=True)
    model_devices = checked_value("model_devices", model_devices, int, low=1)
    asked = (devices or 1) * model_devices
    if asked > there:
        raise JaxlmError(
            f"{asked} devices were asked for ({devices or 1} for rows x {model_devices} for words)"
            f", and JAX has {there}: ask for fewer, or let the processor pass for several with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={asked}"
        )
    divisors = [n for n in range(1, there // model_devices + 1) if batch_size % n == 0]
    if devices is not None and batch_size % devices:
        below = batch_size // devices * devices
        sizes = [size for size in (below, below + devices) if size]
        near = [n for n in divisors if n < devices][-1:] + [n for n in divisors if n > devices][:1]
        raise JaxlmError(
            f"the {batch_size} rows of a batch do not divide over {devices} devices: take "
            f"batch_size {' or '.join(map(str, sizes))}, or devices {' or '.join(map(str, near))}"
        )
    fitting = [n for n in divisors if n * model_devices % processes == 0 and devices in (None, n)]
    if not fitting:
        raise JaxlmError(
            f"{processes} processes take part, and the {batch_size} rows of a batch do not "
            f"spread over {devices or there} devices x {model_devices} of which each process gives "
            "equally many: take another batch_size, devices or model_devices, or start fewer "
            "processes"
        )
    used = fitting[-1] * model_devices
    note = None
    if devices is None and used < there:
        note = (
            f"using {used} of {there} devices: the {batch_size} rows of a batch (model_devices "
            f"{model_devices}, processes {processes}) do not spread evenly over more"
        )
    if used == 1:
        return None, note
    chosen = []
    for process in range(processes):
        chosen += jax.local_devices(process)[: used // processes]
    shape = (fitting[-1], model_devices)
    mesh = jax.make_mesh(shape, (DATA, MODEL), (AxisType.Auto,) * 2, devices=chosen)
    return mesh, note


def members_mesh(members: int) -> Mesh | None:
    """A mesh over as many local devices as the members divide over; None: one device."""
    local = jax.local_devices()
    used = max(n for n in range(1, len(local) + 1) if members % n == 0)
    if used == 1:
        return None
    return jax.make_mesh((used,), (MEMBERS,), (AxisType.Auto,), devices=local[:used])


def spec_of(path: tuple[Any, ...]) -> P:
    """Where a leaf of a training state, or of parameters, lies.

    Args:
        path: The leaf's. What an optimiser or an average keeps for a parameter has the parameter's
            names at its path's end.

    Returns:
        Its axes: spread by rows, by words, or whole on every device.
    """
    names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
    if names[0] == "carry":
        return P(DATA)
    if names[-1] == "embedding" or names[-2:] == ["softmax", "bias"]:
        return P(MODEL)
    if names[-2:] == ["softmax", "kernel"]:
        return P(None, MODEL)
    return P()


def place(
    mesh: Mesh | None,
    tree: Tree,
    spec: P | None = None,
) -> Tree:
    """Puts a tree, whole in each process, onto a mesh.

    Words, with parameters of zero, are added until the vocabulary divides over the mesh.

    Args:
        mesh: The devices; None: the tree stays as it is.
        tree: A training state, or parameters.
        spec: Where every leaf lies; None: `spec_of` each.
    """
    if mesh is None:
        return tree

    def put(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(path, jax.random.key_data(leaf)))
        array = np.asarray(leaf)
        where = spec_of(path) if spec is None else spec
        if MODEL in where:
            axis = where.index(MODEL)
            added = -array.shape[axis] % mesh.shape[MODEL]
            array = np.pad(array, [(0, added if at == axis else 0) for at in range(array.ndim)])
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, where), lambda index: array[index]
        )

    return jax.tree_util.tree_map_with_path(put, tree)


def constrain_sharding(mesh: Mesh | None, tree: Tree) -> Tree:
    """Within a program: a tree whose arrays lie as `place` puts them.

    Args:
        mesh: The devices; None: the tree stays as it is.
        tree: A training state, or parameters.
    """
    if mesh is None:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, spec_of(path))
        ),
        tree,
    )


def fetch(
    mesh: Mesh | None,
    tree: Tree,
    vocab_size: int,
) -> Tree:
    """The inverse of `place`. Every process must call it.

    Args:
        mesh: The devices.
        tree: A training state, or parameters, on the mesh.
        vocab_size: The words without those that `place` has added.

    Returns:
        The tree, whole in each process; a leaf that was spread is in the host's memory.
    """
    if mesh is None:
        return tree

    def take(path, leaf):
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        if not leaf.is_fully_addressable:  # gathered one after the other, so that they fit
            leaf = jax.device_put(leaf, NamedSharding(mesh, P()))
        ends = [vocab_size if axis == MODEL else None for axis in spec_of(path)]
        return np.asarray(leaf)[tuple(map(slice, ends))]

    return jax.tree_util.tree_map_with_path(take, tree)


def put_rows(
    mesh: Mesh | None,
    shape: tuple[int, int],
    read: Callable[[slice], np.ndarray],
) -> jax.Array:
    """Puts tokens onto a mesh. A device gets its own rows, or all where they do not divide over it.

    Args:
        mesh: The devices, of rows or of members; None: one device.
        shape: (R, B).
        read: Returns the tokens [R, rows] of some rows; called for those of this process's devices
            only.

    Returns:
        The tokens [R, B].
    """
    if mesh is None:
        return jax.device_put(read(slice(0, shape[1])))

    def read_rows(index):
        return read(index[1])

    where = ROWS if DATA in mesh.shape and shape[1] % mesh.shape[DATA] == 0 else P()
    return jax.make_array_from_callback(shape, NamedSharding(mesh, where), read_rows)
