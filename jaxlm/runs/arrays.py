"""The arrays of a checkpoint, by name: how they are written, and how they are read whatever wrote them.

Format 2 is one file of safetensors. Format 1, which jaxlm wrote through orbax until version 0.1, has one file of raw
little-endian bytes for each array, `state/NAME/0.0` with a zero for each axis, beside descriptions (`.zarray`) that are
sealed like all else and that nobody here interprets: the shapes are those of the config.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxlm.errors import CheckpointError
from jaxlm.files import Folder
from jaxlm.runs import manifest as sealed
from jaxlm.runs.manifest import Manifest

FILE, FOLDER = "state.safetensors", "state"  # format 2's, format 1's
MOST_LAYOUT_BYTES = 1 << 20  # of a file in which format 1 describes arrays
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}  # safetensors' names


def encoded(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a safetensors file; equal arrays give equal bytes."""
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def read(folder: Folder, manifest: Manifest, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, every byte of them verified.

    Args:
        folder: the checkpoint's.
        manifest: its manifest.
        leaves: {name: anything with a shape and a dtype}, exactly those that there must be.
    Raises:
        CheckpointError: a file is missing, changed or one too many; an array has another name, shape or dtype.
    """
    reader: Callable = {1: _read_1, 2: _read_2}[manifest.format]
    return reader(folder, manifest, leaves)


def nbytes(leaf: Any) -> int:
    """The bytes of an array, of anything with a shape and a dtype."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _read_2(folder: Folder, manifest: Manifest, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    sealed.check_names(folder, manifest, {*sealed.TEXTS, FILE})
    path = folder.path / FILE
    header = 4096 + sum(256 + len(name) for name in leaves)  # more than it takes
    data = sealed.verified(folder, manifest, FILE, most=header + sum(map(nbytes, leaves.values())))
    try:
        found = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a file of safetensors: {error}") from None
    for name in sorted({*found, *leaves}):
        expected = _described(leaves[name].dtype.name, leaves[name].shape) if name in leaves else "none"
        present = _described(str(_DTYPES.get(found[name]["dtype"])), found[name]["shape"]) if name in found else "none"
        if present != expected:
            raise CheckpointError(
                f"{path}: expected the array {name!r} of this config to be {expected}, found {present}"
            )
    return {name: np.frombuffer(found[name]["data"], leaf.dtype).reshape(leaf.shape) for name, leaf in leaves.items()}


def _read_1(folder: Folder, manifest: Manifest, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = {name.replace("params.layers.", "params.lstm."): name for name in leaves}
    leaves = {name: leaves[ours] for name, ours in names.items()}
    chunks = {name: f"{FOLDER}/{name}/{'.'.join('0' * len(leaf.shape)) or '0'}" for name, leaf in leaves.items()}
    layout = {f"{FOLDER}/_METADATA", *(f"{FOLDER}/{name}/.zarray" for name in leaves)}
    sealed.check_names(folder, manifest, {*sealed.TEXTS, *layout, *chunks.values()})
    for name in sorted(layout):
        sealed.verified(folder, manifest, name, most=MOST_LAYOUT_BYTES)
    return {
        names[name]: np.frombuffer(
            sealed.verified(folder, manifest, chunks[name], exactly=nbytes(leaf)), leaf.dtype
        ).reshape(leaf.shape)
        for name, leaf in leaves.items()
    }


def _described(dtype: str, shape: Any) -> str:
    return f"{dtype} {list(shape)}"
