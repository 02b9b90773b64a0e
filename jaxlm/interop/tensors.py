"""Named tensors of other programs' files: claims are checked first, values are read only when they are used."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import JaxlmError

FLOATS = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2"}  # bfloat16: float32's upper half
_OTHERS = ("int8", "uint8", "int16", "int32", "int64", "bool", "complex64", "complex128")
SIZES = {**{kind: int(code[2]) for kind, code in FLOATS.items()}, **{kind: np.dtype(kind).itemsize for kind in _OTHERS}}
MOST_PATH = 1000  # letters of a path in a message
MOST_SHARING = 4  # how many times the stored bytes a model's tensors may take; tied ones are counted twice
MOST_DIMENSIONS = 16


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor whose claims have been checked, and whose values are not read yet.

    Attributes:
        shape: its shape.
        kind: its elements, as "float32".
        identity: equal for two tensors that are the same memory.
        read: gives the values `[*shape]` of a kind of `FLOATS`, bfloat16 as float32; raises JaxlmError.
    """

    shape: tuple[int, ...]
    kind: str
    identity: Hashable
    read: Callable[[], np.ndarray]


def check_sharing(tensors: Iterable[LazyTensor], stored: int) -> None:
    """Raises JaxlmError where tensors share so much that they would take far more memory than the bytes stored."""
    if sum(math.prod(tensor.shape) * SIZES.get(tensor.kind, 1) for tensor in tensors) > MOST_SHARING * stored:
        raise JaxlmError(f"its tensors claim over {MOST_SHARING} times the bytes that are stored")


def elements(data: bytes | bytearray | memoryview, kind: str) -> np.ndarray:
    """The whole elements `[n]` that begin `data`, little endian, of a kind of `FLOATS`; bfloat16 as 16-bit integers."""
    return np.frombuffer(data, FLOATS[kind], len(data) // SIZES[kind])


def as_floats(values: np.ndarray, kind: str) -> np.ndarray:
    """`elements` in any shape as floats; always a copy in C order."""
    if kind == "bfloat16":
        return (values.astype(np.uint32, order="C") << 16).view(np.float32)
    return values.astype(values.dtype.newbyteorder("="), order="C")


def shown(text: object, most: int = 80) -> str:
    """A file's own words, safe for a terminal: quoted, control characters escaped, cut at `most` characters."""
    text = str(text)
    return repr(text if len(text) <= most else text[:most] + "...")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, in order; those beyond `most` are only counted."""
    ordered: Collection[str] = sorted(names)
    few = [shown(name) for name in ordered[:most]]
    return ", ".join(few) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turns whatever a reader of other people's bytes raises into a JaxlmError: that part of the file is damaged."""
    try:
        yield
    except (JaxlmError, MemoryError):
        raise
    except Exception as error:
        raise JaxlmError(f"its {what} is damaged or cut short ({shown(error)})") from None
