"""Checkpoints of TensorFlow 1 (`NAME.index` and `NAME.data-00000-of-00001`), read without TensorFlow.

The index is a table from a variable's name to where its bytes lie (BundleEntryProto); the empty key holds the number
of shards (BundleHeaderProto). The table is a sorted string table (TensorFlow's lib/io/table, after LevelDB's), of
blocks with checksums. Its last 48 bytes say where the index block lies, the index where each data block does. In a
block each key says how much it shares with the one before.
"""

import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.files import read_bytes, reader, reason
from jaxlm.interop.crc32c import crc32c, masked
from jaxlm.interop.foreign import MOST_DIMENSIONS, SIZES, LazyTensor, check_sharing, elements, listed, shown

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # what a table ends with
MOST_KEY, MOST_ENTRIES = 500, 20_000  # bytes; pairs
MOST_INDEX, MOST_SHARDS = 1 << 26, 100_000
PARTITIONED = "a partitioned variable"
_KINDS = {1: "float32", 2: "float64", 3: "int32", 9: "int64", 14: "bfloat16", 19: "float16"}  # TensorFlow's DataType
_ENDING = re.compile(r"(?s)(.+)\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")
_ESCAPE = re.compile(rb"\\(?:([0-7]{3})|(.))")
_LATEST = re.compile(rb'[ \t]*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"')

Fields = dict[int, list[int | bytes]]  # values by the number of their field


def checkpoint_prefix(path: str | Path) -> Path | None:
    """The path that a checkpoint's files begin with; None where there is no checkpoint.

    A user may give this path, any one of the files, the file named `checkpoint`, or the folder of one. Raises
    JaxlmError for a folder whose `checkpoint` file is missing, unreadable or names nothing in the folder.
    """
    path = Path(path)
    if path.is_dir():
        return _latest(path / "checkpoint")
    if path.name == "checkpoint" and not path.with_name("checkpoint.index").exists():
        return _latest(path)
    if ending := _ENDING.fullmatch(path.name):
        return path.with_name(ending[1])
    return path if path.name and path.with_name(path.name + ".index").exists() else None


def read_checkpoint(prefix: Path) -> dict[str, LazyTensor]:
    """The variables of a checkpoint; the checksum of each is checked as it is read.

    Raises JaxlmError where the index is damaged, shards are missing or too short, or a checksum is wrong.
    """
    index = prefix.with_name(prefix.name + ".index")
    try:
        table = dict(_entries(read_bytes(index, MOST_INDEX)))
    except OSError as error:
        raise JaxlmError(f"its index {shown(index.name)} cannot be read: {reason(error)}") from None
    header = message_fields(table.pop(b"", b""))
    shards = _last(header, 1)
    if not isinstance(shards, int) or not 0 < shards < MOST_SHARDS:
        raise JaxlmError("its index does not say how many shards there are; it is damaged")
    if _last(header, 2):
        raise JaxlmError("it was written by a big-endian machine, and only little-endian checkpoints are read")
    paths = [prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}") for shard in range(shards)]
    if missing := [path.name for path in paths if not path.exists()]:
        what = f"{len(missing)} of its {len(paths)} shards are missing ({listed(missing)})"
        raise JaxlmError(f"{what}; put them beside the index")
    sizes = [path.stat().st_size for path in paths]
    tensors: dict[str, LazyTensor] = {}
    for key, value in table.items():
        try:
            name = key.decode()
        except UnicodeDecodeError:
            continue  # a slice of a partitioned variable, whose own entry is refused where the model needs it
        tensors[name] = _variable(name, message_fields(value), paths, sizes)
    check_sharing((tensor for tensor in tensors.values() if tensor.kind != PARTITIONED), sum(sizes))
    return tensors


def _variable(name: str, entry: Fields, paths: list[Path], sizes: list[int]) -> LazyTensor:
    """A variable of one entry: type 1, shape 2, shard 3, offset 4, bytes 5, checksum 6, slices 7."""
    kind = PARTITIONED if 7 in entry else _KINDS.get(_number(name, entry, 1), "something else than floats")
    dimensions = message_fields(_last(entry, 2) or b"").get(2, [])
    if len(dimensions) > MOST_DIMENSIONS:
        raise JaxlmError(f"the shape of the variable {shown(name)} is damaged")
    shape = tuple(_number(name, message_fields(dimension), 1) for dimension in dimensions)
    shard, offset, size, checksum = (_number(name, entry, field) for field in (3, 4, 5, 6))

    def read() -> np.ndarray:
        try:
            with reader(paths[shard]) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise JaxlmError(f"{shard_name} cannot be read: {reason(error)}") from None
        if len(data) < size or masked(crc32c(data)) != checksum:
            raise JaxlmError(f"the checksum of the variable {shown(name)} is wrong; {shard_name} is damaged")
        return elements(data, kind).reshape(shape)

    if kind in SIZES and math.prod(shape) * SIZES[kind] != size:
        raise JaxlmError(f"the variable {shown(name)} claims the shape {list(shape)} in {size:,} bytes; it is damaged")
    if shard >= len(paths):
        raise JaxlmError(f"the variable {shown(name)} lies in shard {shard} of {len(paths)}; it is damaged")
    shard_name = shown(paths[shard].name)
    if offset + size > sizes[shard]:
        end = f"ends at byte {offset + size:,} of {shard_name}, which has {sizes[shard]:,}"
        raise JaxlmError(f"the variable {shown(name)} {end}; it is cut short")
    return LazyTensor(shape, kind, name, read)


def _number(name: str, entry: Fields, field: int) -> int:
    value = _last(entry, field)
    if not isinstance(value, int) or value >> 62:
        raise JaxlmError(f"the entry of the variable {shown(name)} is damaged")
    return value


def _last(fields: Fields, field: int) -> int | bytes:
    """The last value of a field, which is the one that counts; 0 where there is none."""
    return fields.get(field, [0])[-1]


def message_fields(data: int | bytes) -> Fields:
    """The fields of a protocol buffer's message."""
    if not isinstance(data, bytes):
        raise JaxlmError("an entry of its index is damaged")
    cursor, fields = _Cursor(data), Fields()
    while cursor:
        tag = cursor.varint()
        match tag & 7:
            case 0:
                value = cursor.varint()
            case 2:
                value = cursor.take(cursor.varint())
            case 1 | 5 as width:
                value = int.from_bytes(cursor.take(8 if width == 1 else 4), "little")
            case _:
                raise JaxlmError("an entry of its index is damaged")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _latest(path: Path) -> Path:
    """The checkpoint that a `checkpoint` file names, always within the file's own folder."""
    try:
        lines = read_bytes(path, 1 << 20).split(b"\n")
    except OSError as error:
        problem = f"its file {shown(path.name)} cannot be read: {reason(error)}"
        raise JaxlmError(f"expected a checkpoint in the folder, but {problem}") from None
    found = next(filter(None, map(_LATEST.match, lines)), None)
    if not found:
        raise JaxlmError("its file 'checkpoint' names no model_checkpoint_path")
    name = _ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 255]) if found[1] else found[2], found[1])
    name = name.decode(errors="replace")
    if name.startswith("/"):  # where it was written; the folder has been moved since, or is the same
        name = name.rsplit("/", 1)[1]
    inside = path.parent / name
    strange = not name or "\0" in name or ".." in name.split("/")
    if strange or not Path(os.path.realpath(inside)).is_relative_to(os.path.realpath(path.parent)):
        raise JaxlmError(f"its file 'checkpoint' names {shown(name)}, which is not in the folder")
    return inside


class _Cursor:
    """Reads numbers and runs of bytes. Raises JaxlmError where they would go beyond the end."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def varint(self) -> int:
        """A number of at most 64 bits, seven a byte, lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128 and value < 1 << 64:
                return value
        raise JaxlmError("a number in it has over 64 bits; it is damaged")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise JaxlmError("it ends in the middle of an entry; it is damaged or cut short")
        self.place += count
        return self.data[self.place - count : self.place]


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a table, in order. Raises JaxlmError where it is damaged."""
    if len(table) < 48 or table[-8:] != MAGIC:
        raise JaxlmError("it does not end as a checkpoint's index does; it is damaged or cut short")
    footer = _Cursor(table[-48:-8])
    for _ in range(2):
        footer.varint()  # where the block of other blocks lies: there are none
    found = read = 0
    for _, handle in _pairs(_block(table, footer)):
        block = _block(table, _Cursor(handle))
        pairs = list(islice(_pairs(block), MOST_ENTRIES))
        found, read = found + 1 + len(pairs), read + len(block)
        if found > MOST_ENTRIES or read > len(table):
            raise JaxlmError(f"it has over {MOST_ENTRIES:,} entries, more than any model, or blocks that overlap")
        yield from pairs


def _block(table: bytes, handle: _Cursor) -> bytes:
    """The content of a block, its checksum checked."""
    place, size = handle.varint(), handle.varint()
    end = place + size
    if end + 5 > len(table):
        raise JaxlmError(f"a block of it ends at byte {end + 5:,} of {len(table):,}; it is cut short")
    if masked(crc32c(table[place : end + 1])) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise JaxlmError("the checksum of one of its blocks is wrong; it is damaged")
    if table[end]:
        raise JaxlmError("a block of it is compressed, as tf.train.Saver never does with an index")
    return table[place:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # what follows: places to restart, their number
    if len(block) < 4 or end < 0:
        raise JaxlmError("a block of it is too short; it is damaged")
    cursor, key = _Cursor(block[:end]), b""
    while cursor:
        shared, fresh, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + fresh > MOST_KEY:
            raise JaxlmError("a key of it is damaged or too long")
        key = key[:shared] + cursor.take(fresh)
        yield key, cursor.take(length)
