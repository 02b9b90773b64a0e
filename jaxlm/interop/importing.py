"""Reads other programs' language models, whatever kind of file they are in, and never runs anything from them."""

import json
import os
from pathlib import Path

import safetensors

from jaxlm.errors import JaxlmError
from jaxlm.files import reader, reason
from jaxlm.interop.foreign import MOST_PATH, ForeignModel, LazyTensor, check_sharing, damage, elements, shown
from jaxlm.interop.import_hub import CODE, CONFIG, WEIGHTS, read_hub
from jaxlm.interop.tensorflow import from_tensorflow_checkpoint
from jaxlm.interop.tensorflow_checkpoint import MAGIC, checkpoint_prefix, read_checkpoint
from jaxlm.interop.torch_files import MOST_FILE, read_torch
from jaxlm.interop.torch_layout import from_torch
from jaxlm.interop.torch_modules import model_tensors

_SAFETENSORS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


def read_model(file: str | Path) -> ForeignModel:
    """A stacked LSTM from a file of PyTorch, safetensors or TensorFlow 1; or any model that `export_hub` wrote.

    Args:
        file: what `torch.save` wrote (a module, a state_dict, or a list or dict with one), a .safetensors file, or a
            TensorFlow checkpoint (its common name, one of its files, or its folder), or a hub's folder.
    Raises:
        JaxlmError: there is no such file, it is damaged, is no LSTM language model, or asks for something that could
            run code, which is named; nothing was run.
    """
    try:
        return _read(Path(file))
    except (OSError, MemoryError, JaxlmError) as error:
        problem = "there is no memory for it" if isinstance(error, MemoryError) else reason(error)
    raise JaxlmError(f"cannot import {shown(file, MOST_PATH)}: {problem}")


def _read(path: Path) -> ForeignModel:
    folder = path.parent if path.name == WEIGHTS and (path.parent / CODE).is_file() else path
    if (folder / CONFIG).is_file():
        return read_hub(folder)
    if (prefix := checkpoint_prefix(path)) is not None:
        return from_tensorflow_checkpoint(read_checkpoint(prefix), f"TensorFlow checkpoint {shown(prefix.name)}")
    with reader(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MOST_FILE:  # (0: what the kernel makes up, as /proc/kmsg, waits for who reads it)
            raise JaxlmError(f"it has {size:,} bytes, expected a model of 1 to {MOST_FILE:,}")
        head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
            file.seek(0)
            return from_torch(_read_safetensors(file.read()), "safetensors file")
        file.seek(max(size - 8, 0))
        if file.read() == MAGIC:
            what = "it is a checkpoint of TensorFlow's first format, in one file"
            raise JaxlmError(f"{what}; save it anew by TensorFlow 1.0 or later, which writes an .index and .data files")
        file.seek(0)
        value, layout, stored = read_torch(file, size)
        tensors, what = model_tensors(value, stored)
        return from_torch(tensors, f"PyTorch {what} ({layout})")


def _read_safetensors(data: bytes) -> dict[str, LazyTensor]:
    """The tensors of a file's bytes, by name. Raises JaxlmError where the file is damaged or cut short."""
    with damage("safetensors file"):
        tensors = {name: _tensor(name, **entry) for name, entry in safetensors.deserialize(data)}
        end = 8 + int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8:end]).get("__metadata__") or {}
    for name, kept in metadata.items():  # safetensors.torch.save_model: {left out: kept}
        if name not in tensors and kept in tensors:
            tensors[name] = tensors[kept]
    check_sharing(tensors.values(), len(data) - end)
    return tensors


def _tensor(name: str, shape: list[int], dtype: str, data: bytes) -> LazyTensor:
    kind = _SAFETENSORS.get(dtype, dtype)
    return LazyTensor(tuple(shape), kind, name, lambda: elements(data, kind).reshape(shape))
