"""The mesh of devices: making one, and putting whole arrays onto it and taking them back."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.distributed.collectives import DATA, MEMBERS, MODEL, ROWS, SAME
from jaxlm.errors import JaxlmError

PADDED_BIAS = -1e30  # of words added until the vocabulary divides: no probability, no gradient, and still a number

Tree = TypeVar("Tree")


def make_mesh(batch_size: int, devices: int | None = None, model_devices: int = 1) -> tuple[Mesh | None, str | None]:
    """The mesh of `devices` x `model_devices` devices. Every process contributes equally many.

    Args:
      batch_size: rows B.
      devices: how many the rows are spread over (default: as many as they divide over).
      model_devices: how many the vocabulary is spread over, for each of the `devices`.

    Returns:
      The mesh (None: one device), and a note for the user where devices are left unused.

    Raises:
      JaxlmError: the rows do not divide over the devices, or there are not so many.
    """
    there, processes = len(jax.devices()), jax.process_count()
    for name, count in (("devices", devices), ("model_devices", model_devices)):
        if count is not None and count < 1:
            raise JaxlmError(f"{name} must be at least 1; it is {count}")
    if (asked := (devices or 1) * model_devices) > there:
        raise JaxlmError(
            f"{asked} devices were asked for ({devices or 1} for rows x {model_devices} for words), and "
            f"JAX has {there}: ask for fewer, or let the processor pass for several with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={asked}"
        )
    divisors = [n for n in range(1, there // model_devices + 1) if batch_size % n == 0]
    if devices is not None and batch_size % devices:
        near = [*[n for n in divisors if n < devices][-1:], *[n for n in divisors if n > devices][:1]]
        sizes = [size for size in (batch_size // devices * devices, (batch_size // devices + 1) * devices) if size]
        raise JaxlmError(
            f"the {batch_size} rows of a batch do not divide over {devices} devices: take "
            f"batch_size {_either(sizes)}, or devices {_either(near)}"
        )
    fitting = [n for n in divisors if n * model_devices % processes == 0 and devices in (None, n)]
    if not fitting:
        raise JaxlmError(
            f"{processes} processes take part, and the {batch_size} rows of a batch do not spread over "
            f"{devices or there} devices x {model_devices} of which each process gives equally many: "
            f"take another batch_size, devices or model_devices, or start fewer processes"
        )
    used = fitting[-1] * model_devices
    note = (
        None
        if used == there or devices is not None
        else (f"using {used} of {there} devices: the {batch_size} rows of a batch do not divide over more")
    )
    if used == 1:
        return None, note
    chosen = [
        device
        for process in range(processes)
        for device in [device for device in jax.devices() if device.process_index == process][: used // processes]
    ]
    return jax.make_mesh((fitting[-1], model_devices), (DATA, MODEL), (AxisType.Auto,) * 2, devices=chosen), note


def shape(mesh: Mesh | None) -> tuple[int, int]:
    """How many devices the rows and the words are spread over."""
    return (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[MODEL])


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def members_mesh(members: int) -> Mesh | None:
    """A mesh over as many of this process's devices as the number of members divides over; None: one device."""
    local = jax.local_devices()
    used = max(n for n in range(1, len(local) + 1) if members % n == 0)
    return None if used == 1 else jax.make_mesh((used,), (MEMBERS,), (AxisType.Auto,), devices=local[:used])


def spread_specs(tree: Any, specs: Any) -> Any:
    """`specs`, whose leaves may each stand for a whole subtree, with one for every leaf of `tree`."""
    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part), specs, tree, is_leaf=lambda node: isinstance(node, P)
    )


def put(mesh: Mesh | None, tree: Tree, specs: Any, fill: float = 0.0) -> Tree:
    """A tree, whole in each process, onto the mesh.

    Args:
      mesh: of the devices; None leaves the tree as it is.
      tree: arrays.
      specs: where each leaf, or all leaves of a subtree, lie.
      fill: the value of 1-D leaves at the words that are added until the vocabulary divides; other leaves get 0.

    Returns:
      The tree, its leaves on the mesh.
    """
    if mesh is None:
        return tree

    def place(leaf: Any, spec: P) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), spec))
        array = np.asarray(leaf)
        if MODEL in spec:
            padding = [
                (0, -size % mesh.shape[MODEL] if axis == MODEL else 0)
                for size, axis in zip(array.shape, (*spec, None), strict=False)
            ]
            array = np.pad(array, padding, constant_values=fill if array.ndim == 1 else 0)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return jax.tree.map(place, tree, spread_specs(tree, specs))


def whole(mesh: Mesh | None, tree: Tree, specs: Any, vocab_size: int) -> Tree:
    """The inverse of `put`. Every process must call it.

    Args:
      mesh: of the devices; None returns the tree as it is.
      tree: arrays on the mesh.
      specs: where each leaf, or all leaves of a subtree, lie.
      vocab_size: V, without the words that `put` added.

    Returns:
      The tree, every leaf whole in each process; a leaf that was spread, in the host's memory.
    """
    if mesh is None:
        return tree

    def take(leaf: Any, spec: P) -> Any:
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        if not leaf.is_fully_addressable:
            leaf = jax.device_put(leaf, NamedSharding(mesh, SAME))  # one after the other, so that they fit
        return np.asarray(leaf)[tuple(slice(vocab_size if axis == MODEL else None) for axis in spec)]

    return jax.tree.map(take, tree, spread_specs(tree, specs))


def put_rows(mesh: Mesh | None, shape: tuple[int, int], read: Callable[[slice], np.ndarray]) -> jax.Array:
    """Tokens onto the mesh, each device getting its own rows.

    Args:
      mesh: of the devices; None: one device.
      shape: (R, B).
      read: `read(rows)` -> [R, rows]; called for the rows of this process's devices only.

    Returns:
      Tokens [R, B].
    """
    if mesh is None:
        return jax.device_put(read(slice(0, shape[1])))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read(index[1])

    return jax.make_array_from_callback(shape, NamedSharding(mesh, ROWS), part)


def padded_rows(mesh: Mesh | None, rows: int) -> int:
    """The fewest rows, but not fewer, that divide over the mesh."""
    return rows if mesh is None else rows + -rows % mesh.shape[DATA]


def spread(mesh: Mesh | None, body: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`body`, run by each device of the mesh on its own part of the arguments; without a mesh `body` itself.

    Args:
      mesh: of the devices, or None.
      body: a function of arrays.
      in_specs, out_specs: where each argument and each result lies, as `jax.shard_map` takes them.
    """
    # The types that check_vma would give each value (does it vary over an axis?) do not pass through the ops'
    # own derivatives; the tests compare numbers with one device's instead.
    return (
        body
        if mesh is None
        else jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )
