"""Export to ONNX: LSTM (or GRU) nodes, with the state as inputs and outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.files import new_file
from jaxlm.interop.export_torch import StateDict, array, torch_layers
from jaxlm.models.lstm import LSTM
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
    graph, helper = _Graph(onnx, model), onnx.helper
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
        config, params = model.config.model, model.params
        layers = torch_layers(config, params)
        arrays = [params["embedding"], *params["softmax"].values(), *(part for one in layers for part in one.values())]
        if (size := sum(4 * part.size for part in arrays)) > MOST_BYTES:
            found = f"an ONNX file can hold {MOST_BYTES:,} bytes, and this model's weights take {size:,}"
            raise JaxlmError(f"{found}: export it --to safetensors or stablehlo")
        self._declare(self.inputs, "tokens", "INT64", ["T", "B"])
        self._declare(self.outputs, "logits", "FLOAT", ["T", "B", len(model.vocab)])
        self._hold("embedding", array(params["embedding"]))
        self._node("Gather", ["embedding", "tokens"], ["x_0"], axis=0)
        self._hold("direction", np.array([1], np.int64))
        for place, layer in enumerate(layers):
            self._layer(place, layer, "LSTM" if isinstance(config, LSTM) else "GRU")
        if config.tied:
            self._node("Transpose", ["embedding"], ["kernel"], perm=[1, 0])
        else:
            self._hold("kernel", array(params["softmax"]["kernel"]))
        self._hold("bias", array(params["softmax"]["bias"]))
        self._node("MatMul", [f"x_{len(layers)}", "kernel"], ["scores"])
        self._node("Add", ["scores", "bias"], ["logits"])

    def _layer(self, place: int, layer: StateDict, kind: str) -> None:
        """A node from x_k [T, B, E] to x_k+1 [T, B, H]; its own output has an axis of directions besides."""
        width = layer["weight_hh"].shape[1]
        states = [f"{part}_{place}" for part in ("hc" if kind == "LSTM" else "h")]
        for name in states:
            self._declare(self.inputs, name, "FLOAT", [1, "B", width])
            self._declare(self.outputs, f"{name}_out", "FLOAT", [1, "B", width])
        # PyTorch's gates are i, f, g, o, and ONNX's i, o, f, c (g); those of a GRU r, z, n, and z, r, h (n).
        order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]

        def gates(part: str) -> np.ndarray:
            blocks = np.split(layer[part], len(order))
            return np.concatenate([blocks[block] for block in order])

        names = [f"{part}_{place}" for part in ("W", "R", "biases")]
        biases = np.concatenate([gates("bias_ih"), gates("bias_hh")])
        for name, value in zip(names, (gates("weight_ih"), gates("weight_hh"), biases), strict=True):
            self._hold(name, value[None])
        inputs, outputs = [f"x_{place}", *names, "", *states], [f"y_{place}", *(f"{name}_out" for name in states)]
        options = {} if kind == "LSTM" else {"linear_before_reset": 1}
        self._node(kind, inputs, outputs, hidden_size=width, **options)
        self._node("Squeeze", [f"y_{place}", "direction"], [f"x_{place + 1}"])

    def _declare(self, where: list, name: str, kind: str, shape: list) -> None:
        where.append(self._helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape))

    def _hold(self, name: str, value: np.ndarray) -> None:
        self.weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self._helper.make_node(kind, inputs, outputs, **attributes))
