"""Models under the names that TensorFlow 1's Penn Treebank tutorial gives its variables; the layout is jaxlm's own."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import (
    ForeignModel,
    Tensors,
    expect_shape,
    float32,
    foreign_model,
    listed,
    matrix_shape,
    shown,
)

LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"
_ENDS = {
    "embedding": "embedding",
    "embedding_vocab": "embedding",
    "softmax_w": "softmax kernel (softmax_w)",
    "softmax_b": "softmax bias (softmax_b)",
}
_CELL = re.compile(
    r"(?:(?:.*/)?cell_?(?P<index>[0-9]{1,3})/|(?:.*/)?)[a-z_]*lstm_?cell(?:/linear)?"
    r"/(?P<part>kernel|bias|weights|biases|matrix)",
    re.IGNORECASE,
)


def to_tensorflow(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An LSTM's parameter tree as {variable's name: array}, in the order of TensorFlow's own list.

    Raises:
        JaxlmError: the model's head is more or less than a softmax with a kernel of its own.
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
    names, _ = _tree_of_names(variables)
    return _map(lambda name: np.asarray(variables[name]), names)


def from_tensorflow_checkpoint(tensors: Tensors, source: str) -> ForeignModel:
    """The model of a TensorFlow 1 checkpoint of the Penn Treebank tutorial, under any scope.

    Raises JaxlmError where variables are missing, unknown, of a wrong shape or not finite; they are named.
    """
    names, left = _tree_of_names(tensors, {name for name, tensor in tensors.items() if not tensor.shape})
    vocab_size, width = matrix_shape(tensors, names["embedding"])
    for cell in names["layers"]:
        rows, gates = matrix_shape(tensors, cell["kernel"])
        if gates % 4 or rows != width + gates // 4:
            raise JaxlmError(f"{shown(cell['kernel'])} is {rows}x{gates}, expected {width} + H rows and 4H columns")
        expect_shape(tensors, cell["bias"], (gates,))
        width = gates // 4
    expect_shape(tensors, names["softmax"]["kernel"], (width, vocab_size))
    expect_shape(tensors, names["softmax"]["bias"], (vocab_size,))
    notes = ["the forget bias is not in a checkpoint: it is taken as 0, as the tutorial has it"]
    if left:
        notes.append(f"left out, as no part of the model: {listed(left)}")
    return foreign_model(_map(partial(float32, tensors), names), source, notes, tensors)


def _tree_of_names(names: Collection[str], scalars: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """jaxlm's parameter tree with the name of TensorFlow's variable, in any scope, in place of each array.

    The names that are no part of the model (slots of the optimiser, averages, `scalars`) are returned beside it.
    Raises JaxlmError where names are missing, given twice or unknown.
    """
    plain = {name: name.removesuffix(":0") for name in names}
    roles: dict[str, list[str]] = {}
    layers = 1
    for name in names:
        if cell := _CELL.fullmatch(plain[name]):
            part, index = "bias" if cell["part"].lower() in ("bias", "biases") else "kernel", int(cell["index"] or 0)
            roles.setdefault(f"{part} of layer {index}", []).append(name)
            layers = max(layers, index + 1)
        elif role := _ENDS.get(plain[name].split("/")[-1]):
            roles.setdefault(role, []).append(name)
    wanted = [*_ENDS.values(), *(f"{part} of layer {index}" for index in range(layers) for part in ("kernel", "bias"))]
    missing = [f"the {role}" for role in dict.fromkeys(wanted) if role not in roles]
    used = {plain[name] for found in roles.values() for name in found}
    unused = {name for name in names if plain[name] not in used}
    left = {name for name in unused if name in scalars or plain[name].rpartition("/")[0] in used}
    if missing or unused - left:
        problem = f"missing are {', '.join(missing) or 'none'}; unknown are {listed(unused - left) or 'none'}"
        raise JaxlmError(f"expected the variables of an LSTM language model; {problem}")
    for role, found in roles.items():
        if len(found) > 1:
            raise JaxlmError(f"expected one variable that is the {role}, found {listed(found)}")
    tree = {
        "embedding": roles["embedding"][0],
        "layers": [
            {part: roles[f"{part} of layer {index}"][0] for part in ("kernel", "bias")} for index in range(layers)
        ],
        "softmax": {"kernel": roles[_ENDS["softmax_w"]][0], "bias": roles[_ENDS["softmax_b"]][0]},
    }
    return tree, sorted(left)


def _map(function: Callable[[str], np.ndarray], tree: Any) -> Any:
    """The tree with an array in place of each name (as jax.tree.map, without JAX)."""
    if isinstance(tree, str):
        return function(tree)
    if isinstance(tree, list):
        return [_map(function, part) for part in tree]
    return {name: _map(function, part) for name, part in tree.items()}
