"""What a language model of another program becomes: jaxlm's parameter tree, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import FLOATS, LazyTensor, shown
from jaxlm.models.lstm import LSTM

Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program.

    Attributes:
        config: its sizes; the forget bias is 0. If `tied`, the logits are features @ embedding.T + bias.
        params: jaxlm's tree in float32: `embedding [V, E]`, `layers[i].kernel [in + H, 4H]`, `layers[i].bias [4H]`
            (gates i, j, f, o), `softmax.bias [V]` and, unless tied, `softmax.kernel [H, V]`.
        source: what was read, in words.
        notes: what a user should know: what was left out, added up or assumed.
    """

    config: LSTM
    params: dict[str, Any]
    source: str
    notes: tuple[str, ...]


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
    """The values of a tensor in float32. Raises JaxlmError where one is not finite, or too large."""
    with np.errstate(over="ignore"):
        return check_finite(name, tensors[name].read().astype(np.float32, copy=False))


def check_finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values, of the tensor of this name. Raises JaxlmError where one is not finite."""
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
