"""Models for other programs: a PyTorch state_dict, and whole programs (ONNX, StableHLO).

The names of a state_dict are those of pytorch/examples' word_language_model: `encoder.weight`,
`rnn.weight_ih_l0`, ..., `decoder.weight`, `decoder.bias`. Where the layers' widths differ, which
nn.LSTM cannot have, each layer is a module of its own, as in awd-lstm-lm: `rnns.0.weight_ih_l0`,
`rnns.1.weight_ih_l0`, ...
"""

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import explained, new_folder, vacant
from jaxlm.base.packaged import resolved
from jaxlm.interop.export_html import to_html
from jaxlm.interop.export_hub import as_array, as_safetensors, export_hub
from jaxlm.interop.foreign import LSTM_GATES, reordered
from jaxlm.models import heads, stack
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.ngrams import arpa
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import model_of
from jaxlm.runs.state_arrays import flat
from jaxlm.scoring.language_model import LanguageModel, NgramModel

StateDict = dict[str, np.ndarray]
ONNX_HEADER = (  # onnxruntime reads it from 1.12 on
    '<ir_version: 8, opset_import: ["" : 17], producer_name: "jaxlm">'
)
MOST_ONNX = (1 << 31) - (1 << 24)  # bytes of a protocol buffer, with room for all but the weights


def to_safetensors(model: LanguageModel) -> tuple[bytes, list[str]]:
    """The state_dict of a model as a .safetensors file, and notes.

    Arrays of a model that is more than LSTM or GRU layers and one softmax have jaxlm's names.
    """
    config = model.config.model
    problem = _beyond_torch(config)
    if problem:
        note = (
            f"the model has {problem}, which no module of PyTorch's has: its arrays have jaxlm's "
            "names and layouts, and `jaxlm import` reads the folder of --to hub in its place"
        )
        return as_safetensors(flat(model.params)), [note]
    params = jax.device_get(model.params)
    layers = torch_layers(config, params)
    notes = []
    place = "rnn.{part}_l{layer}"
    if len(set(config.hidden_sizes)) > 1:
        place = "rnns.{layer}.{part}_l0"
        notes.append(
            "the layers' widths differ: each is a module of its own, rnns.0, rnns.1, ..., "
            "as in awd-lstm-lm"
        )
    if isinstance(config, LSTM) and float(config.forget_bias):
        notes.append(f"the forget bias {float(config.forget_bias):g} was added to the biases")
    softmax = params["softmax"]
    tensors = {
        "encoder.weight": params["embedding"],
        "decoder.bias": softmax["bias"],
    }
    if config.tied:
        tensors["decoder.weight"] = tensors["encoder.weight"]
    else:
        tensors["decoder.weight"] = softmax["kernel"].T
    for index, layer in enumerate(layers):
        for part, value in layer.items():
            tensors[place.format(part=part, layer=index)] = value
    return as_safetensors(tensors), notes


def torch_layers(model: Recurrent, params: Params) -> list[StateDict]:
    """Converts the layers of a model to PyTorch's.

    Args:
        model: The recipe of the model.
        params: Its parameter tree.

    Returns:
        For each layer `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`. The forget bias is in
        `bias_ih`.

    Raises:
        JaxlmError: The model is more than an embedding, LSTM or GRU layers one after the other and
            a softmax.
    """
    problem = _beyond_torch(model)
    if problem:
        raise JaxlmError(
            f"the model has {problem}, and this format has a place for LSTM or GRU layers and one "
            "softmax only: export it --to safetensors, hub or stablehlo"
        )
    on_host = jax.device_get(params["layers"])  # JAX would compile a transposition for each shape
    layers = [_LAYERS[type(model)](model, layer) for layer in on_host]
    return [{part: as_array(value) for part, value in layer.items()} for layer in layers]


def _beyond_torch(model: Recurrent) -> str | None:
    """What a model has beside an embedding, LSTM or GRU layers one after the other and a softmax.

    None: nothing.
    """
    problems = {
        f"layers of the kind {model.title}": type(model) not in _LAYERS or model.block != "plain",
        "skip connections": model.skip or model.running_sum,
        "scaled embeddings": model.scale_embedding,
        f"a head of {model.experts} softmaxes mixed": model.experts,
        "a head that is tied through a projection": model.projection,
    }
    return next((problem for problem, present in problems.items() if present), None)


def _lstm(model: LSTM, weights: Mapping[str, Any]) -> StateDict:
    """From one kernel [E + H, 4H] of gates i, j, f, o to two of i, f, g, o.

    PyTorch calls jaxlm's gate j g.
    """
    kernel = reordered(np.transpose(weights["kernel"]), LSTM_GATES)
    bias = reordered(weights["bias"], LSTM_GATES)
    width = len(bias) // 4
    bias[width : 2 * width] += np.float32(model.forget_bias)
    return {
        "weight_ih": kernel[:, :-width],
        "weight_hh": kernel[:, -width:],
        "bias_ih": bias,
        "bias_hh": np.zeros(len(bias)),
    }


def _gru(model: GRU, weights: Mapping[str, Any]) -> StateDict:
    """PyTorch's GRU is jaxlm's, with gates r, z, n. Of its recurrent bias jaxlm has n's part."""
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

    Its `call(tokens, *carry)` takes tokens int32 [1, B], for any B, and the carry's arrays, all
    zero before the first word. It returns the logits [1, B, V] of the next word and the new carry.

    Raises:
        JaxlmError: The package flatbuffers is missing.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError(
            "StableHLO needs the package flatbuffers: pip install 'jaxlm[stablehlo]'"
        ) from None
    config = stack.exact(model.config.model)
    zeros = jax.eval_shape(lambda: stack.zero_carry(config, 1))
    structure = jax.tree.structure(zeros)

    def next_word(tokens: jax.Array, *carry: jax.Array) -> tuple[jax.Array, ...]:
        x = stack.embed(model.params, tokens)
        state = jax.tree.unflatten(structure, carry)
        features, state = stack.features(config, model.params, Noise(), x, state)
        return heads.logits(config, model.params, features), *jax.tree.leaves(state)

    rows = export.symbolic_shape("B")[0]
    arguments = [jax.ShapeDtypeStruct((1, rows), jnp.int32)]
    for leaf in jax.tree.leaves(zeros):
        arguments.append(jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype))
    program = export.export(jax.jit(next_word), platforms=("cpu", "cuda", "tpu"))(*arguments)
    return bytes(program.serialize()), []


class _OnnxNode(NamedTuple):
    name: str
    states: str  # a letter for each array of the state
    gates: tuple[int, ...]  # ONNX's gates (i, o, f, c or z, r, h) as places in PyTorch's order
    options: str


_ONNX_NODES = {
    LSTM: _OnnxNode("LSTM", "hc", (0, 3, 1, 2), ""),
    GRU: _OnnxNode("GRU", "h", (1, 0, 2), ", linear_before_reset = 1"),
}


def to_onnx(model: LanguageModel) -> tuple[bytes, list[str]]:
    """An ONNX model, and notes.

    Inputs: `tokens` int64 [T, B], and of each layer k `h_k` and, of an LSTM, `c_k`, float32
    [1, B, H]. Outputs: `logits` [T, B, V], and `h_k_out` and `c_k_out`. The words are in the
    metadata, under "vocabulary", as a JSON list.

    Raises:
        JaxlmError: The package onnx is missing, ONNX has no such layer, or the model is too large.
    """
    return _program(_graph(model), {"vocabulary": json.dumps(model.vocab.words)}), []


def to_sherpa(model: LanguageModel) -> dict[str, bytes]:
    """The files of a language model for k2's recognisers (sherpa-onnx), by name.

    `lm.onnx` scores whole sentences: x int64 [N, L] and x_lens int64 [N] -> nll [N], of the tokens
    and the `<eos>` after them. `online-lm.onnx` scores a token at a time: x int64 [N, T], h and c
    [layers, N, H] -> the log-probabilities [N, T, V] of what follows each token, h and c.
    `tokens.txt` has the tokens and their ids, which must be the recogniser's.

    Raises:
        JaxlmError: As `to_onnx`, or the layers are no LSTM or of different widths.
    """
    config = model.config.model
    widths = set(config.hidden_sizes)
    if not isinstance(config, LSTM) or len(widths) > 1:
        raise JaxlmError(
            "a recogniser passes on the states of LSTM layers of one width, and this model has "
            f"{config.kind_name} layers of {', '.join(map(str, config.hidden_sizes))}"
        )
    graph = _graph(model)
    (width,) = widths
    layers = range(len(config.hidden_sizes))
    begin = "\n".join(f"h_{k} = Identity (zeros)\nc_{k} = Identity (zeros)" for k in layers)
    offline = graph._replace(
        inputs=["int64[N, L] x", "int64[N] x_lens"],
        outputs=["float[N] nll"],
        nodes=[
            _SENTENCES.format(end=model.vocab.eos, width=width),
            begin,
            *graph.nodes,
            _LOG_P,
            _NLL,
        ],
    )
    online = graph._replace(
        inputs=["int64[N, T] x"],
        outputs=[f"float[N, T, {len(model.vocab)}] y"],
        nodes=["tokens = Transpose <perm = [1, 0]> (x)", *graph.nodes, _LOG_P],
    )
    for state in "hc":
        before = ", ".join(f"{state}_{k}" for k in layers)
        after = ", ".join(f"{state}_{k}_out" for k in layers)
        online.inputs.append(f"float[{len(layers)}, N, {width}] {state}")
        online.outputs.append(f"float[{len(layers)}, N, {width}] next_{state}")
        online.nodes.insert(0, f"{before} = Split <axis = 0> ({state})")
        online.nodes.append(f"next_{state} = Concat <axis = 0> ({after})")
    metadata = {"num_layers": len(layers), "hidden_size": width, "sos_id": model.vocab.eos}
    tokens = [f"{word} {place}\n" for place, word in enumerate(model.vocab.words)]
    return {
        "lm.onnx": _program(offline, {}),
        "online-lm.onnx": _program(online, {name: str(value) for name, value in metadata.items()}),
        "tokens.txt": "".join(tokens).encode(),
    }


# What `to_sherpa` puts around a graph, which reads `tokens` [T, N] and gives `logits` [T, N, V].
# First: <eos> before each of the sentences x [N, L], and a state of zeros.
_SENTENCES = """
row = Constant <value_ints = [1]> ()
width = Constant <value_ints = [{width}]> ()
end = Constant <value = int64[1, 1] {{{end}}}> ()
count = Shape (x_lens)
column = Concat <axis = 0> (count, row)
ends = Expand (end, column)
sentences = Concat <axis = 1> (ends, x)
tokens = Transpose <perm = [1, 0]> (sentences)
shape = Concat <axis = 0> (row, count, width)
zeros = ConstantOfShape (shape)
"""
_LOG_P = """
log_p = LogSoftmax <axis = -1> (logits)
y = Transpose <perm = [1, 0, 2]> (log_p)
"""
# Sums each sentence's nats, those of the <eos> after it included.
_NLL = """
zero = Constant <value_int = 0> ()
one = Constant <value_int = 1> ()
last = Constant <value_ints = [2]> ()
nothing = Constant <value_float = 0.0> ()
padded = Concat <axis = 1> (x, ends)
size = Shape (padded)
steps = Gather <axis = 0> (size, one)
places = Range (zero, steps, one)
lengths = Unsqueeze (x_lens, row)
is_end = Equal (places, lengths)
targets = Where (is_end, end, padded)
index = Unsqueeze (targets, last)
picked = GatherElements <axis = 2> (y, index)
picked_log_p = Squeeze (picked, last)
counts = LessOrEqual (places, lengths)
counted = Where (counts, picked_log_p, nothing)
sum = ReduceSum <keepdims = 0> (counted, row)
nll = Neg (sum)
"""


class _Graph(NamedTuple):
    """A graph in ONNX's textual syntax, and its weights by name."""

    inputs: list[str]
    outputs: list[str]
    nodes: list[str]
    weights: dict[str, np.ndarray]


def _program(graph: _Graph, metadata: Mapping[str, str]) -> bytes:
    """The file of a graph. Raises JaxlmError as `to_onnx`."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnx.parser  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError(
            "exporting to ONNX needs the package onnx: pip install 'jaxlm[onnx]'"
        ) from None
    size = sum(weight.nbytes for weight in graph.weights.values())
    if size > MOST_ONNX:
        raise JaxlmError(
            f"an ONNX file can hold {MOST_ONNX:,} bytes, and this model's weights take {size:,}: "
            "export it --to safetensors or stablehlo"
        )
    head = f"jaxlm ({', '.join(graph.inputs)}) => ({', '.join(graph.outputs)})"
    program = onnx.parser.parse_model("\n".join([ONNX_HEADER, head, "{", *graph.nodes, "}"]))
    for name, weight in graph.weights.items():
        program.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.helper.set_model_props(program, dict(metadata))
    onnx.checker.check_model(program)
    return program.SerializeToString()


def _graph(model: LanguageModel) -> _Graph:
    """A model's graph.

    Raises:
        JaxlmError: ONNX has no node for such a layer or head.
    """
    layers = torch_layers(model.config.model, model.params)
    node = _ONNX_NODES[type(model.config.model)]
    weights = {
        "embedding": as_array(model.params["embedding"]),
        "bias": as_array(model.params["softmax"]["bias"]),
    }
    inputs = ["int64[T, B] tokens"]
    outputs = [f"float[T, B, {len(model.vocab)}] logits"]
    nodes = [
        "direction = Constant <value_ints = [1]> ()",  # the axis of a layer's directions
        "x_0 = Gather <axis = 0> (embedding, tokens)",
    ]
    for k, layer in enumerate(layers):
        width = layer["weight_hh"].shape[1]
        names = [f"{state}_{k}" for state in node.states]
        inputs += [f"float[1, B, {width}] {name}" for name in names]
        outputs += [f"float[1, B, {width}] {name}_out" for name in names]
        layer = {part: reordered(value, node.gates) for part, value in layer.items()}
        weights[f"W_{k}"] = layer["weight_ih"][None]
        weights[f"R_{k}"] = layer["weight_hh"][None]
        weights[f"biases_{k}"] = np.concatenate([layer["bias_ih"], layer["bias_hh"]])[None]
        states_after = ", ".join(f"{name}_out" for name in names)
        lengths = ""  # none: all rows have all steps
        arguments = f"x_{k}, W_{k}, R_{k}, biases_{k}, {lengths}, {', '.join(names)}"
        options = f"hidden_size = {width}{node.options}"
        nodes.append(f"y_{k}, {states_after} = {node.name} <{options}> ({arguments})")
        nodes.append(f"x_{k + 1} = Squeeze (y_{k}, direction)")
    if model.config.model.tied:
        nodes.append("kernel = Transpose <perm = [1, 0]> (embedding)")
    else:
        weights["kernel"] = as_array(model.params["softmax"]["kernel"])
    nodes += [f"scores = MatMul (x_{len(layers)}, kernel)", "logits = Add (scores, bias)"]
    return _Graph(inputs, outputs, nodes, weights)


def to_arpa(model: NgramModel) -> tuple[bytes, list[str]]:
    """An ARPA file, and no notes. Raises JaxlmError where a token has white space in its name."""
    file = io.BytesIO()
    arpa.write(file, model.ngram, model.vocab.words)
    return file.getvalue(), []


# Each gives a file's bytes, and notes.
EXPORTERS: dict[str, Callable[[Any], tuple[bytes, list[str]]]] = {
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "stablehlo": to_stablehlo,
    "html": to_html,
    "arpa": to_arpa,
}
TARGETS = (*EXPORTERS, "hub", "sherpa-onnx")


def export_model(
    run: str | Path | LanguageModel,
    target: str,
    out: str | Path,
    which: str = "last",
) -> list[str]:
    """Writes a model for another program, whole or not at all.

    The parameters are those of evaluation: the average, if the run keeps one.

    Args:
        run: A run's directory, or a model.
        target: safetensors (a PyTorch state_dict), hub (a folder with a model card, and a folder
            within it for each checkpoint of keep_checkpoints), onnx, sherpa-onnx (a folder),
            stablehlo (by jax.export), or html (a page that runs the model).
        out: The file or folder to make, which must not exist.
        which: `last`, `best` or a step, of a run's directory.

    Returns:
        Notes for the user: parameters that were added up, averaged or renamed.

    Raises:
        JaxlmError: The target is unknown or cannot express the model (with the reason), a package
            for it is missing, or `out` exists or cannot be written.
    """
    if target not in TARGETS:
        raise JaxlmError(f"expected one of {', '.join(TARGETS)} to export to, found {target!r}")
    run_dir = None
    if not isinstance(run, LanguageModel) and not is_ngram_folder(run):
        run_dir = resolved(run)
        which = checkpoint.find(run_dir, which).name  # training may save a newer one meanwhile
    model = model_of(run, which)
    if isinstance(model, NgramModel) != (target == "arpa"):
        raise JaxlmError("an n-gram model is exported --to arpa, and no other model is")
    notes = []
    with explained(JaxlmError, f"cannot export to {os.fspath(out)}"):
        if target == "hub":
            export_hub(model, Path(out), run_dir, which)
        elif target == "sherpa-onnx":
            contents = to_sherpa(model)
            with new_folder(out) as folder:
                for name, data in contents.items():
                    folder.write(name, data)
        else:
            data, notes = EXPORTERS[target](model)
            with vacant(out) as (parent, name):
                parent.write(name, data)
    if model.config.optimizer.averages:
        notes.append(
            "the parameters are those of evaluation: the average, once it has begun, "
            "not the last ones"
        )
    return notes
