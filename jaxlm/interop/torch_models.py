"""From the value of a PyTorch file to jaxlm's parameter tree: the one model in it, and its tensors by name.

PyTorch keeps kernels `[4H, in]`, apart for input and state, gates in the order i, f, g, o, and two biases that add.
jaxlm has one kernel `[in + H, 4H]`, gates i, j, f, o, and one bias; g and j are two names of one gate.
"""

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import ForeignModel, Tensors, by_role, float32, listed, matrix_shape, shown
from jaxlm.interop.torch_pickle import Instance

MOST_PREFIX = 1000  # letters of the way to a module
_NESTED = dict | list | tuple | Instance
_EMBEDDINGS = ("encoder", "embedding", "embeddings", "embed", "emb", "word_embeddings")
_HEADS = ("decoder", "linear", "fc", "out", "output", "proj", "head", "lm_head", "output_layer")
_PART = re.compile(  # as rnn.weight_ih_l0, rnns.1.module.weight_ih_l0 or rnns.1.module.weight_hh_l0_raw
    r"(?P<stack>.*?)(?:\.(?P<index>[0-9]{1,3}))?(?:\.module)?\.?"
    r"(?P<part>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>[0-9]{1,3})(?:_raw)?"
)


def model_tensors(value: Any) -> Tensors:
    """The tensors, by name, of the one model in a file.

    The value is a module, a state_dict, or a list or dict with one of these. Raises JaxlmError where there is no model,
    there are several, or it computes something that jaxlm does not.
    """
    models = [model for model in _models(value) if model[1]]
    models = [model for model in models if any("weight_ih_l" in name for name in model[1])] or models
    if not models:
        found = f"a dict of {listed(value) or 'nothing'}" if isinstance(value, dict) else f"a {type(value).__name__}"
        found = f"an object of {shown(value.kind)}" if isinstance(value, Instance) else found
        raise JaxlmError(f"expected a model or a state_dict, found {found} without named weights in it")
    if len(models) > 1:
        names = listed(place for place, _ in models)
        raise JaxlmError(f"it holds {len(models)} models ({names}); save alone the one to import")
    return models[0][1]


def _models(value: Any) -> Iterator[tuple[str, Tensors]]:
    """(the way to it, tensors) of each module and dict of weights, nearest first.

    Nothing is looked at twice, nor inside of a dict of weights: a pickle may hold a thing in itself, and often.
    """
    queue: deque[tuple[str, Any]] = deque([("", value)] if isinstance(value, _NESTED) else [])
    seen = {id(value)}
    while queue:
        place, item = queue.popleft()
        if _is_module(item):
            yield place, _module_tensors(item, seen)
            continue
        item = {"": item.state} if isinstance(item, Instance) else item
        items = [*(item.items() if isinstance(item, dict) else enumerate(item))]
        tensors = {str(name): leaf for name, leaf in items if isinstance(leaf, np.ndarray)}
        if any(name.endswith(".weight") or "weight_ih_l" in name for name in tensors):
            yield place, tensors
            continue
        for name, child in items:
            if isinstance(child, _NESTED) and id(child) not in seen:
                seen.add(id(child))
                queue.append((f"{place}.{name}"[-200:].strip("."), child))


def _is_module(item: Any) -> bool:
    return isinstance(item, Instance) and isinstance(item.state.get("_parameters"), dict)


def _module_tensors(module: Instance, seen: set[int]) -> Tensors:
    """Parameters and buffers of a module and those below it, as its state_dict names them.

    Refuses what the names and shapes of the tensors would not give away.
    """
    found, queue = {}, deque([("", module)])
    while queue:
        prefix, one = queue.popleft()
        if len(prefix) > MOST_PREFIX:
            raise JaxlmError(f"its modules are nested too deeply: a name has over {MOST_PREFIX:,} letters")
        kind, splits = one.kind.rpartition(".")[2], one.state.get("nsplits")
        name = shown(prefix.rstrip(".") or kind)
        if kind == "Embedding" and one.state.get("max_norm") is not None:
            raise JaxlmError(f"the module {name} shortens vectors as it reads them (max_norm), which jaxlm does not")
        if isinstance(splits, int) and splits > 1:
            raise JaxlmError(f"the module {name} has {min(splits, 10**9):,} splits; only plain softmax is imported")
        for part in map(one.state.get, ("_parameters", "_buffers", "_modules")):
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            found |= {prefix + name: leaf for name, leaf in part.items() if isinstance(leaf, np.ndarray)}
            queue += [(f"{prefix}{name}.", child) for name, child in part.items() if _is_module(child)]
    return found


def from_torch(tensors: Tensors, file: Path) -> ForeignModel:
    """The model of a PyTorch state_dict, under any prefix. Raises JaxlmError, which names the tensors, for others.

    A weight under dropout (awd-lstm-lm) is kept as NAME_raw; NAME beside it is the copy that the last window dropped.
    """
    if len(stacks := {found["stack"] for found in map(_PART.fullmatch, tensors) if found}) > 1:
        raise JaxlmError(f"it has several recurrent modules ({listed(stacks)}), in an order that no name gives")
    raw = {_role(name) for name in tensors if name.endswith("_raw")} - {None}
    biased = any("bias_ih_l" in name for name in tensors)
    parts = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biased else [])]
    names = [name for name in tensors if name.endswith("_raw") or _role(name) not in raw]
    ends = ["encoder.weight", "decoder.weight"]
    roles, layers = by_role(names, _role, ends, parts)
    embedding, kernel = (tensors[roles[end]] for end in ends)
    vocab_size, width = matrix_shape(roles["encoder.weight"], embedding)
    table, notes, made = float32(roles["encoder.weight"], embedding, (vocab_size, width)), [], []
    for layer in range(layers):
        made.append(_lstm(tensors, {part: roles[f"{part} of layer {layer}"] for part in parts}, width))
        width = len(made[-1]["bias"]) // 4
    head = float32(roles["decoder.weight"], kernel, (vocab_size, width))
    softmax = {"bias": np.zeros(vocab_size, np.float32)}
    if bias := roles.get("decoder.bias"):
        softmax["bias"] = float32(bias, tensors[bias], (vocab_size,))
    else:
        notes.append("the output layer has no bias: zeros stand in its place")
    shared = np.may_share_memory(kernel, embedding)
    if not np.array_equal(head, table) or not (shared or np.ptp(table)):  # constant matrices (as of zeros) say nothing
        softmax["kernel"] = np.ascontiguousarray(head.T)
    elif not shared:
        notes.append("the output matrix equals the embedding in every number: the model is taken as tied")
    if biased:
        notes.append("each layer's two biases were added up")
    params = {"embedding": table, "layers": made, "softmax": softmax}
    return ForeignModel.of_lstm(params, notes, tensors.values(), (file,))


def _role(name: str) -> str | None:
    """What a tensor of this name is; None: nothing that an LSTM language model has."""
    if found := _PART.fullmatch(name):
        index, layer = int(found["index"] or 0), int(found["layer"])
        return None if index and layer else f"{found['part']} of layer {index + layer}"
    module, _, part = name.rpartition(".")
    module = module.split(".")[-1]
    if module in _EMBEDDINGS and part == "weight":
        return "encoder.weight"
    return f"decoder.{part}" if module in _HEADS and part in ("weight", "bias") else None


def _lstm(tensors: Tensors, layer: dict[str, str], inputs: int) -> dict[str, np.ndarray]:
    """jaxlm's kernel and bias of a layer, {part: name}. Raises JaxlmError for other shapes than an LSTM's."""
    across = layer["weight_hh"]
    rows, hidden = matrix_shape(across, tensors[across])
    if cell := {hidden: "a plain RNN", 3 * hidden: "a GRU"}.get(rows):
        raise JaxlmError(f"{shown(across)} is {rows}x{hidden}: that is {cell}; only LSTMs are imported")
    shapes = {"weight_ih": (inputs,), "weight_hh": (hidden,), "bias_ih": (), "bias_hh": ()}
    found = {part: float32(name, tensors[name], (4 * hidden, *shapes[part])) for part, name in layer.items()}
    bias = np.zeros(4 * hidden, np.float32)
    if "bias_ih" in layer:
        with np.errstate(over="ignore"):
            bias = float32(layer["bias_ih"], found["bias_ih"] + found["bias_hh"], (4 * hidden,))
    order = np.arange(4 * hidden).reshape(4, -1)[[0, 2, 1, 3]].ravel()  # from i, f, g, o to i, j, f, o
    kernel = np.hstack([found["weight_ih"], found["weight_hh"]])
    return {"kernel": np.ascontiguousarray(kernel[order].T), "bias": bias[order]}
