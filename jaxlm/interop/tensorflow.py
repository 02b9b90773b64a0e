"""Models under the names that TensorFlow 1's Penn Treebank tutorial gives its variables; the layout is jaxlm's own."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import ForeignModel, Tensors, expect_shape, float32, foreign_model, matrix_shape
from jaxlm.interop.tensors import listed, shown

EMBEDDING, SOFTMAX_KERNEL, SOFTMAX_BIAS = "m/embedding_vocab:0", "m/softmax_w:0", "m/softmax_b:0"
LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"
_ENDS = {
    "embedding": ("embedding", "embedding_vocab"),
    "softmax kernel": ("softmax_w",),
    "softmax bias": ("softmax_b",),
}
_CELL = re.compile(
    r"(?:(?:.*/)?cell_?(?P<index>[0-9]{1,3})/|(?:.*/)?)[a-z_]*lstm_?cell(?:/linear)?"
    r"/(?P<part>kernel|bias|weights|biases|matrix)",
    re.IGNORECASE,
)
_PARTS = {"kernel": "kernel", "weights": "kernel", "matrix": "kernel", "bias": "bias", "biases": "bias"}


def to_tensorflow(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An LSTM's parameter tree as {variable's name: array}, in the order of TensorFlow's own list.

    Raises:
        JaxlmError: the model's head is more or less than a softmax with a kernel of its own.
    """
    if (found := {*params["softmax"]}) != {"kernel", "bias"}:
        raise JaxlmError(
            f"TensorFlow's tutorial has one softmax with the variables kernel and bias, and this model's "
            f"head has {', '.join(sorted(found))}: export it --to stablehlo"
        )
    layers = {
        LAYER.format(i, part): layer[part] for i, layer in enumerate(params["layers"]) for part in ("kernel", "bias")
    }
    ends = {SOFTMAX_KERNEL: params["softmax"]["kernel"], SOFTMAX_BIAS: params["softmax"]["bias"]}
    return {name: np.asarray(array) for name, array in {EMBEDDING: params["embedding"], **layers, **ends}.items()}


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of `to_tensorflow`'s variables, under any scope.

    Args:
        variables: arrays by name, as TensorFlow's own list has them; slots of an optimiser are left out.
    Raises:
        JaxlmError: names are missing or unknown.
    """
    return _find(variables)[0].tree(lambda name: np.asarray(variables[name]))


def from_tensorflow_checkpoint(tensors: Tensors, source: str) -> ForeignModel:
    """The model of a TensorFlow 1 checkpoint of the Penn Treebank tutorial, under any scope.

    Args:
        tensors: the checkpoint's variables; slots of the optimiser and scalars are left out, which the notes say.
        source: what they were read from, in words.
    Raises:
        JaxlmError: variables are missing, unknown, of a wrong shape or not finite; they are named.
    """
    names, left = _find(tensors, {name for name, tensor in tensors.items() if not tensor.shape})
    vocab_size, width = matrix_shape(tensors, names.embedding)
    for cell in names.cells:
        rows, gates = matrix_shape(tensors, cell["kernel"])
        if gates % 4 or rows != width + gates // 4:
            raise JaxlmError(f"{shown(cell['kernel'])} is {rows}x{gates}, expected {width} + H rows and 4H columns")
        expect_shape(tensors, cell["bias"], (gates,))
        width = gates // 4
    expect_shape(tensors, names.kernel, (width, vocab_size))
    expect_shape(tensors, names.bias, (vocab_size,))
    notes = ["the forget bias is not in a checkpoint: it is taken as 0, as the tutorial has it"]
    if left:
        notes.append(f"left out, as no part of the model: {listed(left)}")
    return foreign_model(names.tree(lambda name: float32(tensors, name)), source, notes, tensors)


@dataclass(frozen=True)
class _Names:
    """Which variable is what; `cells` from the lowest layer on, each {part: name}."""

    embedding: str
    cells: Sequence[Mapping[str, str]]
    kernel: str
    bias: str

    def tree(self, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
        """jaxlm's parameter tree of the arrays that `read` gives for the names."""
        return {
            "embedding": read(self.embedding),
            "layers": [{part: read(cell[part]) for part in ("kernel", "bias")} for cell in self.cells],
            "softmax": {"kernel": read(self.kernel), "bias": read(self.bias)},
        }


def _find(names: Collection[str], scalars: Collection[str] = ()) -> tuple[_Names, list[str]]:
    """Which of the names of TensorFlow's variables is what in the tutorial's model, in any scope.

    Args:
        names: all names, with or without ":0".
        scalars: those that are single numbers (steps, rates), which are no part of the model.
    Returns:
        The names, and those that are no part of the model: slots of the optimiser, averages, scalars.
    Raises:
        JaxlmError: names are missing, given twice or unknown.
    """
    ends = {end: [name for name in names if _plain(name).split("/")[-1] in words] for end, words in _ENDS.items()}
    cells: dict[int, dict[str, str]] = {}
    for name in names:
        if found := _CELL.fullmatch(_plain(name)):
            part, index = _PARTS[found["part"].lower()], int(found["index"] or 0)
            if (other := cells.setdefault(index, {}).setdefault(part, name)) != name:
                raise JaxlmError(f"both {shown(other)} and {shown(name)} are the {part} of layer {index}")
    missing = [f"the {end} ({' or '.join(_ENDS[end])})" for end in ends if not ends[end]]
    missing += [
        f"the {part} of layer {index}"
        for index in range(max(cells, default=0) + 1)
        for part in ("kernel", "bias")
        if part not in cells.get(index, {})
    ]
    used = {_plain(name) for found in [*ends.values(), *(cell.values() for cell in cells.values())] for name in found}
    unused = [name for name in names if _plain(name) not in used]
    left = [name for name in unused if name in scalars or _plain(name).rpartition("/")[0] in used]
    if missing or len(left) < len(unused):
        raise JaxlmError(
            "expected the variables of an LSTM language model; missing are "
            f"{', '.join(missing) or 'none'}; unknown are {listed(set(unused) - set(left)) or 'none'}"
        )
    for end, found in ends.items():
        if len(found) > 1:
            raise JaxlmError(f"expected one variable that is the {end}, found {listed(found)}")
    embedding, kernel, bias = (found[0] for found in ends.values())
    return _Names(embedding, [cells[index] for index in sorted(cells)], kernel, bias), sorted(left)


def _plain(name: str) -> str:
    return name.removesuffix(":0")
