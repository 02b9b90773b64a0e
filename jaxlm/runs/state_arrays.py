"""A training state as named arrays: its shapes, its memory, and its bytes in a safetensors file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxlm.config.config import Config
from jaxlm.errors import CheckpointError, JaxlmError
from jaxlm.runs import ram
from jaxlm.training.step import TrainState, fresh_state

MOST_LAYERS = 1000  # tracing more takes minutes
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "BOOL": "bool",
}


def encoded(state: Any) -> bytes:
    """A pytree of arrays as the bytes of a safetensors file; equal arrays give equal bytes."""
    arrays = {
        name: np.asarray(leaf, order="C")
        for name, leaf in flat(jax.device_get(_without_keys(state))).items()
    }
    return safetensors.numpy.save(arrays)


def decoded(data: bytes, template: Any, path: Path) -> TrainState:
    """The state of a safetensors file; `path` names the file in errors.

    Raises CheckpointError where the bytes are no such file, or an array is missing, unknown, or of another shape or
    dtype than in the template (`shapes_of_state`).
    """
    leaves = flat(jax.eval_shape(_without_keys, template))
    try:
        found = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a file of safetensors: {error}") from None
    expected = {name: f"{leaf.dtype.name} {list(leaf.shape)}" for name, leaf in leaves.items()}
    present = {
        name: f"{_DTYPES.get(one['dtype'], one['dtype'])} {one['shape']}"
        for name, one in found.items()
    }
    for name in sorted({*expected, *present}):
        wanted = expected.get(name, "none")
        if wanted != (there := present.get(name, "none")):
            raise CheckpointError(
                f"{path}: expected the array {name!r} of this config to be {wanted}, found {there}"
            )

    def array(name: str, leaf: Any) -> jax.Array:
        value = jax.device_put(
            np.frombuffer(found[name]["data"], leaves[name].dtype).reshape(leaves[name].shape)
        )
        if _is_key(leaf):
            return jax.random.wrap_key_data(value)
        return value

    arrays = [array(name, leaf) for name, leaf in flat(template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), arrays)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{leaf's name: shape} of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


def flat(tree: Any) -> dict[str, Any]:
    """{dotted name: leaf} of a tree, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def shapes_of_state(config: Config) -> Any:
    """The shapes and dtypes of a config's training state, with nothing allocated."""
    layers = len(config.model.hidden_sizes)
    if layers > MOST_LAYERS:
        raise JaxlmError(f"a model of {layers:,} layers: expected at most {MOST_LAYERS:,}")
    try:
        return fresh_state.eval_shape(
            config.recipe, np.uint32(0), config.train.batch_size, config.train.patience
        )
    except (OverflowError, ValueError, TypeError) as error:
        raise JaxlmError(f"no model of this config can be made: {error}") from None


def most_bytes(template: Any, what: str) -> int:
    """The most bytes that the safetensors file of such a state has.

    Raises JaxlmError, about `what`, where this machine has no memory to load it: its file and its arrays.
    """
    ram.check(2 * _nbytes(template), what, "it cannot be loaded here")
    return 4096 + 256 * len(leaves := flat(template)) + sum(map(len, leaves)) + _nbytes(template)


def check_memory(config: Config, devices: int = 1) -> None:
    """Raises JaxlmError where there is no memory for what a config's training needs at the least.

    Training needs its state, a gradient and an update of each parameter, and what a window saves for its gradient.
    Devices with memory of their own share this; the first device makes the whole state.
    """
    template = shapes_of_state(config)
    counts = config.train
    model = config.model
    saved = (
        4
        * counts.longest
        * counts.rows_of_gradient
        * (model.embedding_size + 6 * sum(model.hidden_sizes))
    )
    needed = _nbytes(template) + 2 * _nbytes(template.params) + saved
    there = ram.of_device()
    if there is not None:
        needed = max(_nbytes(template), needed // devices)
    remedy = "take smaller embedding_size, hidden_sizes, vocab_size or batch_size"
    ram.check(needed, "training this config", remedy, there)


def _nbytes(template: Any) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(_without_keys, template))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _without_keys(state: Any) -> Any:
    """The tree with each PRNG key as its bits."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
