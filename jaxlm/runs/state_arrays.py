"""A training state as named arrays: its beginning, shapes, memory, and safetensors file.

The format (huggingface.co/docs/safetensors): the length of a header in 8 bytes; the header, JSON
with each array's dtype, shape and place; then the arrays' bytes, one after the other. Only the
arrays that are asked for take memory.

A file for use alone holds the parameters, rounded to 8 bits (`rounded`), and no more of a state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from jaxlm.base.errors import CheckpointError, JaxlmError
from jaxlm.config.config import Config, different
from jaxlm.models.recurrent import Params
from jaxlm.runs import ram
from jaxlm.training.step import TrainState, fresh_state, init_state

SHARING = 32  # numbers one after the other that share a scale where they are rounded
SCALES = "scales."  # begins the names of the scales, as "params." those of the parameters
Part = Callable[[Any], Any]  # picks the part of a state to decode
MOST_LAYERS = 1000  # tracing more takes minutes
DTYPES = {  # safetensors' names of those that states have
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "I8": "int8",
    "I32": "int32",
    "U32": "uint32",
    "BOOL": "bool",
}


def new_state(
    config: Config,
    params: Params | None = None,
    devices: int = 1,
) -> TrainState:
    """The state before the first step, on one device.

    Args:
        config: The run's config.
        params: In place of parameters drawn from the seed.
        devices: How many devices will share the state.

    Raises:
        JaxlmError: Given parameters do not have the config's shapes, or there is not enough memory.
    """
    template = check_memory(config, devices)
    counts = config.train
    if params is None:
        seed = np.uint32(counts.seed)
        return fresh_state(config.recipe, seed, counts.batch_size, counts.patience)
    wrong = different(shapes(template.params), shapes(params))
    if wrong:
        raise JaxlmError(
            f"params do not have the config's shapes (expected -> given): {'; '.join(wrong)}"
        )
    params = jax.tree.map(np.float32, params)
    key = jax.random.key(counts.seed)
    return init_state(config.recipe, key, counts.batch_size, params, patience=counts.patience)


def encoded(state: Any) -> bytes:
    """A pytree of arrays as the bytes of a safetensors file; equal arrays give equal bytes."""
    leaves = flat(jax.device_get(_without_keys(state)))
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    return safetensors.numpy.save(arrays)


def rounded(params: Params) -> dict[str, Any]:
    """Parameters as int8 with a scale for 32 numbers each; vectors stay as they are.

    Args:
        params: The parameters.

    Returns:
        A tree that `encoded` writes and `decoded` reads in place of a whole state.
    """
    leaves, structure = jax.tree.flatten(params)
    scales: list[Any] = []
    numbers: list[Any] = []
    for leaf in map(np.asarray, leaves):
        scale = None
        if _is_rounded(leaf):
            blocks, scale = rounded_blocks(leaf.reshape(-1, SHARING), 8)
            leaf = blocks.reshape(leaf.shape).astype(np.int8)
        numbers.append(leaf)
        scales.append(scale)
    return {
        "params": jax.tree.unflatten(structure, numbers),
        "scales": jax.tree.unflatten(structure, scales),
    }


def rounded_blocks(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds blocks of numbers to whole multiples of a scale.

    Args:
        blocks: float32 [..., N].
        bits: Of each whole number, its sign included: at most 16.

    Returns:
        int16 [..., N], and the scale [...] that each block is to be multiplied by.
    """
    largest = np.maximum(np.abs(blocks).max(-1), np.float32(1e-30))
    scales = largest / np.float32(2 ** (bits - 1) - 1)
    return np.rint(blocks / scales[..., None]).astype(np.int16), scales


def _is_rounded(leaf: Any) -> bool:
    """Whether `rounded` rounds an array: a matrix of whole blocks."""
    return leaf.ndim > 1 and leaf.size % SHARING == 0


def whole(state: Any) -> Any:
    """All of a state, as the part of it to decode."""
    return state


def evaluated(state: TrainState) -> Params:
    """The parameters that evaluation uses, as the part of a state to decode."""
    return state.evaluated


def nothing(_: TrainState) -> tuple[()]:
    """No array of a state, as the part of it to decode: the file is verified all the same."""
    return ()


def decoded(
    file: BinaryIO,
    template: Any,
    path: Path,
    part: Part = whole,
) -> Any:
    """A state, or a part of it, from a safetensors file; its other arrays take no memory.

    Args:
        file: The open file.
        template: The shapes and dtypes of the whole state (`shapes_of_state`).
        path: The file's name in errors.
        part: Picks the tree to decode, such as `evaluated`.

    Returns:
        The tree that `part` picks, with arrays on the device.

    Raises:
        CheckpointError: The bytes are no such file, or an array is missing, unknown, or of another
            shape or dtype than in the template.
    """
    leaves = flat(template)
    names = part(jax.tree.unflatten(jax.tree.structure(template), leaves))
    names_asked = set(jax.tree.leaves(names))
    arrays = {}
    try:
        # By its descriptor it is this file, whatever has its name now.
        with safe_open(f"/dev/fd/{file.fileno()}", "numpy") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
            _check_arrays(slices, template, path)
            if names_asked - slices.keys():
                raise CheckpointError(
                    f"{path} holds parameters alone, to use and not to train further: begin a run "
                    "from them with jaxlm train --init"
                )
            for name in slices:
                if name.replace(SCALES, "params.", 1) in names_asked:
                    arrays[name] = jax.device_put(stored.get_tensor(name))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a file of safetensors: {error}") from None

    def array(name: str) -> jax.Array:
        values = arrays[name]
        if _is_key(leaves[name]):
            return jax.random.wrap_key_data(values)
        scales = arrays.get(name.replace("params.", SCALES, 1))
        if values.dtype == jnp.int8 and scales is not None:
            blocks = values.reshape(-1, SHARING) * scales[:, None]
            return blocks.reshape(values.shape)
        return values

    return jax.tree.map(array, names)


def _check_arrays(
    slices: dict[str, Any],
    template: Any,
    path: Path,
) -> None:
    """Raises CheckpointError where the arrays of a file are not those of a template."""
    stored = flat(jax.eval_shape(_without_keys, template))
    if any(name.startswith(SCALES) for name in slices):
        stored = flat(jax.eval_shape(_shapes_of_rounded, template.params))
    expected = {name: f"{leaf.dtype.name} {list(leaf.shape)}" for name, leaf in stored.items()}
    present = {}
    for name, array in slices.items():
        dtype = array.get_dtype()
        present[name] = f"{DTYPES.get(dtype, dtype)} {array.get_shape()}"
    for name in sorted(expected | present):
        shape = expected.get(name, "none")
        stored_shape = present.get(name, "none")
        if shape != stored_shape:
            raise CheckpointError(
                f"{path}: expected the array {name!r} of this config to be {shape}, "
                f"found {stored_shape}"
            )


def _shapes_of_rounded(params: Params) -> dict[str, Any]:
    """What `rounded` makes, of zeros."""

    def numbers(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.int8) if _is_rounded(leaf) else leaf

    def scales(leaf: jax.Array) -> jax.Array | None:
        return leaf.reshape(-1, SHARING)[:, 0] if _is_rounded(leaf) else None

    return {"params": jax.tree.map(numbers, params), "scales": jax.tree.map(scales, params)}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{leaf's name: shape} of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


def flat(tree: Any) -> dict[str, Any]:
    """{dotted name: leaf} of a tree, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def shapes_of_state(config: Config) -> Any:
    """The shapes and dtypes of a config's training state, with nothing allocated.

    Raises:
        JaxlmError: The config has too many layers, or numbers that no array can have.
    """
    layers = len(config.model.hidden_sizes)
    if layers > MOST_LAYERS:
        raise JaxlmError(f"a model of {layers:,} layers: expected at most {MOST_LAYERS:,}")
    counts = config.train
    try:
        return fresh_state.eval_shape(
            config.recipe, np.uint32(0), counts.batch_size, counts.patience
        )
    except (OverflowError, ValueError, TypeError) as error:
        raise JaxlmError(f"no model of this config can be made: {error}") from None


def check_memory(config: Config, devices: int = 1) -> Any:
    """Asks whether there is the memory that a config's training needs at the least.

    Devices with memory of their own share what is needed; the first device makes the whole state.

    Args:
        config: What is to be trained.
        devices: How many devices share the batch and the vocabulary.

    Returns:
        The shapes and dtypes of the training state (`shapes_of_state`).

    Raises:
        OutOfMemory: There is less.
        JaxlmError: There can be no such model.
    """
    template = shapes_of_state(config)
    needed = memory_needed(config, template)
    free = ram.of_device()
    if free is not None:
        needed = max(bytes_of(template), needed // devices)
    remedy = "take smaller embedding_size, hidden_sizes, vocab_size or batch_size"
    ram.check(needed, "training this config", remedy, free)
    return template


def memory_needed(config: Config, template: Any) -> int:
    """The bytes that a config's training needs at the least.

    They are its state, a gradient and an update of each parameter, and what a window saves for its
    gradient.

    Args:
        config: What is to be trained.
        template: The shapes and dtypes of its state (`shapes_of_state`).
    """
    model = config.model
    rows = config.train.longest * config.train.rows_of_gradient * config.optimizer.dropout_samples
    activations = 4 * rows * (model.embedding_size + 6 * model.units)
    return bytes_of(template) + 2 * bytes_of(template.params) + activations


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays of a tree, or of their shapes and dtypes."""
    leaves = jax.tree.leaves(jax.eval_shape(_without_keys, tree))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def most_file_bytes(template: Any) -> int:
    """The most bytes of the safetensors file of such a state."""
    most_header = 4096 + sum(256 + len(name) for name in flat(template))
    return 8 + most_header + bytes_of(template)


def _without_keys(state: Any) -> Any:
    """The tree with each PRNG key as its bits."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
