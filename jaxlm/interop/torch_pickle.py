"""The pickles of PyTorch's files, read without importing or calling anything that they name.

`pickletools` decodes the instructions, and this file runs them:

- A class or function is only its name (`Global`), and an object only its class's name and its state (`Instance`).
- A call is made by this file's function for that name (`_CALLS`); every other call is refused, and so is every name of
  Python's standard library without such a function.
- The instructions are counted, and none does more work than the bytes of the file ask for.
- Dicts keep only entries whose keys are short strings, since hashing a stranger's values can take forever.
"""

import pickletools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import damage, shown

MOST_STEPS = 2_000_000  # instructions of a pickle; a module takes thousands, a vocabulary beside it 6 a word
MOST_NAME = 1000  # letters of a class's name or of a key
MOST_ARGUMENTS = 16
MOST_DIMENSIONS = 16
_REFUSED = {"INST", "OBJ", "PERSID", "EXT1", "EXT2", "EXT4"}  # of old classes, and of what this process registered
_STORAGES = {
    **{"HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64", "BFloat16Storage": "bfloat16"},
    **{"CharStorage": "int8", "ByteStorage": "uint8", "ShortStorage": "int16", "IntStorage": "int32"},
    **{"LongStorage": "int64", "BoolStorage": "bool"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}


class Global(str):
    """The name of a class or function. It is never imported."""


@dataclass(eq=False)
class Instance:
    """An object of a class that is not built: the class's name and the state that the pickle gives it.

    Of an object that is a list or a dict as well the items are dropped.
    """

    kind: Global
    state: dict[str, Any] = field(default_factory=dict)


@damage("pickle")
def unpickle(stream: BinaryIO, storage: Callable[[Any], np.ndarray]) -> Any:
    """The value of one pickle, read up to its end; `storage` gives the elements [n] of a persistent id.

    The stream must be in memory, so that a length that the pickle claims allocates nothing. Sets are lists in the
    value, tensors are arrays, and beside Python's own it has `Global` and `Instance`. Raises JaxlmError where the
    pickle is damaged, too long, or asks for something that could run code, which is named.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lies below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step == MOST_STEPS:
            raise JaxlmError(f"its pickle takes over {MOST_STEPS:,} steps, more than any model needs")
        if opcode.name in _REFUSED or opcode.proto > 4:
            what = f"{opcode.name} {'' if argument is None else shown(argument)}".rstrip()
            raise JaxlmError(f"its pickle has the instruction {what}, which no model needs; nothing was run")
        items, operands = [], opcode.stack_before
        if pickletools.markobject in operands:
            items, stack, operands = stack, below.pop(), operands[:-2]
        match opcode.name, [stack.pop() for _ in operands][::-1]:
            case ("PROTO" | "FRAME" | "POP" | "POP_MARK", _):
                pass
            case ("STOP", [value]):
                return value
            case ("MARK", _):
                below.append(stack)
                stack = []
            case ("DUP", [value]):
                stack += [value, value]
            case ("PUT" | "BINPUT" | "LONG_BINPUT", _) if argument in range(MOST_STEPS):
                memo[argument] = stack[-1]
            case ("MEMOIZE", [value]):
                memo[len(memo)] = value
                stack.append(value)
            case ("GET" | "BINGET" | "LONG_BINGET", _):
                stack.append(memo[argument])
            case ("NONE" | "NEWTRUE" | "NEWFALSE", _):
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case ("EMPTY_TUPLE" | "TUPLE", _):
                stack.append(tuple(items))
            case ("TUPLE1" | "TUPLE2" | "TUPLE3", values):
                stack.append(tuple(values))
            case ("EMPTY_LIST" | "EMPTY_SET" | "LIST" | "FROZENSET", _):
                stack.append(items)
            case ("EMPTY_DICT" | "DICT", _):
                stack.append(_with_entries({}, items))
            case ("APPEND" | "APPENDS" | "ADDITEMS", [list() as target, *one]):
                target += one or items
                stack.append(target)
            case ("SETITEM" | "SETITEMS", [dict() as target, *pair]):
                stack.append(_with_entries(target, pair or items))
            case ("APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS", [Instance() as target, *_]):
                stack.append(target)
            case ("GLOBAL", _):
                stack.append(_named(*argument.split(" ", 1)))
            case ("STACK_GLOBAL", [str() as module, str() as name]):
                stack.append(_named(module, name))
            case ("REDUCE", [function, arguments]):
                stack.append(_call(function, arguments))
            case ("NEWOBJ" | "NEWOBJ_EX", [kind, arguments, *_]):
                inert = isinstance(kind, Global) and kind not in _CALLS  # (a tensor's class is ours to make)
                stack.append(Instance(kind) if inert else _call(kind, arguments))
            case ("BUILD", [target, state]):
                stack.append(_built(target, state))
            case ("BINPERSID", [identifier]):
                stack.append(storage(identifier))
            case (_, []) if argument is not None and opcode.stack_after:
                stack.append(argument)  # a number or a string
            case _:
                raise ValueError(f"{opcode.name} of something else than it takes")


def _named(module: str, name: str) -> Global:
    if len(module) + len(name) > MOST_NAME:
        raise JaxlmError(f"its pickle is damaged: the name of a class has over {MOST_NAME} letters")
    found = Global(f"{'builtins' if module == '__builtin__' else module}.{name}")
    if module.split(".")[0] in _LIBRARY and found not in _CALLS:
        raise JaxlmError(f"it asks for {shown(found)}, which is no part of a model and could run code; nothing was run")
    return found


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function not in _CALLS:
        # (The repr of another value may be endless.)
        what = shown(function) if isinstance(function, Global) else f"a {type(function).__name__}"
        raise JaxlmError(f"it asks to call {what}, which is no part of a model that can be imported; nothing was run")
    if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
        raise JaxlmError(f"its pickle is damaged: expected a tuple of at most {MOST_ARGUMENTS} arguments of a call")
    return _CALLS[function](*arguments)


def _built(target: Any, state: Any) -> Any:
    """An object with the state that a pickle gives it; the state of anything else is ignored."""
    if isinstance(target, Instance):
        parts = state[:2] if isinstance(state, tuple) else (state,)  # a tuple: (attributes, slots)
        target.state = next((part for part in parts if isinstance(part, dict)), {})
    elif isinstance(target, Global):
        raise JaxlmError(f"its pickle changes {shown(target)}; nothing was run")
    return target


def _with_entries(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """The dict with keys and values in turn, without those whose key is anything but a short string."""
    pairs = zip(items[::2], items[1::2], strict=True)
    target.update((key, value) for key, value in pairs if isinstance(key, str) and len(key) <= MOST_NAME)
    return target


def storage_dtype(name: Global) -> np.dtype:
    """The dtype of a storage class. Raises JaxlmError for quantised and unknown ones, by name."""
    package, _, kind = name.rpartition(".")
    if package not in ("torch", "torch.cuda") or kind not in _STORAGES:
        raise JaxlmError(f"a tensor's storage is {shown(name)}; readable are {', '.join(_STORAGES)}")
    return np.dtype(_STORAGES[kind])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """Stands for _rebuild_tensor and _rebuild_tensor_v2 (storage, offset, shape, strides, grad, hooks, metadata).

    NumPy checks that they stay within the storage.
    """
    numbers = (offset, *strides) if isinstance(strides, tuple | list) and len(strides) <= MOST_DIMENSIONS else (-1,)
    fits = all(isinstance(number, int) and 0 <= number < 1 << 62 for number in numbers)
    if not isinstance(storage, np.ndarray) or not fits:
        raise JaxlmError("a tensor of its pickle is not made of a storage, an offset, a shape and strides")
    if any(isinstance(told, dict) and (told.get("neg") or told.get("conj")) for told in rest[2:]):
        what = "a tensor of its pickle is a view that negates or conjugates what is stored"
        raise JaxlmError(f"{what}; save a contiguous copy of it")
    start, *steps = (number * storage.itemsize for number in numbers)
    with damage(f"tensor in a storage of {storage.size:,} elements"):
        found = np.ndarray(shape, storage.dtype, storage.view(np.uint8), start, steps)
    if found.size > storage.size:  # by strides of 0
        raise JaxlmError(f"a tensor claims {found.size:,} elements of a storage which holds {storage.size:,}")
    return found


def _parameter(tensor: Any, *_: Any) -> np.ndarray:
    """Stands for Parameter, Variable and what rebuilds them: the tensor that is given first."""
    if not isinstance(tensor, np.ndarray):
        raise JaxlmError("a parameter of its pickle is not made of a tensor")
    return tensor


def _mapping(given: Any = None, *_: Any) -> dict[str, Any]:
    """Stands for dict, OrderedDict and Counter, of nothing, of a dict or of a list of pairs.

    The list is emptied, so that a pickle which gives it again causes no more work.
    """
    if isinstance(given, dict):
        return given
    pairs: list[Any] = [] if given is None else given
    items = [item for key, value in pairs for item in (key, value)]
    pairs.clear()
    return _with_entries({}, items)


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
    return Instance(Global("builtins.object"))


def _each(packages: str, names: str) -> Iterable[str]:
    return (f"{package}.{name}" for package in packages.split() for name in names.split())


_LIBRARY = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "popen2", "cPickle", "cStringIO", "imp"}
# This file's function for each name that the pickle of a PyTorch model may call.
_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_each("builtins", "int long float complex bool str unicode bytes bytearray"), _inert),
    **dict.fromkeys(_each("builtins", "slice range xrange object"), _inert),
    **dict.fromkeys(_each("datetime", "date datetime time timedelta"), _inert),
    **dict.fromkeys(_each("pathlib", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath"), _inert),
    **dict.fromkeys(["argparse.Namespace", "types.SimpleNamespace", "_codecs.encode"], _inert),
    **dict.fromkeys(_each("torch", "device _utils._get_dtype torch_version.TorchVersion"), _inert),
    "torch.nn.backends.thnn._get_thnn_function_backend": _inert,
    **dict.fromkeys(_each("numpy", "dtype ndarray"), _inert),
    **dict.fromkeys(_each("numpy.core numpy._core", "multiarray.scalar multiarray._reconstruct"), _inert),
    **dict.fromkeys(_each("numpy.core numpy._core", "numeric._frombuffer"), _inert),
    **dict.fromkeys(_each("builtins", "list tuple set frozenset"), _sequence),
    **dict.fromkeys(["builtins.dict", "torch.nn.modules.container.OrderedDict"], _mapping),
    **dict.fromkeys(_each("collections", "OrderedDict Counter"), _mapping),
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
    "torch.Size": _sequence,
    "builtins.getattr": _attribute,
    **dict.fromkeys(_each("torch._utils", "_rebuild_tensor _rebuild_tensor_v2"), _tensor),
    **dict.fromkeys(_each("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state"), _parameter),
    **dict.fromkeys(_each("torch.nn.parameter", "Parameter Buffer"), _parameter),
    "torch.autograd.variable.Variable": _parameter,
}
