"""What a language model of another program becomes: jaxlm's parameter tree, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import FLOATS, LazyTensor, shown

Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program.

    Attributes:
        params: jaxlm's tree in float32: `embedding [V, E]`, `layers[i].kernel [in + H, 4H]` and `layers[i].bias [4H]`,
            gates in the order i, j, f, o, `softmax.bias [V]` and, unless tied, `softmax.kernel [H, V]`. Its forget
            bias is 0.
        embedding_size: E.
        hidden_sizes: H of each layer, which may differ.
        vocab_size: V.
        tied: whether the logits are features @ embedding.T + bias.
        source: what was read, in words.
        notes: what a user should know: what was left out, added up or assumed.
    """

    params: dict
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    vocab_size: int
    tied: bool
    source: str
    notes: tuple[str, ...]


def foreign_model(params: dict, tied: bool, source: str, notes: list[str]) -> ForeignModel:
    """The model of a parameter tree; the sizes are the tree's."""
    vocab_size, width = params["embedding"].shape
    sizes = tuple(len(layer["bias"]) // 4 for layer in params["layers"])
    return ForeignModel(params, width, sizes, vocab_size, tied, source, tuple(notes))


class Values:
    """Reads the values of named tensors, which must be finite."""

    def __init__(self, tensors: Tensors):
        self._tensors, self._kinds = tensors, set[str]()

    def exact(self, name: str) -> np.ndarray:
        """The values in their own precision. Raises JaxlmError where one is not finite."""
        values = self._tensors[name].read()
        self._kinds.add(self._tensors[name].kind)
        return _finite(name, values)

    def float32(self, name: str) -> np.ndarray:
        """The values in float32. Raises JaxlmError where one is not finite, or too large."""
        with np.errstate(over="ignore"):
            return _finite(name, self.exact(name).astype(np.float32, copy=False))

    @property
    def notes(self) -> list[str]:
        """What the conversion to float32 changed."""
        return ["float64 weights were rounded to float32"] if "float64" in self._kinds else []


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if wrong := values.size - np.count_nonzero(np.isfinite(values)):
        raise JaxlmError(f"{shown(name)} holds {wrong:,} numbers that are not finite in {values.dtype}")
    return values


def matrix_shape(tensors: Tensors, name: str) -> tuple[int, int]:
    """The two sizes of a matrix of floats. Raises JaxlmError for anything else."""
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise JaxlmError(f"{shown(name)} has the shape {list(shape)}, expected a matrix")
    expect_shape(tensors, name, shape)
    return shape[0], shape[1]


def expect_shape(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    """Raises JaxlmError unless the tensor has this shape and floats."""
    tensor = tensors[name]
    if tensor.shape != shape:
        raise JaxlmError(f"{shown(name)} has the shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.kind not in FLOATS:
        raise JaxlmError(f"{shown(name)} holds {shown(tensor.kind)}, expected one of {', '.join(FLOATS)}")
