"""Export to ONNX: LSTM (or GRU) nodes, with the state as inputs and outputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.config import kind_of
from jaxlm.config.models import GRU, LSTM
from jaxlm.errors import JaxlmError
from jaxlm.files import new_file
from jaxlm.interop.torch_naming import array, check_known, lstm_gates
from jaxlm.scoring.language_model import LanguageModel

OPSET, IR_VERSION = 17, 8  # what onnxruntime reads since 1.12
MOST_BYTES = (1 << 31) - (1 << 24)  # of a protocol buffer, with room for all but the weights


def export_onnx(model: LanguageModel, out: Path) -> list[str]:
    """Writes an ONNX model; returns notes.

    Inputs: `tokens` int64 [T, B], and of each layer k `h_k` and, of an LSTM, `c_k`, float32 [1, B, H]. Outputs:
    `logits` [T, B, V], and `h_k_out` and `c_k_out`. The words are in the metadata, under "vocabulary", as a JSON list.

    Raises:
        JaxlmError: the package onnx is missing, ONNX has no such layer, or the model is too large.
        OSError: the file cannot be written.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError("exporting to ONNX needs the package onnx: pip install 'jaxlm[onnx]'") from None
    config, params = model.config.model, model.params
    name = kind_of("model", config)
    if type(config) not in (LSTM, GRU):
        raise JaxlmError(
            f"ONNX has no node that computes what a {name} does: it has LSTM and GRU; export it --to stablehlo or orbax"
        )
    check_known(config, params)
    graph = _Graph(onnx, model)
    if graph.bytes > MOST_BYTES:
        raise JaxlmError(
            f"an ONNX file can hold {MOST_BYTES:,} bytes, and this model's weights take {graph.bytes:,}: "
            f"export it --to safetensors or stablehlo"
        )
    helper = onnx.helper
    made = helper.make_model(
        helper.make_graph(graph.nodes, "jaxlm", graph.inputs, graph.outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxlm",
    )
    helper.set_model_props(made, {"vocabulary": json.dumps(model.vocab.words)})
    onnx.checker.check_model(made)
    with new_file(out) as file:
        file.write(made.SerializeToString())
    return []


class _Graph:
    """The nodes of a model, from tokens to logits."""

    def __init__(self, onnx: Any, model: LanguageModel):
        self._onnx, self._helper = onnx, onnx.helper
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []
        self.bytes = 0
        config, params = model.config.model, model.params
        V = len(model.vocab)
        self._declare(self.inputs, "tokens", "INT64", ["T", "B"])
        self._declare(self.outputs, "logits", "FLOAT", ["T", "B", V])
        self._hold("embedding", array(params["embedding"]))
        self._node("Gather", ["embedding", "tokens"], ["x_0"], axis=0)
        self._hold("direction", np.array([1], np.int64))
        for place, (weights, width) in enumerate(zip(params["layers"], config.hidden_sizes, strict=True)):
            self._layer(place, config, weights, width)
        last = f"x_{len(config.hidden_sizes)}"
        if config.tied:
            self._node("Transpose", ["embedding"], ["kernel"], perm=[1, 0])
        else:
            self._hold("kernel", array(params["softmax"]["kernel"]))
        self._hold("bias", array(params["softmax"]["bias"]))
        self._node("MatMul", [last, "kernel"], ["scores"])
        self._node("Add", ["scores", "bias"], ["logits"])

    def _layer(self, place: int, config: Any, weights: Mapping[str, Any], width: int) -> None:
        """A node from x_k [T, B, E] to x_k+1 [T, B, H]; its own output has an axis of directions besides."""
        parts = ("h", "c") if isinstance(config, LSTM) else ("h",)
        states, ends = [f"{part}_{place}" for part in parts], [f"{part}_{place}_out" for part in parts]
        for name, end in zip(states, ends, strict=True):
            self._declare(self.inputs, name, "FLOAT", [1, "B", width])
            self._declare(self.outputs, end, "FLOAT", [1, "B", width])
        arrays = _lstm(config, weights) if isinstance(config, LSTM) else _gru(weights)
        names = [f"{part}_{place}" for part in ("W", "R", "biases")]
        for name, value in zip(names, arrays, strict=True):
            self._hold(name, value[None])
        options = {} if isinstance(config, LSTM) else {"linear_before_reset": 1}
        self._node(
            "LSTM" if isinstance(config, LSTM) else "GRU",
            [f"x_{place}", *names, "", *states],
            [f"y_{place}", *ends],
            hidden_size=width,
            **options,
        )
        self._node("Squeeze", [f"y_{place}", "direction"], [f"x_{place + 1}"])

    def _declare(self, where: list, name: str, kind: str, shape: list) -> None:
        where.append(self._helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape))

    def _hold(self, name: str, value: np.ndarray) -> None:
        self.bytes += value.nbytes
        if self.bytes <= MOST_BYTES:
            self.weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self._helper.make_node(kind, inputs, outputs, **attributes))


def _lstm(config: LSTM, weights: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W [4H, E], R [4H, H] and both biases [8H], gates in ONNX's order i, o, f, c."""
    inward, across, bias = lstm_gates(config, weights, "iofj")
    return inward, across, np.concatenate([bias, np.zeros_like(bias)])


def _gru(weights: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W [3H, E], R [3H, H] and both biases [6H], gates in ONNX's order z, r, h."""
    recurrent = array(weights["recurrent_bias"])
    recurrent = np.pad(recurrent, (2 * len(recurrent), 0))

    def ordered(rows: np.ndarray) -> np.ndarray:
        r, z, n = np.split(rows, 3)
        return np.concatenate([z, r, n])

    return (
        ordered(array(weights["kernel"]).T),
        ordered(array(weights["recurrent_kernel"]).T),
        np.concatenate([ordered(array(weights["bias"])), ordered(recurrent)]),
    )
