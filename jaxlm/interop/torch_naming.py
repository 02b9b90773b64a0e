"""From jaxlm's parameter tree to a PyTorch state_dict; the inverse of `torch_layout.py`, and the GRU besides.

The names are those of pytorch/examples' word_language_model: `encoder.weight`, `rnn.weight_ih_l0`, ...,
`decoder.weight`, `decoder.bias`. Where the layers' widths differ, which nn.LSTM cannot have, each layer is a module of
its own, as in awd-lstm-lm: `rnns.0.weight_ih_l0`, `rnns.1.weight_ih_l0`, ...
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlm.config.config import kind_of
from jaxlm.errors import JaxlmError
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params, Recurrent

StateDict = dict[str, np.ndarray]  # two names of one array object share it


def state_dict(model: Recurrent, params: Params) -> tuple[StateDict, list[str]]:
    """The state_dict of a model, in float32, and what a user should know of it.

    Raises JaxlmError where PyTorch has no such layer, or a state_dict no place for some of the parameters.
    """
    layers, notes = torch_layers(model, params), []
    equal = len(set(model.hidden_sizes)) == 1
    if not equal:
        notes.append(
            f"the layers' widths differ, which one nn.{kind_of('model', model).upper()} cannot have: each layer is a "
            f"module of its own, rnns.0, rnns.1, ..., as in awd-lstm-lm"
        )
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
    name, problem = kind_of("model", model), ""
    known = {"embedding", "softmax", "layers", "bias", *([] if model.tied else ["kernel"])}
    if type(model) not in _LAYERS:
        problem = f"layers of the kind {name}, and PyTorch and ONNX have LSTM and GRU"
    elif model.skip or model.scale_embedding:
        what = "skip connections" if model.skip else "scaled embeddings"
        problem = f"{what}, and PyTorch's and ONNX's stacks of layers have none"
    elif model.experts or model.projection:
        head = f"of {model.experts} softmaxes mixed" if model.experts else "that is tied through a projection"
        problem = f"a head {head}, and this format has a place for one softmax of the last layer's outputs only"
    elif other := ({*params} | {*params["softmax"]}) - known:
        problem = f"parameters that only jaxlm has a place for ({', '.join(sorted(other))})"
    if problem:
        raise JaxlmError(f"the model has {problem}: export it --to stablehlo")
    return [
        {part: array(value) for part, value in _LAYERS[type(model)](model, one).items()} for one in params["layers"]
    ]


def array(values: object) -> np.ndarray:
    """Values as float32 in C order."""
    return np.asarray(values, np.float32, order="C")


def _lstm(model: LSTM, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """From the gates i, j, f, o in one kernel [E + H, 4H] to i, f, g, o in two; g and j are two names of one gate."""
    i, j, f, o = np.split(array(weights["kernel"]).T, 4)
    bias_i, bias_j, bias_f, bias_o = np.split(array(weights["bias"]), 4)
    rows, width = np.concatenate([i, f, j, o]), len(bias_i)
    bias = np.concatenate([bias_i, bias_f + np.float32(model.forget_bias), bias_j, bias_o])
    return {
        "weight_ih": rows[:, :-width],
        "weight_hh": rows[:, -width:],
        "bias_ih": bias,
        "bias_hh": np.zeros_like(bias),
    }


def _gru(model: GRU, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch's GRU is jaxlm's: gates r, z, n; of its recurrent bias only n's part is needed besides."""
    recurrent = array(weights["recurrent_bias"])
    return {
        "weight_ih": array(weights["kernel"]).T,
        "weight_hh": array(weights["recurrent_kernel"]).T,
        "bias_ih": array(weights["bias"]),
        "bias_hh": np.pad(recurrent, (2 * len(recurrent), 0)),
    }


_LAYERS: dict[type[Recurrent], Callable] = {LSTM: _lstm, GRU: _gru}
