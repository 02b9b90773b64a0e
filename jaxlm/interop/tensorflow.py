"""Models under the names that TensorFlow 1's Penn Treebank tutorial gives its variables; the layout is jaxlm's own."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import ForeignModel, by_role, float32, listed, lstm_model, matrix_shape, shown
from jaxlm.interop.tensorflow_checkpoint import Variable

LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"
_ENDS = {"embedding": "embedding", "embedding_vocab": "embedding", "softmax_w": "softmax_w", "softmax_b": "softmax_b"}
_CELL = re.compile(
    r"(?:(?:.*/)?cell_?(?P<index>[0-9]{1,3})/|(?:.*/)?)[a-z_]*lstm_?cell(?:/linear)?"
    r"/(?P<part>kernel|bias|weights|biases|matrix)",
    re.IGNORECASE,
)


def to_tensorflow(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An LSTM's parameter tree as {variable's name: array}, in the order of TensorFlow's own list.

    Raises:
        JaxlmError: the model's head is not a softmax with a kernel of its own.
    """
    if (found := {*params["softmax"]}) != {"kernel", "bias"}:
        head = f"this model's head has {', '.join(sorted(found))}: export it --to stablehlo"
        raise JaxlmError(f"TensorFlow's tutorial has one softmax with the variables kernel and bias, and {head}")
    variables = {"m/embedding_vocab:0": params["embedding"]}
    for place, layer in enumerate(params["layers"]):
        variables |= {LAYER.format(place, part): layer[part] for part in ("kernel", "bias")}
    variables |= {"m/softmax_w:0": params["softmax"]["kernel"], "m/softmax_b:0": params["softmax"]["bias"]}
    return {name: np.asarray(array) for name, array in variables.items()}


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of `to_tensorflow`'s variables, under any scope.

    Args:
        variables: arrays by name, as TensorFlow's own list has them; slots of an optimiser are left out.
    Raises:
        JaxlmError: names are missing or unknown.
    """
    roles, layers, _ = _roles(variables)
    return _tree({role: np.asarray(variables[name]) for role, name in roles.items()}, layers)


def from_tensorflow_checkpoint(variables: Mapping[str, Variable], files: tuple[Path, ...]) -> ForeignModel:
    """The model of a checkpoint of the tutorial, in any scope. Raises JaxlmError, which names variables, for others."""
    roles, layers, left = _roles(variables, {name for name, variable in variables.items() if not variable.shape})
    arrays = {role: variables[name].read() for role, name in roles.items()}
    vocab_size, width = matrix_shape(roles["embedding"], arrays["embedding"])
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab_size, width)}
    for layer in range(layers):
        kernel = f"kernel of layer {layer}"
        rows, gates = matrix_shape(roles[kernel], arrays[kernel])
        if gates % 4 or rows != width + gates // 4:
            raise JaxlmError(f"{shown(roles[kernel])} is {rows}x{gates}, expected {width} + H rows and 4H columns")
        shapes |= {kernel: (rows, gates), f"bias of layer {layer}": (gates,)}
        width = gates // 4
    shapes |= {"softmax_w": (width, vocab_size), "softmax_b": (vocab_size,)}
    params = _tree({role: float32(roles[role], arrays[role], shape) for role, shape in shapes.items()}, layers)
    notes = ["the forget bias is not in a checkpoint: it is taken as 0, as the tutorial has it"]
    if left:
        notes.append(f"left out, as no part of the model: {listed(left)}")
    return lstm_model(params, notes, arrays.values(), files)


def _roles(names: Collection[str], scalars: Collection[str] = ()) -> tuple[dict[str, str], int, set[str]]:
    """The name of the variable, in any scope, of each role; the number of layers; and the names that have no role.

    Without a role are slots of the optimiser, averages and `scalars`. Raises JaxlmError as `by_role`.
    """
    plain = {name.removesuffix(":0") for name in names}
    left = {name for name in names if name in scalars or name.rpartition("/")[0] in plain}
    return *by_role([name for name in names if name not in left], _role, _ENDS.values(), ["kernel", "bias"]), left


def _role(name: str) -> str | None:
    """What a variable of this name is; None: nothing that an LSTM language model has."""
    name = name.removesuffix(":0")
    if cell := _CELL.fullmatch(name):
        part = "bias" if cell["part"].lower().startswith("bias") else "kernel"
        return f"{part} of layer {int(cell['index'] or 0)}"
    return _ENDS.get(name.split("/")[-1])


def _tree(arrays: Mapping[str, np.ndarray], layers: int) -> dict[str, Any]:
    """jaxlm's parameter tree of the arrays by role."""
    return {
        "embedding": arrays["embedding"],
        "layers": [{part: arrays[f"{part} of layer {at}"] for part in ("kernel", "bias")} for at in range(layers)],
        "softmax": {"kernel": arrays["softmax_w"], "bias": arrays["softmax_b"]},
    }
