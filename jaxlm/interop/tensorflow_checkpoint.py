"""Checkpoints of TensorFlow 1 (`NAME.index` and `NAME.data-00000-of-00001`), read without TensorFlow.

The index is a table from a variable's name to where its bytes lie (BundleEntryProto); the empty key holds the number
of shards (BundleHeaderProto).
"""

import math
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np

from jaxlm.crc32c import crc32c, masked
from jaxlm.errors import JaxlmError
from jaxlm.files import read_bytes, reader, reason
from jaxlm.interop.sstable import Cursor, entries
from jaxlm.interop.tensors import SIZES, LazyTensor, as_floats, check_sharing, decoded, listed, shown

MOST_INDEX, MOST_DIMENSIONS = 1 << 26, 16
_KINDS = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    18: "complex128",
    19: "float16",
}  # TensorFlow's DataType
_ENDING = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def checkpoint_prefix(path: str | Path) -> Path | None:
    """What a checkpoint's files have in common, for what a user may give for it; None where it is no checkpoint.

    Args:
        path: the common part itself, any one of its files, the file named `checkpoint`, or the folder of one.
    Raises:
        JaxlmError: a folder whose `checkpoint` file is missing, unreadable or names nothing in the folder.
    """
    path = Path(path)
    if path.is_dir():
        return _latest(path / "checkpoint")
    if path.name == "checkpoint" and not path.with_name("checkpoint.index").exists():
        return _latest(path)
    if (ending := _ENDING.search(path.name)) and 0 < ending.start() < ending.end() == len(path.name):
        return path.with_name(path.name[: ending.start()])
    return path if path.name and path.with_name(path.name + ".index").exists() else None


def read_checkpoint(prefix: Path) -> dict[str, LazyTensor]:
    """The variables of a checkpoint; the checksum of each is checked as it is read.

    Raises JaxlmError where the index is damaged, shards are missing or too short, or a checksum is wrong.
    """
    index = prefix.with_name(prefix.name + ".index")
    try:
        table = dict(entries(read_bytes(index, MOST_INDEX)))
    except OSError as error:
        raise JaxlmError(f"its index {shown(index.name)} cannot be read: {reason(error)}") from None
    header = _fields(table.pop(b"", b""))
    shards = header.get(1, [0])[-1]
    if not isinstance(shards, int) or not 0 < shards < 100_000:
        raise JaxlmError("its index does not say how many shards there are; it is damaged")
    order = ">" if header.get(2, [0])[-1] == 1 else "<"
    paths = [prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}") for shard in range(shards)]
    sizes: dict[int, int] = {}
    tensors: dict[str, LazyTensor] = {}
    whole: list[LazyTensor] = []
    for key, value in table.items():
        try:
            name = key.decode()
        except UnicodeDecodeError:
            continue  # a slice of a partitioned variable, whose own entry is refused below
        entry = _fields(value)
        tensors[name] = _variable(name, entry, paths, sizes, order)
        whole += [] if 7 in entry else [tensors[name]]
    check_sharing(whole, sum(sizes.values()))
    return tensors


def _variable(
    name: str, entry: dict[int, list[int | bytes]], paths: list[Path], sizes: dict[int, int], order: str
) -> LazyTensor:
    """A variable of one entry: type 1, shape 2, shard 3, offset 4, bytes 5, checksum 6, slices 7."""
    kind = _KINDS.get(_number(name, entry, 1), "something else than numbers")
    shape = _shape(name, entry.get(2, [b""])[-1])
    shard, offset, size = (_number(name, entry, key) for key in (3, 4, 5))
    checksum = _number(name, entry, 6)
    if 7 in entry:
        return LazyTensor(shape, kind, name, partial(_refuse, f"{shown(name)} is partitioned, which is not read"))
    if kind in SIZES and math.prod(shape) * SIZES[kind] != size:
        raise JaxlmError(f"the variable {shown(name)} claims the shape {list(shape)} in {size:,} bytes; it is damaged")
    if shard >= len(paths):
        raise JaxlmError(f"the variable {shown(name)} lies in shard {shard} of {len(paths)}; it is damaged")
    if shard not in sizes:
        sizes[shard] = _size(paths, shard)
    if offset + size > sizes[shard]:
        raise JaxlmError(
            f"the variable {shown(name)} ends at byte {offset + size:,} of {shown(paths[shard].name)}, "
            f"which has {sizes[shard]:,}; it is cut short"
        )

    def read() -> np.ndarray:
        try:
            with reader(paths[shard]) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise JaxlmError(f"{shown(paths[shard].name)} cannot be read: {reason(error)}") from None
        if len(data) < size or masked(crc32c(data)) != checksum:
            raise JaxlmError(
                f"the checksum of the variable {shown(name)} is wrong; {shown(paths[shard].name)} is damaged"
            )
        return as_floats(decoded(data, kind, order).reshape(shape), kind)

    return LazyTensor(shape, kind, name, read)


def _refuse(message: str) -> np.ndarray:
    raise JaxlmError(message)


def _size(paths: list[Path], shard: int) -> int:
    """The bytes of a shard. Raises JaxlmError that names all missing ones."""
    try:
        with reader(paths[shard]) as file:
            return file.seek(0, 2)
    except FileNotFoundError:
        missing = [path.name for path in paths if not path.exists()]
        raise JaxlmError(
            f"{len(missing)} of its {len(paths)} shards are missing ({listed(missing)}); put them beside the index"
        ) from None
    except OSError as error:
        raise JaxlmError(f"{shown(paths[shard].name)} cannot be read: {reason(error)}") from None


def _number(name: str, entry: dict[int, list[int | bytes]], key: int) -> int:
    value = entry.get(key, [0])[-1]
    if not isinstance(value, int) or value >> 62:
        raise JaxlmError(f"the entry of the variable {shown(name)} is damaged")
    return value


def _shape(name: str, data: int | bytes) -> tuple[int, ...]:
    dimensions = _fields(data).get(2, []) if isinstance(data, bytes) else [0]
    if len(dimensions) > MOST_DIMENSIONS or not all(isinstance(dimension, bytes) for dimension in dimensions):
        raise JaxlmError(f"the shape of the variable {shown(name)} is damaged")
    return tuple(_number(name, _fields(dimension), 1) for dimension in dimensions if isinstance(dimension, bytes))


def _fields(data: int | bytes) -> dict[int, list[int | bytes]]:
    """The fields of a protocol buffer's message: numbers and bytes by their field's number."""
    if not isinstance(data, bytes):
        raise JaxlmError("an entry of its index is damaged")
    cursor, fields = Cursor(data), dict[int, list[int | bytes]]()
    while cursor:
        tag = cursor.varint()
        match tag & 7:
            case 0:
                value: int | bytes = cursor.varint()
            case 1:
                value = struct.unpack("<Q", cursor.take(8))[0]
            case 2:
                value = cursor.take(cursor.varint())
            case 5:
                value = struct.unpack("<I", cursor.take(4))[0]
            case _:
                raise JaxlmError("an entry of its index is damaged")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _latest(path: Path) -> Path:
    """The checkpoint that a `checkpoint` file names, always within the file's own folder."""
    try:
        text = read_bytes(path, 1 << 20)
    except OSError as error:
        raise JaxlmError(
            f"expected a checkpoint in the folder, but its file {shown(path.name)} cannot be read: {reason(error)}"
        ) from None
    found = re.search(rb'^\s*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"', text, re.MULTILINE)
    if not found:
        raise JaxlmError("its file 'checkpoint' names no model_checkpoint_path")
    name = _ESCAPE.sub(_unescape, found[1]).decode(errors="replace")
    if name.startswith("/"):  # where it was written; the folder has been moved since, or is the same
        name = name.rsplit("/", 1)[1]
    if not name or "\0" in name or ".." in name.split("/"):
        raise JaxlmError(f"its file 'checkpoint' names {shown(name)}, which is not in the folder")
    inside = path.parent / name
    if not inside.resolve().is_relative_to(path.parent.resolve()):
        raise JaxlmError(f"its file 'checkpoint' names {shown(name)}, which is not in the folder")
    return inside


def _unescape(found: re.Match[bytes]) -> bytes:
    word = found[1]
    if word[:1] in b"01234567":
        return bytes([int(word, 8) & 255])
    return bytes([int(word[1:], 16)]) if len(word) > 1 else _LETTERS.get(word, word)
