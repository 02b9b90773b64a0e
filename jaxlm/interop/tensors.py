"""Named tensors of other people's files: what they claim is checked first, their bytes are read only when used."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import JaxlmError

FLOATS = {"float16": "f2", "float32": "f4", "float64": "f8", "bfloat16": "u2"}  # bfloat16: the upper half of float32
MOST_PATH = 1000  # letters of a path in a message
MOST_SHARING = 4  # how many times all stored bytes a model's tensors may be; tied ones are counted twice
SIZES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}  # bytes an element


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor whose claims are known and checked, and whose values are not read yet.

    Attributes:
        shape: its shape.
        kind: its elements, as "float32".
        identity: equal for two tensors that are the same memory.
        read: gives the values `[*shape]` in their own precision (bfloat16 as float32); raises JaxlmError.
    """

    shape: tuple[int, ...]
    kind: str
    identity: Hashable
    read: Callable[[], np.ndarray]


def check_sharing(tensors: Iterable[LazyTensor], stored: int) -> None:
    """Raises JaxlmError where tensors share so much that they would take far more memory than the bytes stored."""
    if sum(math.prod(tensor.shape) * SIZES.get(tensor.kind, 1) for tensor in tensors) > MOST_SHARING * stored:
        raise JaxlmError(f"its tensors claim over {MOST_SHARING} times the bytes that are stored")


def decoded(data: bytes | bytearray | memoryview, kind: str, order: str = "<") -> np.ndarray:
    """The elements `[n]` of raw bytes, not yet converted: bfloat16 as the 16-bit integers that it is stored as.

    Args:
        data: whole elements.
        kind: what they are; JaxlmError unless a kind of float.
        order: "<" for little endian, ">" for big endian.
    """
    if kind not in FLOATS:
        raise JaxlmError(f"expected weights that are floats, found {kind}")
    return np.frombuffer(data, order + FLOATS[kind])


def as_floats(elements: np.ndarray, kind: str) -> np.ndarray:
    """`decoded` elements as floats in the machine's byte order; always a copy in C order."""
    if kind == "bfloat16":
        return (elements.astype(np.uint32, order="C") << 16).view(np.float32)
    return elements.astype(elements.dtype.newbyteorder("="), order="C")


def shown(text: object, most: int = 80) -> str:
    """A file's own words, safe for a terminal: quoted, control characters escaped, cut at `most` characters."""
    text = str(text)
    return repr(text if len(text) <= most else text[:most] + "...")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, in order; those beyond `most` are only counted."""
    ordered: Collection[str] = sorted(names)
    few = [shown(name) for name in ordered[:most]]
    return ", ".join(few) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
