"""Tensors of a .safetensors file; a matrix that was kept once for two names is given under both."""

import json

import safetensors

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import LazyTensor, as_floats, check_sharing, decoded, shown

_KINDS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


def read_safetensors(data: bytes) -> dict[str, LazyTensor]:
    """The tensors of a file's bytes, by name.

    Raises JaxlmError where the file is damaged or cut short.
    """
    try:
        found = dict(safetensors.deserialize(data))
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise JaxlmError(f"it is no intact safetensors file ({shown(error, 160)})") from None
    tensors = {name: _tensor(name, entry) for name, entry in found.items()}
    for name, kept in (header.get("__metadata__") or {}).items():  # safetensors.torch.save_model: {left out: kept}
        if name not in tensors and kept in tensors:
            tensors[name] = tensors[kept]
    check_sharing(tensors.values(), len(data) - 8 - size)
    return tensors


def _tensor(name: str, entry: dict) -> LazyTensor:
    shape: tuple[int, ...] = tuple(entry["shape"])
    kind = _KINDS.get(entry["dtype"]) or str(entry["dtype"])
    return LazyTensor(shape, kind, name, lambda: as_floats(decoded(entry["data"], kind).reshape(shape), kind))
