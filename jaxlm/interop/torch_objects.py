"""Tensors as PyTorch pickles them: views with strides into storages, whose bytes lie outside the pickle.

What a view claims is held against its storage before anything is allocated. Devices are ignored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.pickles import PYTHON_CALLS, Call, Global, Spend, inert, mapping
from jaxlm.interop.tensors import SIZES, LazyTensor, as_floats, decoded, shown

MOST_DIMENSIONS = 16
_KINDS = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_DTYPES = {"half": "float16", "float": "float32", "double": "float64", **{name: name for name in SIZES}}


class Storage:
    """A run of elements in the file.

    Attributes:
        key: its name in the file.
        kind: its elements.
        count: how many there are.
        order: the byte order.
        fetch: reads its bytes; set once it is known where they lie.
    """

    def __init__(
        self, key: str, kind: str, count: int, order: str = "<", fetch: Callable[[], bytes | bytearray] | None = None
    ):
        self.key, self.kind, self.count, self.order, self.fetch = key, kind, count, order, fetch

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.count * SIZES[self.kind]

    @cached_property
    def data(self) -> bytes | bytearray:
        """Its bytes, read once."""
        if self.fetch is None:
            raise JaxlmError(f"the storage {shown(self.key)} is not in the file")
        return self.fetch()


@dataclass(frozen=True, eq=False)
class View:
    """A part of a storage, in elements of its own kind (old files give storages that are views of others)."""

    storage: Storage
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view with strides; `offset` counts elements of `kind` from the storage's beginning."""

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def lazy(self) -> LazyTensor:
        """The tensor for everybody else."""
        identity = (self.storage.key, self.kind, self.offset, self.shape, self.strides)
        return LazyTensor(self.shape, self.kind, identity, self._read)

    def _read(self) -> np.ndarray:
        whole = len(self.storage.data) // SIZES[self.kind] * SIZES[self.kind]
        elements = decoded(memoryview(self.storage.data)[:whole], self.kind, self.storage.order)
        steps = tuple(stride * SIZES[self.kind] for stride in self.strides)
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.shape, steps, writeable=False)
        return as_floats(view, self.kind)


def storage_kind(name: Any) -> str:
    """The kind of elements of a storage class. Raises JaxlmError for quantised and unknown ones, by name."""
    if isinstance(name, Global) and name.module in ("torch", "torch.cuda", "torch.storage") and name.name in _KINDS:
        return _KINDS[name.name]
    raise JaxlmError(
        f"a tensor's storage is {shown(name) if isinstance(name, Global) else 'of no kind'}; "
        f"readable are {', '.join(_KINDS)}"
    )


def natural(value: Any, what: str) -> int:
    """The value, where it is a whole number that a file can have of anything."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise JaxlmError(f"{what} is not a whole number from 0 to 2**62")
    return value


def view_of(storage: Any, kind: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor of these claims, checked against the storage. Raises JaxlmError where they go beyond it."""
    if not isinstance(storage, View) or not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise JaxlmError("a tensor of its pickle is not made of a storage, a shape and strides")
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise JaxlmError(
            f"a tensor has {len(shape)} dimensions and {len(strides)} strides; at most {MOST_DIMENSIONS} "
            "of both are read"
        )
    shape = tuple(natural(size, "the size of a tensor") for size in shape)
    strides = tuple(natural(stride, "the stride of a tensor") for stride in strides)
    offset = natural(offset, "the offset of a tensor")
    start = storage.start * SIZES[storage.storage.kind] // SIZES[kind]
    held = storage.count * SIZES[storage.storage.kind] // SIZES[kind]
    count = min(math.prod(shape), 1 << 62)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and (last >= held or count > held):  # the second: strides of 0 could claim any size
        claim = "x".join(map(str, shape)) or "1"
        raise JaxlmError(
            f"a tensor claims {shown(claim)} elements ({count * SIZES[kind]:,} bytes, up to place "
            f"{last:,}) of the storage {shown(storage.storage.key)}, which holds {held:,}"
        )
    return Tensor(storage.storage, kind, start + offset, shape, strides)


def _tensor(arguments: tuple[Any, ...], _: Spend) -> Tensor:
    """Stands for _rebuild_tensor and _rebuild_tensor_v2: (storage, offset, shape, strides, ...)."""
    if len(arguments) < 4 or not isinstance(arguments[0], View):
        raise JaxlmError("a tensor of its pickle is not made of a storage, a shape and strides")
    _check_plain(arguments[6:7])
    return view_of(arguments[0], arguments[0].storage.kind, *arguments[1:4])


def _check_plain(metadata: tuple[Any, ...]) -> None:
    """Refuses a tensor that stands for the negative or the conjugate of what is stored."""
    if any(isinstance(told, dict) and any(told.values()) for told in metadata):
        raise JaxlmError(
            "a tensor of its pickle is a view that negates or conjugates what is stored: save it after "
            "resolve_neg() and resolve_conj()"
        )


def _tensor_of_dtype(arguments: tuple[Any, ...], _: Spend) -> Tensor:
    """Stands for _rebuild_tensor_v3: (storage, offset, shape, strides, requires_grad, hooks, dtype, ...)."""
    values = [*arguments[:7], *[None] * 7]
    dtype = values[6]
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in _DTYPES:
        raise JaxlmError("a tensor of its pickle has an unknown dtype")
    _check_plain(arguments[7:8])
    return view_of(values[0], _DTYPES[dtype.name], *values[1:4])


def _parameter(arguments: tuple[Any, ...], _: Spend) -> Any:
    """Stands for Parameter, Variable and what rebuilds them: the tensor that is given first."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise JaxlmError("a parameter of its pickle is not made of a tensor")
    return arguments[0]


def _typed(arguments: tuple[Any, ...], spend: Spend) -> Any:
    """Stands for _rebuild_from_type_v2: (function, class, its arguments, attributes), for tensors with attributes."""
    name, _, parts = (*arguments, None, None, None)[:3]
    function = TORCH_CALLS.get(name) if isinstance(name, Global) else None
    if function is None or function not in (_tensor, _tensor_of_dtype) or not isinstance(parts, tuple):
        raise JaxlmError("a tensor of its pickle is rebuilt by an unknown function; nothing was run")
    return function(parts, spend)


def _size(arguments: tuple[Any, ...], _: Spend) -> tuple:
    return next((part for part in arguments[:1] if isinstance(part, tuple)), ())


def _named(call: Call, *names: str) -> dict[Global, Call]:
    return {Global(*name.rsplit(".", 1)): call for name in names}


# What stands for each call that a PyTorch model's pickle may make.
TORCH_CALLS: dict[Global, Call] = {
    **PYTHON_CALLS,
    **_named(_tensor, "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
    **_named(_tensor_of_dtype, "torch._utils._rebuild_tensor_v3"),
    **_named(
        _parameter,
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.autograd.variable.Variable",
    ),
    **_named(_typed, "torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2"),
    **_named(_size, "torch.Size"),
    **_named(mapping, "torch.nn.modules.container.OrderedDict"),
    **{
        Global(*name.rsplit(".", 1)): inert(Global(*name.rsplit(".", 1)))
        for name in (
            "torch.device",
            "torch.nn.backends.thnn._get_thnn_function_backend",
            "torch._utils._get_dtype",
            "torch.torch_version.TorchVersion",
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.numeric._frombuffer",
            "numpy._core.numeric._frombuffer",
        )
    },
}
