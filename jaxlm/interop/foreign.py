"""What is read from other programs' files: named tensors, and the language model that is made of them.

A tensor's claims are checked first; its values are read only when they are used.
"""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Recurrent

FLOATS = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2"}  # bfloat16: float32's upper half
_INTEGERS = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1}
SIZES = {"float16": 2, "float32": 4, "float64": 8, "bfloat16": 2, "complex64": 8, "complex128": 16, **_INTEGERS}
MOST_PATH = 1000  # letters of a path in a message
MOST_SHARING = 4  # how many times the stored bytes a model's tensors may take; tied ones are counted twice
MOST_DIMENSIONS = 16


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor whose claims have been checked, and whose values are not read yet."""

    shape: tuple[int, ...]
    kind: str  # of the elements, as "float32"
    identity: Hashable  # equal for two tensors that are the same memory
    read: Callable[[], np.ndarray]  # gives the `elements` [*shape], of a kind of FLOATS; raises JaxlmError


Tensors = Mapping[str, LazyTensor]


def check_sharing(tensors: Iterable[LazyTensor], stored: int) -> None:
    """Raises JaxlmError where tensors share so much that they would take far more memory than the bytes stored."""
    if sum(math.prod(tensor.shape) * SIZES.get(tensor.kind, 1) for tensor in tensors) > MOST_SHARING * stored:
        raise JaxlmError(f"its tensors claim over {MOST_SHARING} times the bytes that are stored")


def elements(data: bytes | bytearray | memoryview, kind: str) -> np.ndarray:
    """The whole elements `[n]` that begin `data`, little endian, of a kind of `FLOATS`; bfloat16 as 16-bit integers."""
    return np.frombuffer(data, FLOATS[kind], len(data) // SIZES[kind])


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


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program."""

    config: Recurrent
    params: dict[str, Any]  # jaxlm's tree, in float32
    source: str  # what was read, in words
    notes: tuple[str, ...]  # what a user should know: what was left out, added up or assumed
    run: Config | None = None  # of the run that jaxlm exported it from


def foreign_model(params: dict[str, Any], source: str, notes: list[str], tensors: Tensors) -> ForeignModel:
    """The model of a parameter tree, which gives its sizes, made from `tensors`."""
    vocab_size, width = params["embedding"].shape
    config = LSTM(
        vocab_size=vocab_size,
        embedding_size=width,
        hidden_sizes=tuple(len(layer["bias"]) // 4 for layer in params["layers"]),
        tied="kernel" not in params["softmax"],
        forget_bias=0.0,
    )
    if any(tensor.kind == "float64" for tensor in tensors.values()):
        notes = [*notes, "float64 weights were rounded to float32"]
    return ForeignModel(config, params, source, tuple(notes))


def float32(tensors: Tensors, name: str) -> np.ndarray:
    """The values of a tensor in float32, C order. Raises JaxlmError where one is not finite, or too large."""
    values = tensors[name].read()
    if tensors[name].kind == "bfloat16":
        values = (values.astype(np.uint32, order="C") << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return check_finite(name, values.astype(np.float32, order="C"))


def check_finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values, of the tensor of this name. Raises JaxlmError where one is not finite."""
    if wrong := values.size - np.count_nonzero(np.isfinite(values)):
        raise JaxlmError(f"{shown(name)} holds {wrong:,} numbers that are not finite in {values.dtype}")
    return values


def matrix_shape(tensors: Tensors, name: str) -> tuple[int, int]:
    """The two sizes of a matrix of floats. Raises JaxlmError for anything else."""
    match tensors[name].shape:
        case (rows, columns) if rows and columns:
            expect_shape(tensors, name, (rows, columns))
            return rows, columns
    raise JaxlmError(f"{shown(name)} has the shape {list(tensors[name].shape)}, expected a matrix")


def expect_shape(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    """Raises JaxlmError unless the tensor has this shape and floats."""
    tensor = tensors[name]
    if tensor.shape != shape:
        raise JaxlmError(f"{shown(name)} has the shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.kind not in FLOATS:
        raise JaxlmError(f"{shown(name)} holds {shown(tensor.kind)}, expected one of {', '.join(FLOATS)}")
