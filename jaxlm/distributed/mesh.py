"""Many devices: a batch's rows over one axis of a mesh, the vocabulary over the other. Only this file names the axes.

Each device runs the one step on its own rows and its own words (`jax.shard_map`), and meets the others in the sums
below, which are nothing at all where their axis is absent or has one device. So there is no second training path,
and what travels is what these lines say. The letters are the whole library's; a shard's own sizes are `B` and `V`
over the devices of the axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.errors import JaxlmError

DATA, MODEL = "data", "model"
SAME, ROWS, CARRY = P(), P(None, DATA), P(DATA)  # whole on every device; [T, B] and [B, H] by their rows
_SPECS = {"embedding": P(MODEL), "softmax.kernel": P(None, MODEL), "softmax.bias": P(MODEL)}

Tree = TypeVar("Tree")


def make_mesh(batch_size: int, devices: int | None = None, model_devices: int = 1) -> tuple[Mesh | None, str | None]:
    """The mesh of `devices` x `model_devices` devices, and a note for the user; no mesh for one device.

    By default the rows go over as many devices as they divide over. Of several processes each gives equally many.
    Raises JaxlmError where the rows do not divide over the devices, or there are not so many.
    """
    there, processes = len(jax.devices()), jax.process_count()
    for name, count in (("devices", devices), ("model_devices", model_devices)):
        if count is not None and count < 1:
            raise JaxlmError(f"{name} must be at least 1; it is {count}")
    if (asked := (devices or 1) * model_devices) > there:
        raise JaxlmError(f"{asked} devices were asked for ({devices or 1} for rows x {model_devices} for words), and "
                         f"JAX has {there}: ask for fewer, or let the processor pass for several with "
                         f"XLA_FLAGS=--xla_force_host_platform_device_count={asked}")
    divisors = [n for n in range(1, there // model_devices + 1) if batch_size % n == 0]
    if devices is not None and batch_size % devices:
        near = [*[n for n in divisors if n < devices][-1:], *[n for n in divisors if n > devices][:1]]
        sizes = [size for size in (batch_size // devices * devices, (batch_size // devices + 1) * devices) if size]
        raise JaxlmError(f"the {batch_size} rows of a batch do not divide over {devices} devices: take "
                         f"batch_size {_either(sizes)}, or devices {_either(near)}")
    fitting = [n for n in divisors if n * model_devices % processes == 0 and devices in (None, n)]
    if not fitting:
        raise JaxlmError(f"{processes} processes take part, and the {batch_size} rows of a batch do not spread over "
                         f"{devices or there} devices x {model_devices} of which each process gives equally many: "
                         f"take another batch_size, devices or model_devices, or start fewer processes")
    used = fitting[-1] * model_devices
    note = None if used == there or devices is not None else (
        f"using {used} of {there} devices: the {batch_size} rows of a batch do not divide over more")
    if used == 1:
        return None, note
    chosen = [device for process in range(processes) for device in
              [device for device in jax.devices() if device.process_index == process][:used // processes]]
    return jax.make_mesh((fitting[-1], model_devices), (DATA, MODEL), (AxisType.Auto,) * 2, devices=chosen), note


def shape(mesh: Mesh | None) -> tuple[int, int]:
    """How many devices the rows and the words are spread over."""
    return (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[MODEL])


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


# What lies where: specs of a tree, and whole arrays put onto a mesh and taken back.


def specs(tree: Any) -> Any:
    """Where each leaf of a training's state, or of parameters alone, lies: the carry by rows, words by the vocabulary.

    (An optimiser's state is empty so far. One as large as the parameters would go where they go.)
    """
    def spec(path: Any, _: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("params.")
        return CARRY if name.startswith("carry.") else _SPECS.get(name, SAME)

    return jax.tree_util.tree_map_with_path(spec, tree)


def put(mesh: Mesh | None, tree: Tree) -> Tree:
    """A state or parameters, whole in each process, onto the mesh.

    Words are added until the vocabulary divides. Their bias is -inf, so that nothing gives them a probability, a
    gradient or an update; `whole` takes them away.
    """
    if mesh is None:
        return tree

    def place(leaf: Any, spec: P) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), spec))
        array = np.asarray(leaf)
        if MODEL in spec:
            padding = [(0, -size % mesh.shape[MODEL] if axis == MODEL else 0)
                       for size, axis in zip(array.shape, (*spec, None), strict=False)]
            array = np.pad(array, padding, constant_values=-np.inf if array.ndim == 1 else 0)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return jax.tree.map(place, tree, specs(tree))


def whole(mesh: Mesh | None, tree: Tree, vocab_size: int) -> Tree:
    """The inverse of `put`: every leaf whole in each process, in the host's memory what was spread. All call it."""
    if mesh is None:
        return tree

    def take(leaf: Any, spec: P) -> Any:
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        if not leaf.is_fully_addressable:
            leaf = jax.device_put(leaf, NamedSharding(mesh, SAME))  # one after the other, so that they fit
        return np.asarray(leaf)[tuple(slice(vocab_size if axis == MODEL else None) for axis in spec)]

    return jax.tree.map(take, tree, specs(tree))


def put_rows(mesh: Mesh | None, shape: tuple[int, int], read: Callable[[slice], np.ndarray]) -> jax.Array:
    """Tokens [R, B], each device's own rows on it; `read(rows)` -> [R, rows] is asked for this process's alone."""
    if mesh is None:
        return jnp.asarray(read(slice(0, shape[1])))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read(index[1])

    return jax.make_array_from_callback(shape, NamedSharding(mesh, ROWS), part)


def padded_rows(mesh: Mesh | None, rows: int) -> int:
    """The fewest rows, but not fewer, that divide over the mesh."""
    return rows if mesh is None else rows + -rows % mesh.shape[DATA]


def spread(mesh: Mesh | None, body: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`body` run by each device of the mesh on its own part of the arguments; `body` itself where there is no mesh."""
    # The types that check_vma would give each value (does it vary over an axis?) do not pass through the ops'
    # own derivatives; the tests compare numbers with one device's instead.
    return body if mesh is None else jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs,
                                                   check_vma=False)


# What a step says to the other devices. Each is the identity, and leaves no trace, where there are none.


def sum_over_data(tree: Tree) -> Tree:
    """Sums over the devices that hold other rows."""
    return lax.psum(tree, DATA) if _there(DATA) else tree


def gather_rows(tree: Tree) -> Tree:
    """Each [T, B / devices, ...] with the rows of all devices, in their order: [T, B, ...]."""
    return lax.all_gather(tree, DATA, axis=1, tiled=True) if _there(DATA) else tree


def all_rows(rows: int) -> int:
    """B, of this device's rows."""
    return rows * lax.axis_size(DATA) if _there(DATA) else rows


def first_row(rows: int) -> jax.Array | int:
    """Which row of the whole batch this device's first one is."""
    return rows * lax.axis_index(DATA) if _there(DATA) else 0


def sum_over_model(tree: Tree) -> Tree:
    """Sums over the devices that hold other words."""
    return lax.psum(tree, MODEL) if _there(MODEL) else tree


def max_over_model(x: jax.Array) -> jax.Array:
    """The largest over the devices that hold other words."""
    return lax.pmax(x, MODEL) if _there(MODEL) else x


def own_words(ids: jax.Array, words: int) -> jax.Array:
    """Where this device's `words` rows of the vocabulary hold each id; `words`, which is outside, where they do not."""
    if not _there(MODEL):
        return ids
    local = ids - words * lax.axis_index(MODEL)
    return jnp.where((local >= 0) & (local < words), local, words)


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]`, where the table's rows may lie on other devices."""
    if not _there(MODEL):
        return table[ids]
    return lax.psum(table.at[own_words(ids, len(table))].get(mode="fill", fill_value=0), MODEL)


def _there(axis: str) -> bool:
    return axis in jax.sharding.get_abstract_mesh().manual_axes and lax.axis_size(axis) > 1
