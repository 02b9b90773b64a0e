"""From jaxlm's parameter tree to a PyTorch state_dict; the inverse of `torch_layout.py`, and the GRU besides.

The names are those of pytorch/examples' word_language_model: `encoder.weight`, `rnn.weight_ih_l0`, ...,
`decoder.weight`, `decoder.bias`. Where the layers' widths differ, which nn.LSTM cannot have, each layer is a module of
its own, as in awd-lstm-lm: `rnns.0.weight_ih_l0`, `rnns.1.weight_ih_l0`, ...
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxlm.config.config import kind_of
from jaxlm.config.models import GRU, LSTM, Recurrent
from jaxlm.errors import JaxlmError
from jaxlm.models.cell import Params

StateDict = dict[str, np.ndarray]  # two names of one array object share it


def state_dict(model: Recurrent, params: Params) -> tuple[StateDict, list[str]]:
    """The state_dict of a model, in float32, and what a user should know of it.

    Args:
        model: the config's.
        params: its parameters.
    Raises:
        JaxlmError: PyTorch has no such layer, or the model has parameters that a state_dict has no place for.
    """
    if type(model) not in _LAYERS:
        raise JaxlmError(
            f"PyTorch has no layer that computes what a {kind_of('model', model)} does: it has nn.LSTM "
            f"and nn.GRU; export it --to stablehlo or orbax"
        )
    name, layer = kind_of("model", model), _LAYERS[type(model)]
    check_known(model, params)
    module = f"nn.{name.upper()}"
    equal = len(set(model.hidden_sizes)) == 1
    found = {"encoder.weight": array(params["embedding"])}
    for place, weights in enumerate(params["layers"]):
        where = f"rnn.{{}}_l{place}" if equal else f"rnns.{place}.{{}}_l0"
        found |= {where.format(part): np.ascontiguousarray(value) for part, value in layer(model, weights).items()}
    found["decoder.weight"] = found["encoder.weight"] if model.tied else array(params["softmax"]["kernel"].T)
    found["decoder.bias"] = array(params["softmax"]["bias"])
    notes = (
        []
        if equal
        else [
            f"the layers' widths differ, which one {module} cannot have: each layer is a module of "
            f"its own, rnns.0, rnns.1, ..., as in awd-lstm-lm"
        ]
    )
    if isinstance(model, LSTM) and float(model.forget_bias):
        notes.append(f"the forget bias {float(model.forget_bias):g} was added to the biases")
    return found, notes


def check_known(model: Recurrent, params: Params) -> None:
    """Raises JaxlmError where a model is more than an embedding, its layers one after the other and a softmax."""
    for present, what in ((model.skip, "skip connections"), (model.scale_embedding, "scaled embeddings")):
        if present:
            raise JaxlmError(
                f"the model has {what}, and PyTorch's and ONNX's stacks of layers have none: export it "
                f"--to stablehlo or orbax"
            )
    if model.experts or model.projection:
        head = f"a mixture of {model.experts} softmaxes" if model.experts else "tied through a projection"
        raise JaxlmError(
            f"the model's head is {head}, and this format has a place for one softmax of the last layer's "
            f"outputs only: export it --to stablehlo or orbax"
        )
    kernel = set() if model.tied else {"kernel"}
    other = {*params} - {"embedding", "softmax", "layers"} | {*params["softmax"]} - {"bias", *kernel}
    if other:
        raise JaxlmError(
            f"the model has parameters that only jaxlm has a place for ({', '.join(sorted(other))}): "
            f"export it --to stablehlo or orbax"
        )


def array(values: object) -> np.ndarray:
    """Values as float32 in C order."""
    return np.asarray(values, np.float32, order="C")


def lstm_gates(model: LSTM, weights: Mapping[str, object], order: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An LSTM layer's input weights [4H, E], recurrent weights [4H, H] and bias [4H], the forget bias added to it.

    Args:
        model: the config's.
        weights: the layer's `kernel` [E + H, 4H] and `bias` [4H], gates in the order i, j, f, o.
        order: the gates' new order, as "ifjo".
    """
    kernel, bias = array(weights["kernel"]), array(weights["bias"]).copy()
    H = len(bias) // 4
    bias[2 * H : 3 * H] += np.float32(model.forget_bias)
    places = ["ijfo".index(gate) for gate in order]
    rows = np.concatenate([np.split(kernel.T, 4)[place] for place in places])
    bias = np.concatenate([np.split(bias, 4)[place] for place in places])
    return np.ascontiguousarray(rows[:, :-H]), np.ascontiguousarray(rows[:, -H:]), bias


def _lstm(model: LSTM, weights: Mapping[str, object]) -> StateDict:
    inward, across, bias = lstm_gates(model, weights, "ifjo")
    return {"weight_ih": inward, "weight_hh": across, "bias_ih": bias, "bias_hh": np.zeros_like(bias)}


def _gru(model: GRU, weights: Mapping[str, object]) -> StateDict:
    """PyTorch's GRU is jaxlm's: gates r, z, n; of its recurrent bias only n's part is needed besides."""
    recurrent = array(weights["recurrent_bias"])
    return {
        "weight_ih": array(weights["kernel"]).T,
        "weight_hh": array(weights["recurrent_kernel"]).T,
        "bias_ih": array(weights["bias"]),
        "bias_hh": np.pad(recurrent, (2 * len(recurrent), 0)),
    }


_LAYERS: dict[type[Recurrent], Callable] = {LSTM: _lstm, GRU: _gru}
