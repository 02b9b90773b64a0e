"""Models for other programs: parameters under PyTorch's names, and whole programs (ONNX, StableHLO).

The names are those of pytorch/examples' word_language_model: `encoder.weight`, `rnn.weight_ih_l0`, ...,
`decoder.weight`, `decoder.bias`. Where the layers' widths differ, which nn.LSTM cannot have, each layer is a module of
its own, as in awd-lstm-lm: `rnns.0.weight_ih_l0`, `rnns.1.weight_ih_l0`, ...
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export

from jaxlm.config.config import kind_of
from jaxlm.errors import JaxlmError
from jaxlm.files import explained, vacant
from jaxlm.interop.export_hub import export_hub
from jaxlm.models import heads, stack
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import model_of
from jaxlm.scoring.language_model import LanguageModel

StateDict = dict[str, np.ndarray]  # two names of one array object share it
ALIGNMENT = 64  # bytes, of each storage within the file, as torch.save has it
ONNX_HEADER = '<ir_version: 8, opset_import: ["" : 17], producer_name: "jaxlm">'  # read by onnxruntime from 1.12 on
MOST_ONNX = (1 << 31) - (1 << 24)  # bytes of a protocol buffer, with room for all but the weights


def to_torch(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A file that `torch.load(OUT, weights_only=True)` reads, and notes. Raises JaxlmError as `torch_layers`."""
    tensors, notes = state_dict(model.config.model, model.params)
    keys = {
        identity: str(key) for key, identity in enumerate(dict.fromkeys(map(id, tensors.values())))
    }
    items = b"".join(
        _plain(name) + _tensor(keys[id(tensor)], tensor) for name, tensor in tensors.items()
    )
    entries = {
        "data.pkl": b"\x80\x02}(" + items + b"u.",
        "byteorder": b"little",
        **{
            f"data/{keys[id(one)]}": one.astype("<f4", copy=False).data.cast("B")
            for one in tensors.values()
        },
        "version": b"3\n",
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(
                f"model/{name}"
            )  # (of 1980, so that equal tensors give equal bytes)
            padding = -(file.tell() + 30 + len(info.filename) + 4) % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(info, data)
    return file.getvalue(), notes


def to_safetensors(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A .safetensors file of the state_dict, and notes. Raises JaxlmError as `torch_layers`."""
    tensors, notes = state_dict(model.config.model, model.params)
    return safetensors.numpy.save(tensors, {"format": "pt"}), notes


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`, in instructions."""
    strides = tuple(stride // tensor.itemsize for stride in tensor.strides)
    storage = (
        _plain("storage")
        + b"ctorch\nFloatStorage\n"
        + b"".join(map(_plain, (key, "cpu", tensor.size)))
    )
    view = (
        b"".join(map(_plain, (0, tensor.shape, strides, False))) + b"ccollections\nOrderedDict\n)R"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + view + b"tR"


def _plain(value: object) -> bytes:
    """The instructions that make a value of Python's own."""
    return pickle.dumps(value, 2)[2:-1]


def state_dict(model: Recurrent, params: Params) -> tuple[StateDict, list[str]]:
    """The state_dict of a model, in float32, and what a user should know of it. Raises JaxlmError as `torch_layers`."""
    layers = torch_layers(model, params)
    notes = []
    equal = len(set(model.hidden_sizes)) == 1
    if not equal:
        notes.append(
            "the layers' widths differ: each is a module of its own, rnns.0, rnns.1, ..., as in awd-lstm-lm"
        )
    if isinstance(model, LSTM) and float(model.forget_bias):
        notes.append(f"the forget bias {float(model.forget_bias):g} was added to the biases")
    found = {"encoder.weight": array(params["embedding"])}
    for place, layer in enumerate(layers):
        where = f"rnn.{{}}_l{place}" if equal else f"rnns.{place}.{{}}_l0"
        found |= {where.format(part): value for part, value in layer.items()}
    found["decoder.weight"] = (
        found["encoder.weight"] if model.tied else array(params["softmax"]["kernel"].T)
    )
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
    problem = next((problem for problem, found in problems.items() if found), None)
    if problem:
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
    rows = np.concatenate([i, f, j, o])
    width = len(i)
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


def to_stablehlo(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A file that `jax.export.deserialize` reads, and notes.

    Its `call(tokens, *carry)` takes tokens int32 [1, B], for any B, and the carry's arrays, all zero before the first
    word, and returns the logits [1, B, V] of the next word and the new carry.
    Raises JaxlmError where the package flatbuffers is missing.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError(
            "StableHLO needs the package flatbuffers: pip install 'jaxlm[stablehlo]'"
        ) from None
    recurrent = stack.exact(model.config.model)
    params = model.params
    like = jax.eval_shape(lambda: stack.zero_carry(recurrent, 1))
    structure = jax.tree.structure(like)

    def next_word(tokens: jax.Array, *carry: jax.Array) -> tuple[jax.Array, ...]:
        state = jax.tree.unflatten(structure, carry)
        features, state = stack.features(
            recurrent, params, Noise(), stack.embed(params, tokens), state
        )
        return heads.logits(recurrent, params, features), *jax.tree.leaves(state)

    rows = export.symbolic_shape("B")[0]
    arguments = [jax.ShapeDtypeStruct((1, rows), jnp.int32)]
    arguments += [
        jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for leaf in jax.tree.leaves(like)
    ]
    made = export.export(jax.jit(next_word), platforms=("cpu", "cuda", "tpu"))(*arguments)
    return bytes(made.serialize()), []


def to_onnx(model: LanguageModel) -> tuple[bytes, list[str]]:
    """An ONNX model, and notes.

    Inputs: `tokens` int64 [T, B], and of each layer k `h_k` and, of an LSTM, `c_k`, float32 [1, B, H]. Outputs:
    `logits` [T, B, V], and `h_k_out` and `c_k_out`. The words are in the metadata, under "vocabulary", as a JSON list.
    Raises JaxlmError where the package onnx is missing, ONNX has no such layer, or the model is too large.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnx.parser  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError(
            "exporting to ONNX needs the package onnx: pip install 'jaxlm[onnx]'"
        ) from None
    text, weights = _graph(model)
    size = sum(weight.nbytes for weight in weights.values())
    if size > MOST_ONNX:
        found = f"an ONNX file can hold {MOST_ONNX:,} bytes, and this model's weights take {size:,}"
        raise JaxlmError(f"{found}: export it --to safetensors or stablehlo")
    made = onnx.parser.parse_model(f"{ONNX_HEADER}\n{text}")
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()
    )
    onnx.helper.set_model_props(made, {"vocabulary": json.dumps(model.vocab.words)})
    onnx.checker.check_model(made)
    return made.SerializeToString(), []


def _graph(model: LanguageModel) -> tuple[str, dict[str, np.ndarray]]:
    """A model's graph in ONNX's textual syntax, and its weights by name. Raises JaxlmError for what ONNX lacks."""
    config = model.config.model
    params = model.params
    kind = "LSTM" if isinstance(config, LSTM) else "GRU"
    layers = torch_layers(config, params)
    weights = {"embedding": array(params["embedding"]), "bias": array(params["softmax"]["bias"])}
    weights["direction"] = np.array([1], np.int64)
    inputs = ["int64[T, B] tokens"]
    outputs = [f"float[T, B, {len(model.vocab)}] logits"]
    nodes = ["x_0 = Gather <axis = 0> (embedding, tokens)"]
    for k, layer in enumerate(layers):
        width = layer["weight_hh"].shape[1]
        states = [f"{part}_{k}" for part in ("hc" if kind == "LSTM" else "h")]
        ends = [f"{state}_out" for state in states]
        inputs += [f"float[1, B, {width}] {state}" for state in states]
        outputs += [f"float[1, B, {width}] {end}" for end in ends]
        weights |= {f"{name}_{k}": value[None] for name, value in _weights(layer, kind).items()}
        options = f"hidden_size = {width}" + ("" if kind == "LSTM" else ", linear_before_reset = 1")
        taken = f"x_{k}, W_{k}, R_{k}, biases_{k}, , {', '.join(states)}"  # (between two commas: no lengths)
        nodes.append(f"y_{k}, {', '.join(ends)} = {kind} <{options}> ({taken})")
        nodes.append(f"x_{k + 1} = Squeeze (y_{k}, direction)")  # its axis of directions
    if config.tied:
        nodes.append("kernel = Transpose <perm = [1, 0]> (embedding)")
    else:
        weights["kernel"] = array(params["softmax"]["kernel"])
    nodes += [f"scores = MatMul (x_{len(layers)}, kernel)", "logits = Add (scores, bias)"]
    head = f"jaxlm ({', '.join(inputs)}) => ({', '.join(outputs)})"
    return "\n".join([head, "{", *nodes, "}"]), weights


def _weights(layer: StateDict, kind: str) -> StateDict:
    """A layer's weights as ONNX has them: gates i, o, f, c (PyTorch: i, f, g, o), or z, r, h (PyTorch: r, z, n)."""
    order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]
    parts = {
        name: np.concatenate([np.split(value, len(order))[at] for at in order])
        for name, value in layer.items()
    }
    biases = np.concatenate([parts["bias_ih"], parts["bias_hh"]])
    return {"W": parts["weight_ih"], "R": parts["weight_hh"], "biases": biases}


# Each gives a file's bytes, and notes.
EXPORTERS = {
    "safetensors": to_safetensors,
    "torch": to_torch,
    "onnx": to_onnx,
    "stablehlo": to_stablehlo,
}
TARGETS = (*EXPORTERS, "hub")


def export_model(
    run: str | Path | LanguageModel, target: str, out: str | Path, which: str = "last"
) -> list[str]:
    """Writes a model for another program, whole or not at all.

    The parameters are those of evaluation: the average, if the run keeps one.

    Args:
        run: a run's directory, or a model.
        target: safetensors or torch (a PyTorch state_dict), hub (a folder with a model card, and a folder within it for
            each checkpoint of keep_checkpoints), onnx or stablehlo (by jax.export).
        out: the file or folder to make, which must not exist.
        which: `last`, `best` or a step, of a run's directory.
    Returns:
        Notes for the user: parameters that were added up, averaged or renamed.
    Raises:
        JaxlmError: the target is unknown or cannot express the model (with the reason), a package for it is missing,
            or OUT exists or cannot be written.
    """
    if target not in TARGETS:
        raise JaxlmError(f"expected one of {', '.join(TARGETS)} to export to, found {target!r}")
    if not isinstance(run, LanguageModel):
        which = checkpoint.find(run, which).name  # (a run that trains may save another meanwhile)
    model = model_of(run, which)
    with explained(JaxlmError, f"cannot export to {os.fspath(out)}"):
        if target == "hub":
            export_hub(
                model, Path(out), None if isinstance(run, LanguageModel) else Path(run), which
            )
            notes = []
        else:
            data, notes = EXPORTERS[target](model)
            with vacant(out) as (parent, name):
                parent.write(name, data)
    if model.config.optimizer.averages:
        notes = [
            *notes,
            "the parameters are those of evaluation: the average, once it has begun, not the last ones",
        ]
    return notes
