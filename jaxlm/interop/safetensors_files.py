"""Tensors of a .safetensors file; a matrix that was kept once for two names is given under both."""

import json

import safetensors

from jaxlm.interop.tensors import LazyTensor, as_floats, check_sharing, damage, elements

_KINDS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


def read_safetensors(data: bytes) -> dict[str, LazyTensor]:
    """The tensors of a file's bytes, by name. Raises JaxlmError where the file is damaged or cut short."""
    with damage("safetensors file"):
        tensors = {name: _tensor(name, entry) for name, entry in safetensors.deserialize(data)}
        end = 8 + int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8:end]).get("__metadata__") or {}
    for name, kept in metadata.items():  # safetensors.torch.save_model: {left out: kept}
        if name not in tensors and kept in tensors:
            tensors[name] = tensors[kept]
    check_sharing(tensors.values(), len(data) - end)
    return tensors


def _tensor(name: str, entry: dict) -> LazyTensor:
    shape: tuple[int, ...] = tuple(entry["shape"])
    kind = _KINDS.get(entry["dtype"]) or str(entry["dtype"])
    return LazyTensor(shape, kind, name, lambda: as_floats(elements(entry["data"], kind).reshape(shape), kind))
