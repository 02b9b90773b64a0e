"""The pickles of PyTorch's files, read without importing or calling anything that they name.

Python's own unpickler runs the instructions. Four things keep it harmless:

- A class or function is only its name (`Global`), and an object only its class's name and its state (`Instance`).
- A call is made by this file's function for that name (`_CALLS`); every other call is refused, and so is every name of
  Python's standard library without such a function.
- The instructions are counted before the first one runs. None does more work than the bytes of the file ask for.
- Dicts keep only entries whose keys are short strings, since hashing a stranger's values can take forever. This is why
  the unpickler is the one that is written in Python: the one in C has no place to say so.
"""

import math
import pickle
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import MOST_DIMENSIONS, SIZES, LazyTensor, damage, elements, shown

MOST_STEPS = 2_000_000  # instructions of a pickle; a module takes thousands, a vocabulary beside it 6 a word
MOST_NAME = 1000  # letters of a class's name or of a key
MOST_ARGUMENTS = 16
_REFUSED = {"INST", "OBJ", "PERSID", "EXT1", "EXT2", "EXT4"}  # of old classes, and of what this process registered
_STORAGES = {
    **{"HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64", "BFloat16Storage": "bfloat16"},
    **{"CharStorage": "int8", "ByteStorage": "uint8", "ShortStorage": "int16", "IntStorage": "int32"},
    **{"LongStorage": "int64", "BoolStorage": "bool"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An object of a class that is not built: the class's name and the state that the pickle gives it.

    Of an object that is a list or a dict as well the items are dropped.
    """

    kind: Global
    state: dict[str, Any] = field(default_factory=dict)

    def append(self, item: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Entries(dict[str, Any]):
    """A dict that drops entries whose key is anything but a short string."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str) and len(key) <= MOST_NAME:
            super().__setitem__(key, value)


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of elements outside the pickle."""

    key: str  # the name, in the file, of the storage or of the one that it is a part of (as in old files)
    kind: str  # of the elements, as "float32"
    start: int  # where it begins, in elements
    count: int  # of elements
    fetch: Callable[[], bytes]  # reads the bytes of the whole storage of the key

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.count * SIZES[self.kind]


def unpickle(stream: BinaryIO, storage: Callable[[Any], Any]) -> Any:
    """The value of one pickle, read up to its end; `storage` gives the value of a persistent id.

    The stream must be in memory, so that a length that the pickle claims allocates nothing. Sets are lists in the
    value, and beside Python's own it has `Global`, `Instance` and `LazyTensor`. Raises JaxlmError where the pickle is
    damaged, too long, or asks for something that could run code, which is named.
    """
    with damage("pickle"):
        start = stream.tell()
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step == MOST_STEPS:
                raise JaxlmError(f"its pickle takes over {MOST_STEPS:,} steps, more than any model needs")
            if opcode.name in _REFUSED or opcode.proto > 4:
                what = f"{opcode.name} {'' if argument is None else shown(argument)}".rstrip()
                raise JaxlmError(f"its pickle has the instruction {what}, which no model needs; nothing was run")
            if opcode.name == "PUT" and isinstance(argument, int) and argument > MOST_STEPS:
                raise JaxlmError("its pickle is damaged: a place in the memo is out of range")
        stream.seek(start)
        return _Unpickler(stream, storage).load()


_Python: Any = pickle._Unpickler  # the unpickler that is written in Python


class _Unpickler(_Python):
    """Python's unpickler with instructions of our own where its own would call, build or hash something."""

    def __init__(self, stream: BinaryIO, storage: Callable[[Any], Any]):
        super().__init__(stream, encoding="latin-1")
        self.persistent_load = storage

    def find_class(self, module: str, name: str) -> Global:
        if len(module) + len(name) > MOST_NAME:
            raise JaxlmError(f"its pickle is damaged: the name of a class has over {MOST_NAME} letters")
        found = Global("builtins" if module == "__builtin__" else module, name)
        if module.split(".")[0] in _LIBRARY and found not in _CALLS:
            what = shown(f"{module}.{name}")
            raise JaxlmError(f"it asks for {what}, which is no part of a model and could run code; nothing was run")
        return found

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """An object of a class, made without calling the class. A tensor's class is ours to make."""
        arguments, kind = self.stack.pop(), self.stack[-1]
        made = isinstance(kind, Global) and kind not in _CALLS
        self.stack[-1] = Instance(kind) if made else _call(kind, arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_newobj()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance):
            parts = state[:2] if isinstance(state, tuple) else (state,)  # a tuple: (attributes, slots)
            target.state = next((part for part in parts if isinstance(part, dict)), {})
        elif isinstance(target, Global):
            raise JaxlmError(f"its pickle changes {shown(target)}; nothing was run")

    def load_empty_dict(self) -> None:
        self.stack.append(_Entries())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_pairs(list(zip(items[::2], items[1::2], strict=True))))

    dispatch: ClassVar = {
        **_Python.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_DICT[0]: load_empty_dict,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: _Python.dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: _Python.dispatch[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: _Python.dispatch[pickle.LIST[0]],
    }


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function not in _CALLS:
        # (The repr of another value may be endless.)
        what = shown(function) if isinstance(function, Global) else f"a {type(function).__name__}"
        raise JaxlmError(f"it asks to call {what}, which is no part of a model that can be imported; nothing was run")
    if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
        raise JaxlmError(f"its pickle is damaged: expected a tuple of at most {MOST_ARGUMENTS} arguments of a call")
    return _CALLS[function](*arguments)


def storage_kind(name: Any) -> str:
    """The kind of elements of a storage class. Raises JaxlmError for quantised and unknown ones, by name."""
    if isinstance(name, Global) and name.module in ("torch", "torch.cuda") and name.name in _STORAGES:
        return _STORAGES[name.name]
    what = shown(name) if isinstance(name, Global) else "of no kind"
    raise JaxlmError(f"a tensor's storage is {what}; readable are {', '.join(_STORAGES)}")


def natural(value: Any, what: str) -> int:
    """The value, where it is a whole number that a file can have of anything."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise JaxlmError(f"{what} is not a whole number from 0 to 2**62")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> LazyTensor:
    """Stands for _rebuild_tensor and _rebuild_tensor_v2 (storage, offset, shape, strides, grad, hooks, metadata)."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise JaxlmError("a tensor of its pickle is not made of a storage, a shape and strides")
    if any(isinstance(told, dict) and (told.get("neg") or told.get("conj")) for told in rest[2:]):
        what = "a tensor of its pickle is a view that negates or conjugates what is stored"
        raise JaxlmError(f"{what}: save it after resolve_neg() and resolve_conj()")
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        found = f"{len(shape)} dimensions and {len(strides)} strides"
        raise JaxlmError(f"a tensor has {found}; at most {MOST_DIMENSIONS} of both are read")
    shape = tuple(natural(size, "the size of a tensor") for size in shape)
    strides = tuple(natural(stride, "the stride of a tensor") for stride in strides)
    start, size = storage.start + natural(offset, "the offset of a tensor"), SIZES[storage.kind]
    count = min(math.prod(shape), 1 << 62)
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if count and (last >= storage.count or count > storage.count):  # the second: strides of 0 could claim any size
        claim = f"{shown('x'.join(map(str, shape)) or '1')} elements ({count * size:,} bytes, up to place {last:,})"
        raise JaxlmError(f"a tensor claims {claim} of the storage {shown(storage.key)}, which holds {storage.count:,}")

    def read() -> np.ndarray:
        if not count:
            return np.zeros(shape, np.float32)
        values, steps = elements(storage.fetch(), storage.kind)[start:], tuple(stride * size for stride in strides)
        if last - offset >= len(values):
            raise JaxlmError(f"the storage {shown(storage.key)} is cut short")
        return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False)

    return LazyTensor(shape, storage.kind, (storage.key, start, shape, strides), read)


def _parameter(tensor: Any, *_: Any) -> LazyTensor:
    """Stands for Parameter, Variable and what rebuilds them: the tensor that is given first."""
    if not isinstance(tensor, LazyTensor):
        raise JaxlmError("a parameter of its pickle is not made of a tensor")
    return tensor


def _mapping(given: Any = None, *_: Any) -> dict[str, Any]:
    """Stands for dict, OrderedDict and Counter, of nothing, of a dict or of a list of pairs."""
    return _Entries() if given is None else given if isinstance(given, dict) else _pairs(given)


def _pairs(pairs: list[Any]) -> dict[str, Any]:
    """The dict of a list of pairs. The list is emptied, so that a pickle which gives it again causes no more work."""
    made = _Entries()
    for key, value in pairs:
        made[key] = value
    pairs.clear()
    return made


def _sequence(given: Any = (), *_: Any) -> Any:
    """Stands for list, tuple and set: the given sequence itself, since nothing here changes it."""
    return given if isinstance(given, list | tuple) else []


def _attribute(target: Any = None, *_: Any) -> Instance:
    """Stands for getattr, as which an object's own method is kept (awd-lstm-lm): it becomes a name and nothing else."""
    if not isinstance(target, Instance):
        found = shown(target) if isinstance(target, Global) else "no object of a model"
        raise JaxlmError(f"it asks for getattr of {found}, which could run code; nothing was run")
    return _inert()


def _inert(*_: Any) -> Instance:
    """Stands for a call whose result is never used."""
    return Instance(Global("builtins", "object"))


_LIBRARY = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "popen2", "cPickle", "cStringIO", "imp"}
# This file's function for each name that the pickle of a PyTorch model may call.
_CALLS: dict[Global, Callable] = {
    Global(*name.rsplit(".", 1)): function
    for function, names in (
        (_mapping, "builtins.dict collections.OrderedDict collections.Counter torch.nn.modules.container.OrderedDict"),
        (lambda *_: _Entries(), "collections.defaultdict"),
        (_sequence, "builtins.list builtins.tuple builtins.set builtins.frozenset torch.Size"),
        (lambda *_: [], "collections.deque"),
        (_attribute, "builtins.getattr"),
        (_tensor, "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2"),
        (_parameter, "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state"),
        (_parameter, "torch.nn.parameter.Parameter torch.nn.parameter.Buffer torch.autograd.variable.Variable"),
        (_inert, "builtins.int builtins.long builtins.float builtins.complex builtins.bool builtins.str"),
        (_inert, "builtins.unicode builtins.bytes builtins.bytearray builtins.slice builtins.range builtins.xrange"),
        (_inert, "builtins.object argparse.Namespace types.SimpleNamespace _codecs.encode"),
        (_inert, "datetime.date datetime.datetime datetime.time datetime.timedelta"),
        (_inert, "pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath"),
        (_inert, "torch.device torch._utils._get_dtype torch.torch_version.TorchVersion"),
        (_inert, "torch.nn.backends.thnn._get_thnn_function_backend numpy.dtype numpy.ndarray"),
        (_inert, "numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.core.numeric._frombuffer"),
        (_inert, "numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer"),
    )
    for name in names.split()
}
