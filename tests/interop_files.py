"""Files as PyTorch and TensorFlow write them, put together by hand;
and the model that they hold, computed in NumPy.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def golden(name: str) -> Path:
    """A folder of recorded models."""
    return ROOT / "tests/golden/published" / name


def recorded(name: str, table: str) -> dict[str, dict[str, Any]]:
    """What the original code answered for each of a folder's files."""
    return json.loads((golden(name) / "expected.json").read_text())[table]


def log_probabilities(model: Any, tokens: list[int]) -> np.ndarray:
    """float64 [N - 1]: log p(tokens[t + 1] | tokens[..t]) of a ForeignModel from a zero state."""
    params = model.params
    answers = []
    states = [(np.zeros(size), np.zeros(size)) for size in model.config.hidden_sizes]
    output = params["embedding"].T if model.config.tied else params["softmax"]["kernel"]
    for token, target in pairwise(tokens):
        x = params["embedding"][token].astype(np.float64)
        for place, (layer, (c, h)) in enumerate(zip(params["layers"], states, strict=True)):
            i, j, f, o = np.split(
                np.concatenate([x, h]) @ layer["kernel"].astype(np.float64) + layer["bias"], 4
            )
            c = c / (1 + np.exp(-f)) + np.tanh(j) / (1 + np.exp(-i))
            x = np.tanh(c) / (1 + np.exp(-o))
            states[place] = (c, x)
        logits = x @ output.astype(np.float64) + params["softmax"]["bias"]
        answers.append(logits[target] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.array(answers)


@dataclass(frozen=True)
class Ref:
    """A global of a pickle."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call in a pickle (REDUCE), and the state that is given to its result."""

    function: Ref
    arguments: tuple = ()
    state: Any = None


@dataclass(frozen=True)
class New:
    """An object in a pickle (NEWOBJ and BUILD)."""

    kind: Ref
    state: Any = None
    arguments: tuple = ()


@dataclass(frozen=True)
class Persistent:
    """A persistent id in a pickle."""

    value: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


def opcodes(value: Any) -> bytes:
    """The instructions that make a value (protocol 2, no memo)."""
    match value:
        case None:
            return b"N"
        case bool():
            if value:
                return b"\x88"
            return b"\x89"
        case int() if -1 << 31 <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case dict():
            return b"}(" + b"".join(opcodes(item) for pair in value.items() for item in pair) + b"u"
        case Ref(name):
            return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"
        case Call(function, arguments, state):
            return (
                opcodes(function)
                + opcodes(arguments)
                + b"R"
                + (b"" if state is None else opcodes(state) + b"b")
            )
        case New(kind, state, arguments):
            return (
                opcodes(kind)
                + opcodes(arguments)
                + b"\x81"
                + (b"" if state is None else opcodes(state) + b"b")
            )
        case Persistent(inner):
            return opcodes(inner) + b"Q"
        case Raw(code):
            return code
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


ORDERED = Ref("collections.OrderedDict")
CLASSES = {
    "f2": "HalfStorage",
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "i8": "LongStorage",
    "u2": "BFloat16Storage",
}


@dataclass
class Storages:
    """The storages of a file that is being written, by their keys."""

    device: str = "cpu"
    old: bool = False
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def hold(self, array: np.ndarray) -> str:
        key = str(len(self.arrays))
        self.arrays[key] = array.ravel()
        return key

    def view(
        self, key: str, shape: tuple, strides: tuple, offset: int = 0, part: tuple | None = None
    ) -> Call:
        """A tensor that is a view of a held array; strides and offset in elements."""
        array = self.arrays[key]
        kind = Ref("torch." + CLASSES[array.dtype.str[1:]])
        storage = ("storage", kind, key, self.device, array.size, *([part] if self.old else []))
        return Call(
            Ref("torch._utils._rebuild_tensor_v2"),
            (Persistent(storage), offset, shape, strides, False, Call(ORDERED)),
        )

    def tensor(self, array: np.ndarray) -> Call:
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return self.view(self.hold(array), array.shape, strides)

    def parameter(self, tensor: Call) -> Call:
        return Call(Ref("torch._utils._rebuild_parameter"), (tensor, True, Call(ORDERED)))


def zip_file(
    value: Any,
    storages: Storages,
    root: str = "model",
    compression: int = zipfile.ZIP_STORED,
    without: str = "",
    more: dict[str, bytes] | None = None,
) -> bytes:
    """A file as torch.save has written it since 1.6."""
    entries = {
        "data.pkl": pickled(value),
        "byteorder": b"little",
        "version": b"3\n",
        **{f"data/{key}": array.tobytes() for key, array in storages.arrays.items()},
        **(more or {}),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            if name != without:
                archive.writestr(f"{root}/{name}", data)
    return out.getvalue()


def old_file(value: Any, storages: Storages, *_: Any) -> bytes:
    """A file as torch.save wrote it before 1.6."""
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = [0x1950A86A20F9469CFC6C, 1001, system, value, list(storages.arrays)]
    body = [struct.pack("<q", array.size) + array.tobytes() for array in storages.arrays.values()]
    return b"".join([*map(pickled, head), *body])


WRITERS: dict[str, Callable[[Any, Storages], bytes]] = {"zip": zip_file, "old": old_file}


def weights(
    vocab_size: int = 7,
    width: int = 4,
    sizes: tuple[int, ...] = (3, 5),
    tied: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A state_dict of pytorch/examples' model; without decoder.weight where it is tied."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.uniform(-1, 1, shape).astype(np.float32)

    arrays = {"encoder.weight": draw(vocab_size, width)}
    below = width
    for place, size in enumerate(sizes):
        arrays |= {
            f"rnn.weight_ih_l{place}": draw(4 * size, below),
            f"rnn.weight_hh_l{place}": draw(4 * size, size),
            f"rnn.bias_ih_l{place}": draw(4 * size),
            f"rnn.bias_hh_l{place}": draw(4 * size),
        }
        below = size
    return {
        **arrays,
        **({} if tied else {"decoder.weight": draw(vocab_size, below)}),
        "decoder.bias": draw(vocab_size),
    }


def torch_answers(arrays: dict[str, np.ndarray], tokens: list[int], layers: int = 2) -> np.ndarray:
    """What PyTorch's formulas give for a state_dict: gates i, f, g, o, two biases."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    states: list = [None] * layers
    answers = []
    for token, target in pairwise(tokens):
        x = wide["encoder.weight"][token]
        for place in range(layers):
            inward = wide[f"rnn.weight_ih_l{place}"]
            across = wide[f"rnn.weight_hh_l{place}"]
            h, c = states[place] or (np.zeros(across.shape[1]),) * 2
            gates = (
                inward @ x
                + wide[f"rnn.bias_ih_l{place}"]
                + across @ h
                + wide[f"rnn.bias_hh_l{place}"]
            )
            i, f, g, o = np.split(gates, 4)
            c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            x = np.tanh(c) / (1 + np.exp(-o))
            states[place] = (x, c)
        logits = wide.get("decoder.weight", wide["encoder.weight"]) @ x + wide["decoder.bias"]
        answers.append(logits[target] - np.log(np.exp(logits).sum()))
    return np.array(answers)


def module(
    kind: str, parameters: dict | None = None, modules: dict | None = None, **attributes: Any
) -> New:
    """An nn.Module as it is pickled."""
    return New(
        Ref(kind),
        {
            "training": False,
            "_parameters": parameters or {},
            "_buffers": {},
            "_backward_hooks": Call(ORDERED),
            "_modules": modules or {},
            **attributes,
        },
    )


def rnn_model(
    arrays: dict[str, np.ndarray],
    storages: Storages,
    cell: str = "LSTM",
    name: str = "model.RNNModel",
    **attributes: Any,
) -> New:
    """The whole module of a state_dict; the output matrix is the embedding where there is none."""

    def of(prefix: str) -> dict:
        return {
            key.removeprefix(prefix): storages.parameter(storages.tensor(array))
            for key, array in arrays.items()
            if key.startswith(prefix)
        }

    encoder = of("encoder.")
    decoder = {"weight": encoder["weight"], **of("decoder.")}
    nn = "torch.nn.modules."
    return module(
        name,
        modules={
            "drop": module(nn + "dropout.Dropout", p=0.2),
            "encoder": module(nn + "sparse.Embedding", encoder, max_norm=None),
            "rnn": module(
                nn + f"rnn.{cell}", of("rnn."), mode=cell, bidirectional=False, **attributes
            ),
            "decoder": module(nn + "linear.Linear", decoder),
        },
        rnn_type=cell,
    )
