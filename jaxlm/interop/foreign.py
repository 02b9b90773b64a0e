"""From the names and layouts of other people's LSTM language models to jaxlm's parameter tree.

PyTorch keeps kernels `[4H, in]`, apart for input and state, gates in the order i, f, g, o, and two biases that add.
TensorFlow keeps one kernel `[in + H, 4H]` and one bias, gates i, j, f, o: that is jaxlm's own layout.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import FLOATS, LazyTensor, listed, shown

Tensors = Mapping[str, LazyTensor]

_EMBEDDINGS = ("encoder", "embedding", "embeddings", "embed", "emb", "word_embeddings")
_HEADS = ("decoder", "linear", "fc", "out", "output", "proj", "head", "lm_head", "output_layer")
_RECURRENT = re.compile(r"(?P<module>.*?)\.?(?P<part>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>[0-9]{1,3})(?P<raw>_raw)?")
_CELLS = {3: "a GRU, whose reset comes after the product in PyTorch and which has two biases",
          1: "a plain RNN (RNN_TANH or RNN_RELU)"}


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program.

    Attributes:
        params: jaxlm's tree in float32: `embedding [V, E]`, `lstm[i].kernel [in + H, 4H]` and `lstm[i].bias [4H]` with
            gates i, j, f, o, `softmax.bias [V]` and, unless tied, `softmax.kernel [H, V]`.
        embedding_size: E.
        hidden_sizes: H of each layer, which may differ.
        vocab_size: V.
        tied: whether the logits are features @ embedding.T + bias.
        source: what was read, in words.
        notes: what a user should know: what was left out, added up or assumed.
    """

    params: dict
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    vocab_size: int
    tied: bool
    source: str
    notes: tuple[str, ...]


def from_torch(tensors: Tensors, source: str) -> ForeignModel:
    """The model of a PyTorch state_dict, under any prefix.

    Args:
        tensors: all of the model, and nothing else.
        source: what they were read from, in words.
    Raises:
        JaxlmError: tensors are missing, unknown, of a wrong shape or not finite (they are named), or it is no LSTM.
    """
    layers, raw = _torch_layers(tensors)
    used = {name for layer in layers for name in layer.values()} | raw
    embedding, kernel, bias = _torch_ends(tensors, set(tensors) - used)
    notes: list[str] = []
    width = _matrix(tensors, embedding)[1]
    sizes: list[int] = []
    for layer in layers:
        sizes.append(_check_torch_layer(tensors, layer, sizes[-1] if sizes else width))
    vocab_size = _matrix(tensors, embedding)[0]
    _expect(tensors, kernel, (vocab_size, sizes[-1]))
    if bias is not None:
        _expect(tensors, bias, (vocab_size,))
    else:
        notes.append("the output layer has no bias: zeros were put in its place")
    if "bias_ih" in layers[0]:
        notes.append("each layer's two biases were added up")
    values = _Reader(tensors)
    table = values.read(embedding)
    tied = tensors[kernel].identity == tensors[embedding].identity
    head = None if tied else values.read(kernel)
    if head is not None and head.shape == table.shape and np.array_equal(head, table) and np.ptp(table):
        tied, head = True, None
        notes.append("the output matrix equals the embedding in every number: the model is taken as tied")
    softmax = {"bias": np.zeros(vocab_size, np.float32) if bias is None else values.read(bias)}
    if head is not None:
        softmax = {"kernel": np.ascontiguousarray(head.T), **softmax}
    params = {"embedding": table, "lstm": [_torch_layer(values, layer) for layer in layers], "softmax": softmax}
    return _model(params, tied, source, [*notes, *values.notes])


def from_tensorflow_checkpoint(tensors: Tensors, source: str) -> ForeignModel:
    """The model of a TensorFlow 1 checkpoint of the Penn Treebank tutorial, under any scope.

    Args:
        tensors: the checkpoint's variables; optimiser's slots and scalars are left out, which the notes say.
        source: what they were read from, in words.
    Raises:
        JaxlmError: variables are missing, unknown, of a wrong shape or not finite; they are named.
    """
    names, left = tensorflow_names(tensors, {name for name, tensor in tensors.items() if not tensor.shape})
    vocab_size, width = _matrix(tensors, names.embedding)
    for cell in names.cells:
        total, gates = _matrix(tensors, cell["kernel"])
        if gates % 4 or total != width + gates // 4:
            raise JaxlmError(f"{shown(cell['kernel'])} is {total}x{gates}, expected {width} + H rows and 4H columns, as an "
                             "LSTM's")
        _expect(tensors, cell["bias"], (gates,))
        width = gates // 4
    _expect(tensors, names.kernel, (width, vocab_size))
    _expect(tensors, names.bias, (vocab_size,))
    values = _Reader(tensors)
    notes = ["the forget bias is not in a checkpoint: it is 0, as the tutorial has it"]
    if left:
        notes.append(f"left out, as no part of the model: {listed(left)}")
    params = {"embedding": values.read(names.embedding),
              "lstm": [{part: values.read(cell[part]) for part in ("kernel", "bias")} for cell in names.cells],
              "softmax": {"kernel": values.read(names.kernel), "bias": values.read(names.bias)}}
    return _model(params, False, source, [*notes, *values.notes])


@dataclass(frozen=True)
class TensorflowNames:
    """Which variable is what; `cells` from the lowest layer on."""

    embedding: str
    cells: Sequence[Mapping[str, str]]
    kernel: str
    bias: str


_CELL = re.compile(r"(?:(?P<scope>.*/)?cell_?(?P<index>[0-9]{1,3})/|(?P<single>.*/)?)(?:[a-z_]*lstm_?cell)(?:/linear)?"
                   r"/(?P<part>kernel|bias|weights|biases|matrix)", re.IGNORECASE)
_PARTS = {"kernel": "kernel", "weights": "kernel", "matrix": "kernel", "bias": "bias", "biases": "bias"}
_ENDS = {"embedding": ("embedding", "embedding_vocab"), "softmax kernel": ("softmax_w",), "softmax bias": ("softmax_b",)}


def tensorflow_names(names: Collection[str], scalars: Collection[str] = ()) -> tuple[TensorflowNames, list[str]]:
    """Which of the names of TensorFlow's variables is what in the tutorial's model, in any scope.

    Args:
        names: all names, with or without ":0".
        scalars: those that are single numbers (steps, rates), which are no part of the model.
    Returns:
        The names, and those that are no part of the model: slots of the optimiser, averages, scalars.
    Raises:
        JaxlmError: names are missing, given twice or unknown.
    """
    ends = {end: [name for name in names if name.removesuffix(":0").split("/")[-1] in words]
            for end, words in _ENDS.items()}
    cells: dict[int, dict[str, str]] = {}
    for name in names:
        if name not in scalars and (found := _CELL.fullmatch(name.removesuffix(":0"))):
            part, index = _PARTS[found["part"].lower()], int(found["index"] or 0)
            if (other := cells.setdefault(index, {}).setdefault(part, name)) != name:
                raise JaxlmError(f"both {shown(other)} and {shown(name)} are the {part} of layer {index}")
    missing = [f"the {end} ({' or '.join(_ENDS[end])})" for end in ends if not ends[end]]
    missing += [f"the {part} of layer {index}" for index in range(max(cells, default=0) + 1)
                for part in ("kernel", "bias") if part not in cells.get(index, {})]
    used = {name.removesuffix(":0") for found in [*ends.values(), *(cell.values() for cell in cells.values())]
            for name in found}
    unused = [name for name in names if name.removesuffix(":0") not in used]
    left = [name for name in unused if name in scalars or any(name[:place] in used for place in _slashes(name))]
    if missing or len(left) < len(unused):
        unknown = listed(set(unused) - set(left))
        raise JaxlmError(f"expected the variables of an LSTM language model; missing are {', '.join(missing) or 'none'}; "
                         f"unknown are {unknown or 'none'}")
    for end, found in ends.items():
        if len(found) > 1:
            raise JaxlmError(f"expected one variable that is the {end}, found {listed(found)}")
    embedding, kernel, bias = (found[0] for found in ends.values())
    return TensorflowNames(embedding, [cells[index] for index in sorted(cells)], kernel, bias), sorted(left)


def _slashes(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "/"]


def _torch_layers(tensors: Tensors) -> tuple[list[dict[str, str]], set[str]]:
    """{part: name} of each layer, lowest first; and the names that a `_raw` one stands for."""
    groups: dict[tuple[str, int, int], dict[str, str]] = {}
    replaced: set[str] = set()
    for name in sorted(tensors, key=lambda name: name.endswith("_raw")):  # of a dropped weight the raw one counts
        if not (found := _RECURRENT.fullmatch(name)):
            continue
        module = found["module"].removesuffix(".module")
        base, _, index = module.rpartition(".")
        if not re.fullmatch("[0-9]{1,3}", index):
            base, index = module, "0"
        layer = groups.setdefault((base, int(index), int(found["layer"])), {})
        if (other := layer.get(found["part"])) is not None:
            if not found["raw"] or other.endswith("_raw"):
                raise JaxlmError(f"both {shown(other)} and {shown(name)} are the same weights of one layer")
            replaced.add(other)
        layer[found["part"]] = name
    if not groups:
        raise JaxlmError(f"expected the weights of an LSTM (weight_ih_l0, ...), found {listed(tensors)}")
    if len({base for base, _, _ in groups}) > 1:
        raise JaxlmError(f"it has several recurrent modules, {listed({base for base, _, _ in groups})}, whose order is not "
                         "known; only one stack of layers is imported")
    order = sorted((index, layer) for _, index, layer in groups)
    wanted = [(0, layer) for layer in range(len(order))] if order[-1][0] == 0 else [(i, 0) for i in range(len(order))]
    if order != wanted:
        raise JaxlmError(f"the layers of {shown(next(iter(groups))[0])} are not numbered from 0 without a gap")
    layers = [groups[key] for key in sorted(groups, key=lambda key: key[1:])]
    for place, layer in enumerate(layers):
        missing = {"weight_ih", "weight_hh"} - set(layer)
        missing |= {"bias_ih", "bias_hh"} - set(layer) if any("bias_ih" in other or "bias_hh" in other for other in layers) else set()
        if missing:
            raise JaxlmError(f"layer {place} lacks {listed(missing)}; it has {listed(layer.values())}")
    return layers, replaced


def _torch_ends(tensors: Tensors, rest: set[str]) -> tuple[str, str, str | None]:
    """The names of the embedding, the output matrix and the output bias, if there is one."""
    def of(modules: Sequence[str], part: str) -> list[str]:
        return sorted(name for name in rest if name.split(".")[-2:][0] in modules and name.split(".")[-1] == part
                      and name.count("."))

    embeddings, heads, biases = of(_EMBEDDINGS, "weight"), of(_HEADS, "weight"), of(_HEADS, "bias")
    unknown = rest - {*embeddings, *heads, *biases}
    if unknown or len(embeddings) != 1 or len(heads) != 1 or len(biases) > 1:
        missing = [f"{name}.{part}" for name, part, found in (("encoder", "weight", embeddings), ("decoder", "weight", heads))
                   if not found]
        twice = [name for found in (embeddings, heads, biases) if len(found) > 1 for name in found]
        raise JaxlmError("expected an embedding (encoder.weight), an LSTM and an output layer (decoder.weight, decoder.bias); "
                         f"missing are {listed(missing) or 'none'}; unknown are {listed(unknown) or 'none'}"
                         + (f"; of {listed(twice)} one too many" if twice else ""))
    return embeddings[0], heads[0], biases[0] if biases else None


def _check_torch_layer(tensors: Tensors, layer: Mapping[str, str], width: int) -> int:
    """The hidden size H of a layer that reads `width` numbers; JaxlmError for other shapes than an LSTM's."""
    rows, hidden = _matrix(tensors, layer["weight_hh"])
    if hidden and rows in (3 * hidden, hidden):
        raise JaxlmError(f"{shown(layer['weight_hh'])} is {rows}x{hidden}: that is {_CELLS[rows // hidden]}; only LSTMs are "
                         "imported")
    _expect(tensors, layer["weight_hh"], (4 * hidden, hidden))
    _expect(tensors, layer["weight_ih"], (4 * hidden, width))
    for part in ("bias_ih", "bias_hh"):
        if part in layer:
            _expect(tensors, layer[part], (4 * hidden,))
    return hidden


def _torch_layer(values: "_Reader", layer: Mapping[str, str]) -> dict[str, np.ndarray]:
    """jaxlm's kernel and bias of one of PyTorch's layers."""
    kernel = np.concatenate([values.read(layer["weight_ih"]), values.read(layer["weight_hh"])], 1)
    if "bias_ih" in layer:
        bias = (values.exact(layer["bias_ih"]) + values.exact(layer["bias_hh"])).astype(np.float32)
    else:
        bias = np.zeros(len(kernel), np.float32)
    return {"kernel": np.ascontiguousarray(_gates(kernel).T), "bias": _gates(bias)}


def _gates(array: np.ndarray) -> np.ndarray:
    """The four blocks of rows from PyTorch's order i, f, g, o to TensorFlow's i, j, f, o; g and j are two names of one."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate([i, g, f, o])


class _Reader:
    """Reads values as float32 and notes what that changed."""

    def __init__(self, tensors: Tensors):
        self.tensors, self.kinds = tensors, set[str]()

    def exact(self, name: str) -> np.ndarray:
        """The values in float64. Raises JaxlmError where one is not finite."""
        values = self.tensors[name].read()
        if not np.isfinite(values).all():
            raise JaxlmError(f"{shown(name)} holds {np.count_nonzero(~np.isfinite(values)):,} numbers that are not finite")
        self.kinds.add(self.tensors[name].kind)
        return values.astype(np.float64)

    def read(self, name: str) -> np.ndarray:
        """The values in float32."""
        if self.tensors[name].kind == "float64":
            with np.errstate(over="ignore", under="ignore"):
                values = self.exact(name).astype(np.float32)
        else:
            values = self.tensors[name].read().astype(np.float32, copy=False)
            self.kinds.add(self.tensors[name].kind)
        if not np.isfinite(values).all():
            raise JaxlmError(f"{shown(name)} holds {np.count_nonzero(~np.isfinite(values)):,} numbers that are not finite "
                             "in float32")
        return values

    @property
    def notes(self) -> list[str]:
        """What the conversion to float32 changed."""
        return ["float64 weights were rounded to float32"] if "float64" in self.kinds else []


def _matrix(tensors: Tensors, name: str) -> tuple[int, int]:
    """The two sizes of a matrix of floats; JaxlmError for anything else."""
    tensor = tensors[name]
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise JaxlmError(f"{shown(name)} has the shape {list(tensor.shape)}, expected a matrix")
    if tensor.kind not in FLOATS:
        raise JaxlmError(f"{shown(name)} holds {tensor.kind}, expected one of {', '.join(FLOATS)}")
    return tensor.shape[0], tensor.shape[1]


def _expect(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    tensor = tensors[name]
    if tensor.shape != shape:
        raise JaxlmError(f"{shown(name)} has the shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.kind not in FLOATS:
        raise JaxlmError(f"{shown(name)} holds {tensor.kind}, expected one of {', '.join(FLOATS)}")


def _model(params: dict, tied: bool, source: str, notes: list[str]) -> ForeignModel:
    vocab_size, width = params["embedding"].shape
    sizes = tuple(len(layer["bias"]) // 4 for layer in params["lstm"])
    return ForeignModel(params, width, sizes, vocab_size, tied, source, tuple(notes))
