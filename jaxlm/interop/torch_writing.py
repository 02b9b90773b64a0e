"""Writes what `torch.save(state_dict, FILE)` writes, without PyTorch: a zip archive of a pickle and raw storages."""

import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

ROOT = "model"  # what all names in the archive begin with
ALIGNMENT = 64  # bytes, of each storage within the file, as torch.save has it
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that equal tensors give equal bytes


def write_state_dict(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state_dict that `torch.load(FILE, weights_only=True)` reads.

    Args:
        file: where to, at its beginning.
        tensors: by name, float32 in C order; names of one array object share one storage.
    Raises:
        OSError: the file cannot be written.
    """
    storages: dict[int, tuple[str, np.ndarray]] = {}
    for tensor in tensors.values():
        storages.setdefault(id(tensor), (str(len(storages)), tensor))
    items = b"".join(_text(name) + _tensor(storages[id(tensor)][0], tensor) for name, tensor in tensors.items())
    # protocol 2: an empty OrderedDict, then its items
    pickle = b"\x80\x02" + _call("collections", "OrderedDict", b")") + b"(" + items + b"u."
    with zipfile.ZipFile(file, "w") as archive:
        _entry(archive, "data.pkl", pickle)
        _entry(archive, "byteorder", b"little")
        for key, tensor in storages.values():
            _entry(archive, f"data/{key}", np.ascontiguousarray(tensor, "<f4").data.cast("B"))
        _entry(archive, "version", b"3\n")


def _entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ROOT}/{name}", _EPOCH)
    start = archive.fp.tell() + 30 + len(info.filename) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=len(data) >= zipfile.ZIP64_LIMIT) as entry:
        entry.write(data)


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    storage = _tuple(_text("storage"), _global("torch", "FloatStorage"), _text(key), _text("cpu"), _int(tensor.size))
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
    return _call(
        "torch._utils",
        "_rebuild_tensor_v2",
        _tuple(
            storage + b"Q",
            _int(0),
            _tuple(*map(_int, tensor.shape)),
            _tuple(*map(_int, strides)),
            b"\x89",
            _call("collections", "OrderedDict", b")"),
        ),
    )


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return _global(module, name) + arguments + b"R"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
