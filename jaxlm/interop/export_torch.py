"""Export to a PyTorch state_dict: the archive that `torch.save` writes, without PyTorch, and a .safetensors file.

The names are those of pytorch/examples' word_language_model: `encoder.weight`, `rnn.weight_ih_l0`, ...,
`decoder.weight`, `decoder.bias`. Where the layers' widths differ, which nn.LSTM cannot have, each layer is a module of
its own, as in awd-lstm-lm: `rnns.0.weight_ih_l0`, `rnns.1.weight_ih_l0`, ...
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from jaxlm.config.config import kind_of
from jaxlm.errors import JaxlmError
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.scoring.language_model import LanguageModel

StateDict = dict[str, np.ndarray]  # two names of one array object share it
ALIGNMENT = 64  # bytes, of each storage within the file, as torch.save has it


def to_torch(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A file that `torch.load(OUT, weights_only=True)` reads, and notes. Raises JaxlmError as `torch_layers`."""
    tensors, notes = state_dict(model.config.model, model.params)
    keys = {identity: str(key) for key, identity in enumerate(dict.fromkeys(map(id, tensors.values())))}
    items = b"".join(_plain(name) + _tensor(keys[id(tensor)], tensor) for name, tensor in tensors.items())
    entries = {
        "data.pkl": b"\x80\x02" + _call("collections", "OrderedDict", b")") + b"(" + items + b"u.",
        "byteorder": b"little",
        **{f"data/{keys[id(one)]}": one.astype("<f4", copy=False).data.cast("B") for one in tensors.values()},
        "version": b"3\n",
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(f"model/{name}")  # (of 1980, so that equal tensors give equal bytes)
            padding = -(file.tell() + 30 + len(info.filename) + 4) % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(info, data)
    return file.getvalue(), notes


def to_safetensors(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A .safetensors file and notes; an array of two names is kept once, as safetensors.torch.save_model does."""
    tensors, notes = state_dict(model.config.model, model.params)
    metadata = {"format": "pt"}
    if model.config.model.tied:
        del tensors["decoder.weight"]
        metadata["decoder.weight"] = "encoder.weight"
        notes.append("the model is tied: decoder.weight is encoder.weight, kept once and named in the file's metadata")
    return safetensors.numpy.save(tensors, metadata), notes


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`, in instructions."""
    strides = tuple(stride // tensor.itemsize for stride in tensor.strides)
    storage = _plain("storage") + b"ctorch\nFloatStorage\n" + b"".join(map(_plain, (key, "cpu", tensor.size)))
    view = b"".join(map(_plain, (0, tensor.shape, strides, False))) + _call("collections", "OrderedDict", b")")
    return _call("torch._utils", "_rebuild_tensor_v2", b"((" + storage + b"tQ" + view + b"t")


def _plain(value: object) -> bytes:
    """The instructions that make a value of Python's own."""
    return pickle.dumps(value, 2)[2:-1]


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def state_dict(model: Recurrent, params: Params) -> tuple[StateDict, list[str]]:
    """The state_dict of a model, in float32, and what a user should know of it. Raises JaxlmError as `torch_layers`."""
    layers, notes = torch_layers(model, params), []
    equal = len(set(model.hidden_sizes)) == 1
    if not equal:
        notes.append("the layers' widths differ: each is a module of its own, rnns.0, rnns.1, ..., as in awd-lstm-lm")
    if isinstance(model, LSTM) and float(model.forget_bias):
        notes.append(f"the forget bias {float(model.forget_bias):g} was added to the biases")
    found = {"encoder.weight": array(params["embedding"])}
    for place, layer in enumerate(layers):
        where = f"rnn.{{}}_l{place}" if equal else f"rnns.{place}.{{}}_l0"
        found |= {where.format(part): value for part, value in layer.items()}
    found["decoder.weight"] = found["encoder.weight"] if model.tied else array(params["softmax"]["kernel"].T)
    found["decoder.bias"] = array(params["softmax"]["bias"])
    return found, notes


def torch_layers(model: Recurrent, params: Params) -> list[StateDict]:
    """Each layer as PyTorch has it: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`; the forget bias is in `bias_ih`.

    Raises JaxlmError where a model is more than an embedding, LSTM or GRU layers one after the other and a softmax.
    """
    problems = {
        f"layers of the kind {kind_of('model', model)}": type(model) not in _LAYERS,
        "skip connections": model.skip,
        "scaled embeddings": model.scale_embedding,
        f"a head of {model.experts} softmaxes mixed": model.experts,
        "a head that is tied through a projection": model.projection,
    }
    if problem := next((problem for problem, found in problems.items() if found), None):
        place = "this format has a place for LSTM or GRU layers and one softmax only"
        raise JaxlmError(f"the model has {problem}, and {place}: export it --to stablehlo")
    layers = [_LAYERS[type(model)](model, layer) for layer in params["layers"]]
    return [{part: array(value) for part, value in layer.items()} for layer in layers]


def array(values: object) -> np.ndarray:
    """Values as float32 in C order."""
    return np.asarray(values, np.float32, order="C")


def _lstm(model: LSTM, weights: Mapping[str, Any]) -> StateDict:
    """From the gates i, j, f, o in one kernel [E + H, 4H] to i, f, g, o in two; g and j are two names of one gate."""
    i, j, f, o = np.split(np.vstack([weights["kernel"], weights["bias"]]).T, 4)
    rows, width = np.concatenate([i, f, j, o]), len(i)
    rows[width : 2 * width, -1] += np.float32(model.forget_bias)
    return {
        "weight_ih": rows[:, : -width - 1],
        "weight_hh": rows[:, -width - 1 : -1],
        "bias_ih": rows[:, -1],
        "bias_hh": np.zeros(len(rows)),
    }


def _gru(model: GRU, weights: Mapping[str, Any]) -> StateDict:
    """PyTorch's GRU is jaxlm's: gates r, z, n; of its recurrent bias only n's part is needed besides."""
    recurrent = weights["recurrent_bias"]
    return {
        "weight_ih": weights["kernel"].T,
        "weight_hh": weights["recurrent_kernel"].T,
        "bias_ih": weights["bias"],
        "bias_hh": np.pad(recurrent, (2 * len(recurrent), 0)),
    }


_LAYERS: dict[type[Recurrent], Callable[..., StateDict]] = {LSTM: _lstm, GRU: _gru}
