"""TensorFlow 1: models under the names of its Penn Treebank tutorial, and checkpoints, read without TensorFlow.

A checkpoint is `NAME.index` and `NAME.data-00000-of-00001`. The index is a table from a variable's name to where its
bytes lie (BundleEntryProto); the empty key holds the number of shards (BundleHeaderProto). The table is a sorted string
table (TensorFlow's lib/io/table, after LevelDB's), of blocks with checksums. Its last 48 bytes say where the index
block lies, the index where each data block does. In a block each key says how much it shares with the one before.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import JaxlmError
from jaxlm.files import read_bytes
from jaxlm.interop.foreign import (
    ForeignModel,
    as_float32,
    by_role,
    check_sharing,
    listed,
    matrix_shape,
    quote,
)

LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"
_ENDS = {
    "embedding": "embedding",
    "embedding_vocab": "embedding",
    "softmax_w": "softmax_w",
    "softmax_b": "softmax_b",
}
_CELL = re.compile(
    r"(?:(?:.*/)?cell_?(?P<index>[0-9]{1,3})/|(?:.*/)?)[a-z_]*lstm_?cell(?:/linear)?"
    r"/(?P<part>kernel|bias|weights|biases|matrix)",
    re.IGNORECASE,
)
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # what a table ends with
MOST_KEY = 500
MOST_ENTRIES = 20_000  # bytes; pairs
MOST_INDEX = 1 << 26
MOST_DATA = 1 << 32  # bytes of the two files
_DTYPES = {1: "float32", 2: "float64", 14: "bfloat16", 19: "float16"}  # by TensorFlow's DataType
_ENDING = re.compile(r"(?s)(.+)\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")
_LATEST = re.compile(rb'(?m)^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\\n]|\\.)+)"')

Fields = dict[int, list[int | bytes]]  # values by the number of their field


def to_tensorflow(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An LSTM's parameter tree as {variable's name: array}, in the order of TensorFlow's own list.

    Raises:
        JaxlmError: the model's layers are not LSTMs, or its head is not a softmax with a kernel of its own.
    """
    if {*params["softmax"]} != {"kernel", "bias"}:
        raise JaxlmError(
            "TensorFlow's tutorial has one softmax with its own kernel: export this model --to stablehlo"
        )
    variables = {"m/embedding_vocab:0": params["embedding"]}
    width = params["embedding"].shape[1]
    for place, layer in enumerate(params["layers"]):
        rows, columns = np.shape(layer.get("kernel", [[]]))
        width = rows - width
        if {*layer} != {"kernel", "bias"} or columns != 4 * width:
            raise JaxlmError(
                "TensorFlow's tutorial has LSTM layers alone: export this model --to stablehlo"
            )
        variables |= {LAYER.format(place, part): layer[part] for part in ("kernel", "bias")}
    variables |= {
        "m/softmax_w:0": params["softmax"]["kernel"],
        "m/softmax_b:0": params["softmax"]["bias"],
    }
    return {name: np.asarray(array) for name, array in variables.items()}


def from_tensorflow(variables: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """The parameter tree of `to_tensorflow`'s variables, under any scope.

    Args:
        variables: arrays by name, as TensorFlow's own list has them; slots of an optimiser and scalars are left out.
    Raises:
        JaxlmError: names are missing or unknown.
    """
    names, _ = _names({name: np.shape(array) for name, array in variables.items()})
    return jax.tree.map(lambda name: np.asarray(variables[name]), names)


def read_tensorflow(prefix: Path) -> ForeignModel:
    """The model of a checkpoint of the tutorial, in any scope.

    Raises JaxlmError for other models, whose variables are named, and for several shards; anything for damage.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    shard = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    table = dict(_entries(read_bytes(index, MOST_INDEX)))
    header = message_fields(table.pop(b"", b""))
    if _number(header, 1) != 1 or _number(header, 2):
        raise JaxlmError(
            "expected a checkpoint of one shard, as the tutorial writes it on a little-endian machine"
        )
    data = read_bytes(shard, MOST_DATA)
    entries = {key.decode(errors="replace"): message_fields(entry) for key, entry in table.items()}
    variables = {name: _shape(name, entry, len(data)) for name, entry in entries.items()}
    check_sharing((_number(entry, 5) for entry in entries.values()), len(data))
    names, left = _names(variables)
    arrays = jax.tree.map(
        lambda name: _values(name, entries[name], data).reshape(variables[name]), names
    )
    vocab_size, width = matrix_shape(names["embedding"], arrays["embedding"])
    shapes: dict[str, Any] = {"embedding": (vocab_size, width), "layers": []}
    for layer in arrays["layers"]:
        below = width
        width = layer["bias"].size // 4
        shapes["layers"].append({"kernel": (below + width, 4 * width), "bias": (4 * width,)})
    shapes["softmax"] = {"kernel": (width, vocab_size), "bias": (vocab_size,)}
    params = jax.tree.map(as_float32, names, arrays, shapes)
    notes = ["the forget bias is not in a checkpoint: it is taken as 0, as the tutorial has it"]
    if left:
        notes.append(f"left out, as no part of the model: {listed(left)}")
    return ForeignModel.of_lstm(params, notes, index, shard)


def _names(variables: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], set[str]]:
    """The names of variables, whose shapes are given, as jaxlm's parameter tree, in any scope; and the other names.

    The others are slots of the optimiser, averages and scalars. Raises JaxlmError as `by_role`.
    """
    plain = {name.removesuffix(":0") for name in variables}
    left = {
        name for name, shape in variables.items() if not shape or name.rpartition("/")[0] in plain
    }
    roles, layers = by_role(
        [name for name in variables if name not in left], _role, _ENDS.values(), ["kernel", "bias"]
    )
    softmax = {"kernel": roles["softmax_w"], "bias": roles["softmax_b"]}
    return {"embedding": roles["embedding"], "layers": layers, "softmax": softmax}, left


def _role(name: str) -> str | None:
    """What a variable of this name is; None: nothing that an LSTM language model has."""
    name = name.removesuffix(":0")
    cell = _CELL.fullmatch(name)
    if cell:
        part = "bias" if cell["part"].lower().startswith("bias") else "kernel"
        return f"{part} of layer {int(cell['index'] or 0)}"
    return _ENDS.get(name.split("/")[-1])


def checkpoint_prefix(path: Path) -> Path | None:
    """The path that a checkpoint's files begin with; None where there is no checkpoint.

    A user may give this path, any one of the files, the file named `checkpoint`, or the folder of one. Raises
    JaxlmError for a folder whose `checkpoint` file is missing, unreadable or names nothing in the folder.
    """
    path = path / "checkpoint" if path.is_dir() else path
    if path.name == "checkpoint" and not path.with_name("checkpoint.index").exists():
        if not path.is_file():
            raise JaxlmError(
                "expected a checkpoint in the folder, and there is no file 'checkpoint'"
            )
        found = _LATEST.search(read_bytes(path, 1 << 20))
        told = (
            found[1].decode("unicode_escape").encode("latin-1").decode() if found else ""
        )  # UTF-8 in octal escapes
        # The files lie beside the one that names them, whatever folder they were written to.
        name = Path(told).name
        if not name:
            raise JaxlmError("its file 'checkpoint' names no model_checkpoint_path in its folder")
        return path.parent / name
    ending = _ENDING.fullmatch(path.name)
    if ending:
        return path.with_name(ending[1])
    if path.name and path.with_name(path.name + ".index").exists():
        return path
    return None


def _shape(name: str, entry: Fields, stored: int) -> tuple[int, ...]:
    """The shape (field 2) of a variable. Raises JaxlmError where not all of its bytes (4, 5) are stored."""
    end = _number(entry, 4) + _number(entry, 5)
    if end > stored:
        raise JaxlmError(
            f"the variable {quote(name)} ends at byte {end:,} of {stored:,}; the checkpoint is cut short"
        )
    dimensions = message_fields(entry.get(2, [b""])[-1]).get(2, [])
    return tuple(_number(message_fields(dimension), 1) for dimension in dimensions)


def _values(name: str, entry: Fields, data: bytes) -> np.ndarray:
    """The values [n] of a variable. Raises JaxlmError where these are no floats, or their checksum (6) is wrong."""
    kind, offset, size, checksum = (_number(entry, field) for field in (1, 4, 5, 6))
    if kind not in _DTYPES or 7 in entry:
        raise JaxlmError(f"{quote(name)} is partitioned, or holds something else than floats")
    raw = data[offset : offset + size]
    if masked(crc32c(raw)) != checksum:
        raise JaxlmError(f"the checksum of {quote(name)} is wrong; the checkpoint is damaged")
    return np.frombuffer(raw, _DTYPES[kind])


def _number(fields: Fields, field: int) -> int:
    """The last value of a field, which is the one that counts; 0 where there is none."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("expected a number in an entry")
    return value


def message_fields(data: int | bytes) -> Fields:
    """The fields of a protocol buffer's message. Raises ValueError or TypeError where it is none."""
    stream = io.BytesIO(data)
    fields = Fields()  # pyright: ignore[reportArgumentType]
    while stream.tell() < len(data):  # pyright: ignore[reportArgumentType]
        tag = _varint(stream)
        match tag & 7:
            case 0:
                value = _varint(stream)
            case 2:
                value = _take(stream, _varint(stream))
            case 1 | 5 as width:
                value = int.from_bytes(_take(stream, 8 if width == 1 else 4), "little")
            case _:
                raise ValueError("a field of an unknown type")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(stream: io.BytesIO) -> int:
    """A number of at most 64 bits, seven a byte, lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _take(stream, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128 and value < 1 << 64:
            return value
    raise ValueError("a number has over 64 bits")


def _take(stream: io.BytesIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError("it ends in the middle of an entry")
    return data


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a table, in order. Raises JaxlmError or ValueError where it is damaged."""
    if table[-8:] != MAGIC:
        raise ValueError("it does not end as an index does")
    footer = io.BytesIO(table[-48:-8])
    for _ in range(2):
        _varint(footer)  # where the block of other blocks lies: there are none
    found = read = 0
    for _, handle in _pairs(_block(table, footer)):
        block = _block(table, io.BytesIO(handle))
        pairs = list(islice(_pairs(block), MOST_ENTRIES))
        found = found + 1 + len(pairs)
        read = read + len(block)
        if found > MOST_ENTRIES or read > len(table):
            raise JaxlmError(
                f"it has over {MOST_ENTRIES:,} entries, more than any model, or blocks that overlap"
            )
        yield from pairs


def _block(table: bytes, handle: io.BytesIO) -> bytes:
    """The content of a block, its checksum checked."""
    place = _varint(handle)
    size = _varint(handle)
    end = place + size
    if (
        masked(crc32c(table[place : end + 1])) != int.from_bytes(table[end + 1 : end + 5], "little")
        or table[end]
    ):
        raise ValueError("a block is compressed, or its checksum is wrong")
    return table[place:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    size = (
        len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    )  # behind: places to restart, their number
    stream = io.BytesIO(block[:size])
    key = b""
    while stream.tell() < size:
        shared = _varint(stream)
        fresh = _varint(stream)
        length = _varint(stream)
        if shared > len(key) or shared + fresh > MOST_KEY:
            raise ValueError("a key is damaged or too long")
        key = key[:shared] + _take(stream, fresh)
        yield key, _take(stream, length)


# CRC-32C (Castagnoli; RFC 3720, appendix B.4). The register after data is linear in the data: stretches of equal length
# are summed side by side in NumPy, then joined: a join moves the register over a stretch of zeros, a linear map of its
# four bytes.

_START = b"Td\x1fd"  # brings a register of zeros to the ones that a checksum begins with
_TABLE = np.arange(256, dtype=np.uint32)  # what a byte adds to the register
for _ in range(8):
    _TABLE = np.where(_TABLE & 1, (_TABLE >> 1) ^ np.uint32(0x82F63B78), _TABLE >> 1)


def crc32c(data: bytes) -> int:
    """The checksum of bytes."""
    lanes = math.isqrt(len(data)) + 1
    length = -(-(len(data) + 4) // lanes)
    padded = b"".join([bytes(lanes * length - len(data) - 4), _START, data])
    stretches = np.frombuffer(padded, np.uint8).reshape(lanes, length)
    registers = np.zeros(lanes, np.uint32)
    moved = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for column in stretches.T:
        registers = _TABLE[(registers ^ column) & 255] ^ (registers >> 8)
        moved = _TABLE[moved & 255] ^ (moved >> 8)
    register, (a, b, c, d) = 0, moved.tolist()
    for lane in registers.tolist():
        register = (
            lane
            ^ a[register & 255]
            ^ b[register >> 8 & 255]
            ^ c[register >> 16 & 255]
            ^ d[register >> 24]
        )
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """The checksum as TensorFlow stores it, changed so that data that hold checksums do not cancel them."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
