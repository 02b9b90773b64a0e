"""Export to a PyTorch state_dict: the archive that `torch.save` writes, without PyTorch, and a .safetensors file."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxlm.files import new_file
from jaxlm.interop.torch_naming import StateDict, state_dict
from jaxlm.scoring.language_model import LanguageModel

TIED = "the model is tied: decoder.weight is encoder.weight, kept once and named in the file's metadata"
ROOT = "model"  # what all names in the archive begin with
ALIGNMENT = 64  # bytes, of each storage within the file, as torch.save has it
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that equal tensors give equal bytes


def export_torch(model: LanguageModel, out: Path) -> list[str]:
    """Writes a file that `torch.load(OUT, weights_only=True)` reads; returns notes. Raises JaxlmError, OSError."""
    tensors, notes = state_dict(model.config.model, model.params)
    with new_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        _write_archive(archive, tensors)
    return notes


def export_safetensors(model: LanguageModel, out: Path) -> list[str]:
    """Writes the state_dict as a .safetensors file; returns notes. Raises JaxlmError, OSError."""
    tensors, notes = state_dict(model.config.model, model.params)
    with new_file(out) as file:
        file.write(safetensors_bytes(tensors))
    return [*notes, TIED] if model.config.model.tied else notes


def safetensors_bytes(tensors: StateDict) -> bytes:
    """The bytes of a .safetensors file; an array of two names is kept once, as safetensors.torch.save_model does."""
    kept: dict[int, str] = {}
    metadata = {"format": "pt"}
    unique: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if (first := kept.setdefault(id(tensor), name)) == name:
            unique[name] = tensor
        else:
            metadata[name] = first
    return safetensors.numpy.save(unique, metadata)


def _write_archive(archive: zipfile.ZipFile, tensors: StateDict) -> None:
    """Writes a pickle and raw storages, one for all names of one array object."""
    storages: dict[int, tuple[str, np.ndarray]] = {}
    for tensor in tensors.values():
        storages.setdefault(id(tensor), (str(len(storages)), tensor))
    items = b"".join(_plain(name) + _tensor(storages[id(tensor)][0], tensor) for name, tensor in tensors.items())
    _entry(archive, "data.pkl", b"\x80\x02" + _call("collections", "OrderedDict", b")") + b"(" + items + b"u.")
    _entry(archive, "byteorder", b"little")
    for key, tensor in storages.values():
        _entry(archive, f"data/{key}", tensor.astype("<f4", copy=False).data.cast("B"))
    _entry(archive, "version", b"3\n")


def _entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ROOT}/{name}", _EPOCH)
    start = archive.fp.tell() + 30 + len(info.filename) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=len(data) >= zipfile.ZIP64_LIMIT) as entry:
        entry.write(data)


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`, in instructions."""
    storage = (_plain("storage"), _global("torch", "FloatStorage"), _plain(key), _plain("cpu"), _plain(tensor.size))
    strides = tuple(stride // tensor.itemsize for stride in tensor.strides)
    view = b"".join(map(_plain, (0, tensor.shape, strides, False)))
    arguments = b"((" + b"".join(storage) + b"tQ" + view + _call("collections", "OrderedDict", b")") + b"t"
    return _call("torch._utils", "_rebuild_tensor_v2", arguments)


def _plain(value: object) -> bytes:
    """The instructions that make a value of Python's own."""
    return pickle.dumps(value, 2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return _global(module, name) + arguments + b"R"
