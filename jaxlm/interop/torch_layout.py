"""From a PyTorch state_dict to jaxlm's parameter tree.

PyTorch keeps kernels `[4H, in]`, apart for input and state, gates in the order i, f, g, o, and two biases that add.
jaxlm has one kernel `[in + H, 4H]`, gates i, j, f, o, and one bias; g and j are two names of one gate.
"""

import re

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop import foreign
from jaxlm.interop.foreign import ForeignModel, Tensors, expect_shape, float32, listed, matrix_shape, shown

Layer = dict[str, str]  # {part: name}

_EMBEDDINGS = ("encoder", "embedding", "embeddings", "embed", "emb", "word_embeddings")
_HEADS = ("decoder", "linear", "fc", "out", "output", "proj", "head", "lm_head", "output_layer")
_PART = re.compile(  # as rnn.weight_ih_l0, rnns.1.module.weight_ih_l0 or rnns.1.module.weight_hh_l0_raw
    r"(?P<stack>.*?)(?:\.(?P<index>[0-9]{1,3}))?(?:\.module)?\.?"
    r"(?P<part>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>[0-9]{1,3})(?P<raw>_raw)?"
)


def from_torch(tensors: Tensors, source: str) -> ForeignModel:
    """The model of a PyTorch state_dict, under any prefix. Raises JaxlmError, which names the tensors, for others."""
    layers, replaced = _layers(tensors)
    embedding, kernel, bias = _ends(set(tensors) - replaced - {name for layer in layers for name in layer.values()})
    vocab_size, width = matrix_shape(tensors, embedding)
    for layer in layers:
        width = _check_layer(tensors, layer, width)
    expect_shape(tensors, kernel, (vocab_size, width))
    if bias is not None:
        expect_shape(tensors, bias, (vocab_size,))

    notes = []
    table, tied = float32(tensors, embedding), tensors[kernel].identity == tensors[embedding].identity
    softmax = {"bias": np.zeros(vocab_size, np.float32) if bias is None else float32(tensors, bias)}
    if not tied:
        head = float32(tensors, kernel)
        if np.array_equal(head, table) and np.ptp(table):  # constant matrices (as of zeros) say nothing
            notes.append("the output matrix equals the embedding in every number: the model is taken as tied")
        else:
            softmax["kernel"] = np.ascontiguousarray(head.T)
    if bias is None:
        notes.append("the output layer has no bias: zeros stand in its place")
    if "bias_ih" in layers[0]:
        notes.append("each layer's two biases were added up")
    params = {"embedding": table, "layers": [_lstm(tensors, layer) for layer in layers], "softmax": softmax}
    return foreign.foreign_model(params, source, notes, tensors)


def _layers(tensors: Tensors) -> tuple[list[Layer], set[str]]:
    """Each layer's names, lowest first, and the plain names that `_raw` ones replace.

    A weight under dropout (awd-lstm-lm) is kept as NAME_raw; NAME beside it is the copy that the last window dropped.
    """
    groups: dict[tuple[str, int, int], Layer] = {}
    replaced: set[str] = set()
    for name in sorted(tensors, key=lambda name: name.endswith("_raw")):
        if not (found := _PART.fullmatch(name)):
            continue
        layer = groups.setdefault((found["stack"], int(found["index"] or 0), int(found["layer"])), {})
        if (other := layer.get(found["part"])) is not None:
            if not found["raw"] or other.endswith("_raw"):
                raise JaxlmError(f"both {shown(other)} and {shown(name)} are {found['part']} of one layer")
            replaced.add(other)
        layer[found["part"]] = name
    if not groups:
        raise JaxlmError(f"expected the weights of an LSTM (weight_ih_l0, ...), found {listed(tensors) or 'none'}")
    if len(stacks := {stack for stack, _, _ in groups}) > 1:
        found = f"several recurrent modules ({listed(stacks)}), in an order that their names do not give"
        raise JaxlmError(f"it has {found}; only one stack of layers is imported")
    places = sorted(groups)
    numbers = [index + layer for _, index, layer in places]
    if numbers != list(range(len(places))) or any(index and layer for _, index, layer in places):
        raise JaxlmError(f"the recurrent layers are not numbered from 0 without a gap: {listed(tensors)}")
    layers = [groups[place] for place in places]
    biased = any("bias_ih" in layer or "bias_hh" in layer for layer in layers)
    parts = {"weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biased else ())}
    for number, layer in enumerate(layers):
        if missing := parts - set(layer):
            raise JaxlmError(f"layer {number} lacks {listed(missing)}; it has {listed(layer.values())}")
    return layers, replaced


def _ends(names: set[str]) -> tuple[str, str, str | None]:
    """The names of the embedding, the output matrix and the output bias, if there is one."""
    embeddings, heads, biases = (
        sorted(name for name in names if name.endswith(part) and name.removesuffix(part).split(".")[-1] in modules)
        for modules, part in ((_EMBEDDINGS, ".weight"), (_HEADS, ".weight"), (_HEADS, ".bias"))
    )
    unknown = names - {*embeddings, *heads, *biases}
    if unknown or len(embeddings) != 1 or len(heads) != 1 or len(biases) > 1:
        missing = [name for name, found in (("encoder.weight", embeddings), ("decoder.weight", heads)) if not found]
        surplus = [name for found in (embeddings, heads, biases) if len(found) > 1 for name in found]
        expected = "an embedding (encoder.weight), an LSTM and an output layer (decoder.weight, decoder.bias)"
        found = f"missing are {listed(missing) or 'none'}; unknown are {listed(unknown) or 'none'}"
        raise JaxlmError(f"expected {expected}; {found}; given more than once are {listed(surplus) or 'none'}")
    return embeddings[0], heads[0], biases[0] if biases else None


def _check_layer(tensors: Tensors, layer: Layer, width: int) -> int:
    """The hidden size H of a layer that reads `width` numbers. Raises JaxlmError for other shapes than an LSTM's."""
    rows, hidden = matrix_shape(tensors, layer["weight_hh"])
    if rows in (3 * hidden, hidden):
        gru = "a GRU, which in PyTorch resets the state after its product and has two biases"
        cell = "a plain RNN (RNN_TANH or RNN_RELU)" if rows == hidden else gru
        raise JaxlmError(f"{shown(layer['weight_hh'])} is {rows}x{hidden}: that is {cell}; only LSTMs are imported")
    expect_shape(tensors, layer["weight_hh"], (4 * hidden, hidden))
    expect_shape(tensors, layer["weight_ih"], (4 * hidden, width))
    for part in {"bias_ih", "bias_hh"} & set(layer):
        expect_shape(tensors, layer[part], (4 * hidden,))
    return hidden


def _lstm(tensors: Tensors, layer: Layer) -> dict[str, np.ndarray]:
    """jaxlm's kernel and bias of one of PyTorch's layers."""
    kernel = np.concatenate([float32(tensors, layer["weight_ih"]), float32(tensors, layer["weight_hh"])], 1)
    bias = np.zeros(len(kernel), np.float32)
    with np.errstate(over="ignore"):
        for part in [part for part in ("bias_ih", "bias_hh") if part in layer]:
            bias = foreign.check_finite(layer[part], bias + float32(tensors, layer[part]))
    order = np.arange(len(bias)).reshape(4, -1)[[0, 2, 1, 3]].ravel()  # from i, f, g, o to i, j, f, o
    return {"kernel": np.ascontiguousarray(kernel[order].T), "bias": bias[order]}
