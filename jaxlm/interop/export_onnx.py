"""Export to ONNX: LSTM (or GRU) nodes, with the state as inputs and outputs."""

import json

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.export_torch import StateDict, array, torch_layers
from jaxlm.models.lstm import LSTM
from jaxlm.scoring.language_model import LanguageModel

HEADER = '<ir_version: 8, opset_import: ["" : 17], producer_name: "jaxlm">'  # what onnxruntime reads since 1.12
MOST_BYTES = (1 << 31) - (1 << 24)  # of a protocol buffer, with room for all but the weights


def to_onnx(model: LanguageModel) -> tuple[bytes, list[str]]:
    """An ONNX model, and notes.

    Inputs: `tokens` int64 [T, B], and of each layer k `h_k` and, of an LSTM, `c_k`, float32 [1, B, H]. Outputs:
    `logits` [T, B, V], and `h_k_out` and `c_k_out`. The words are in the metadata, under "vocabulary", as a JSON list.

    Raises:
        JaxlmError: the package onnx is missing, ONNX has no such layer, or the model is too large.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnx.parser  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError("exporting to ONNX needs the package onnx: pip install 'jaxlm[onnx]'") from None
    text, weights = _graph(model)
    if (size := sum(weight.nbytes for weight in weights.values())) > MOST_BYTES:
        found = f"an ONNX file can hold {MOST_BYTES:,} bytes, and this model's weights take {size:,}"
        raise JaxlmError(f"{found}: export it --to safetensors or stablehlo")
    made = onnx.parser.parse_model(f"{HEADER}\n{text}")
    made.graph.initializer.extend(onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items())
    onnx.helper.set_model_props(made, {"vocabulary": json.dumps(model.vocab.words)})
    onnx.checker.check_model(made)
    return made.SerializeToString(), []


def _graph(model: LanguageModel) -> tuple[str, dict[str, np.ndarray]]:
    """A model's graph in ONNX's textual syntax, and its weights by name. Raises JaxlmError for what ONNX lacks."""
    config, params = model.config.model, model.params
    kind = "LSTM" if isinstance(config, LSTM) else "GRU"
    layers = torch_layers(config, params)
    weights = {"embedding": array(params["embedding"]), "bias": array(params["softmax"]["bias"])}
    weights["direction"] = np.array([1], np.int64)
    inputs, outputs = ["int64[T, B] tokens"], [f"float[T, B, {len(model.vocab)}] logits"]
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
    heads = f"jaxlm ({', '.join(inputs)}) => ({', '.join(outputs)})"
    return "\n".join([heads, "{", *nodes, "}"]), weights


def _weights(layer: StateDict, kind: str) -> StateDict:
    """A layer's weights as ONNX has them: gates i, o, f, c (PyTorch: i, f, g, o), or z, r, h (PyTorch: r, z, n)."""
    order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]
    parts = {name: np.concatenate([np.split(value, len(order))[at] for at in order]) for name, value in layer.items()}
    biases = np.concatenate([parts["bias_ih"], parts["bias_hh"]])
    return {"W": parts["weight_ih"], "R": parts["weight_hh"], "biases": biases}
