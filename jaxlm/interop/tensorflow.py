"""TensorFlow 1: the parameters of its Penn Treebank tutorial by name, and its checkpoints.

A checkpoint is `NAME.index` and `NAME.data-00000-of-00001`, or more shards. TensorFlow reads it
(the extra `tensorflow`), in a process of its own.
"""

import codecs
import glob
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import read_bytes, reader
from jaxlm.interop import checkpoint_reader
from jaxlm.interop.foreign import (
    MOST_SHARING,
    ForeignModel,
    as_float32,
    by_role,
    listed,
    matrix_shape,
    quote,
)

LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"
MOST_DATA = 1 << 32  # bytes of a checkpoint's files
_ENDS = {
    "embedding": "embedding",
    "embedding_vocab": "embedding",
    "softmax_w": "softmax_w",
    "softmax_b": "softmax_b",
}
_CELL = re.compile(
    r"(?:(?:.*/)?cell_?(?P<index>[0-9]{1,3})/|(?:.*/)?)[a-z_]*lstm_?cell(?:/linear)?"
    r"/(?P<part>kernel|bias|weights|biases|matrix)",
    re.IGNORECASE,
)
_ENDING = re.compile(r"(?s)(.+)\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")
_LATEST = re.compile(rb'(?m)^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\\n]|\\.)+)"')


def to_tensorflow(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts an LSTM's parameter tree to TensorFlow's variables.

    Args:
        params: The tree, as `init_params` makes it.

    Returns:
        {variable's name: array}, in the order of TensorFlow's own list.

    Raises:
        JaxlmError: The model's layers are not LSTMs, or its head is not a softmax with a kernel of
            its own.
    """
    if set(params["softmax"]) != {"kernel", "bias"}:
        raise JaxlmError(
            "TensorFlow's tutorial has one softmax with its own kernel: "
            "export this model --to stablehlo"
        )
    variables = {"m/embedding_vocab:0": params["embedding"]}
    width = params["embedding"].shape[1]
    for place, layer in enumerate(params["layers"]):
        rows, columns = np.shape(layer.get("kernel", [[]]))
        width = rows - width
        if set(layer) != {"kernel", "bias"} or columns != 4 * width:
            raise JaxlmError(
                "TensorFlow's tutorial has LSTM layers alone: export this model --to stablehlo"
            )
        for name in ("kernel", "bias"):
            variables[LAYER.format(place, name)] = layer[name]
    variables["m/softmax_w:0"] = params["softmax"]["kernel"]
    variables["m/softmax_b:0"] = params["softmax"]["bias"]
    return {name: np.asarray(array) for name, array in variables.items()}


def from_tensorflow(variables: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Converts TensorFlow's variables to an LSTM's parameter tree; the inverse of `to_tensorflow`.

    Args:
        variables: Arrays by name, in any scope, as TensorFlow's own list has them. An optimiser's
            slots and scalars are left out.

    Returns:
        The parameter tree.

    Raises:
        JaxlmError: Names are missing or unknown.
    """
    names, _ = _names({name: np.asarray(array) for name, array in variables.items()})
    return jax.tree.map(lambda name: np.asarray(variables[name]), names)


def read_tensorflow(prefix: Path) -> ForeignModel:
    """Reads the model of a checkpoint of the tutorial.

    Args:
        prefix: What the paths of the checkpoint's files begin with.

    Returns:
        The model, of which `tensorflow_model` says more.

    Raises:
        JaxlmError: TensorFlow is missing or cannot read the checkpoint, or the model is another.
        OSError: A file cannot be read.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    shards = prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*")
    files = (index, *sorted(shards))
    stored = 0
    for path in files:
        with reader(path) as file:
            stored += os.fstat(file.fileno()).st_size
    if stored > MOST_DATA:
        raise JaxlmError(f"it has {stored:,} bytes, expected at most {MOST_DATA:,}")
    if not importlib.util.find_spec("tensorflow"):
        raise JaxlmError(
            "a TensorFlow 1 checkpoint needs TensorFlow: pip install 'jaxlm[tensorflow]'"
        )
    # -P: this folder, whose tensorflow.py is not the library, stays out of the path.
    command = [sys.executable, "-P", checkpoint_reader.__file__, prefix, str(MOST_SHARING * stored)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or ["it ended without a word"]
        raise JaxlmError(f"TensorFlow cannot read it, it may be damaged: {quote(lines[-1], 300)}")
    return tensorflow_model(safetensors.numpy.load(done.stdout), *files)


def tensorflow_model(variables: Mapping[str, np.ndarray], *files: Path) -> ForeignModel:
    """Makes the model of a checkpoint's variables.

    Args:
        variables: Arrays by name, in any scope.
        files: The checkpoint's files.

    Returns:
        The model, with notes of what was left out and assumed.

    Raises:
        JaxlmError: The variables are not those of the tutorial's model. They are named.
    """
    names, others = _names(variables)
    arrays = jax.tree.map(lambda name: variables[name], names)
    vocab_size, width = matrix_shape(names["embedding"], arrays["embedding"])
    shapes: dict[str, Any] = {"embedding": (vocab_size, width), "layers": []}
    for layer in arrays["layers"]:
        below = width
        width = layer["bias"].size // 4
        shapes["layers"].append({"kernel": (below + width, 4 * width), "bias": (4 * width,)})
    shapes["softmax"] = {"kernel": (width, vocab_size), "bias": (vocab_size,)}
    params = jax.tree.map(as_float32, names, arrays, shapes)
    notes = ["the forget bias is not in a checkpoint: it is taken as 0, as the tutorial has it"]
    if others:
        notes.append(f"left out, as no part of the model: {listed(others)}")
    return ForeignModel.of_lstm(params, notes, *files)


def _names(variables: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], set[str]]:
    """Finds the model's variables.

    Args:
        variables: Arrays by name, in any scope.

    Returns:
        jaxlm's parameter tree with a variable's name for each array; and the names of an
        optimiser's slots, averages and scalars.

    Raises:
        JaxlmError: Names are missing, unknown or given twice.
    """
    plain = {name.removesuffix(":0") for name in variables}
    others = set()
    for name, array in variables.items():
        if not array.shape or name.rpartition("/")[0] in plain:
            others.add(name)
    model = [name for name in variables if name not in others]
    roles, layers = by_role(model, _role, _ENDS.values(), ["kernel", "bias"])
    softmax = {"kernel": roles["softmax_w"], "bias": roles["softmax_b"]}
    return {"embedding": roles["embedding"], "layers": layers, "softmax": softmax}, others


def _role(name: str) -> str | None:
    """What a variable of this name is; None: nothing that an LSTM language model has."""
    name = name.removesuffix(":0")
    cell = _CELL.fullmatch(name)
    if cell:
        part = "bias" if cell["part"].lower().startswith("bias") else "kernel"
        return f"{part} of layer {int(cell['index'] or 0)}"
    return _ENDS.get(name.split("/")[-1])


def checkpoint_prefix(path: Path) -> Path | None:
    """The path that a checkpoint's files begin with; None where there is no checkpoint.

    A user may give this path, any one of the files, the file named `checkpoint`, or the folder of
    one.

    Raises:
        JaxlmError: The `checkpoint` file of a folder is missing, unreadable, or names nothing in
            the folder.
    """
    path = path / "checkpoint" if path.is_dir() else path
    if path.name == "checkpoint" and not path.with_name("checkpoint.index").exists():
        if not path.is_file():
            raise JaxlmError(
                "expected a checkpoint in the folder, and there is no file 'checkpoint'"
            )
        latest = _LATEST.search(read_bytes(path, 1 << 20))
        written_to = ""
        if latest:  # UTF-8 in octal escapes
            written_to = codecs.escape_decode(latest[1])[0].decode()
        # The files lie beside the one that names them, whatever folder they were written to.
        name = Path(written_to).name
        if not name:
            raise JaxlmError("its file 'checkpoint' names no model_checkpoint_path in its folder")
        return path.parent / name
    ending = _ENDING.fullmatch(path.name)
    if ending:
        return path.with_name(ending[1])
    if path.name and path.with_name(path.name + ".index").exists():
        return path
    return None
