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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import quote

MOST_STEPS = (
    2_000_000  # instructions of a pickle; a module takes thousands, a vocabulary beside it 6 a word
)
MOST_NAME = 1000  # letters of a class's name or of a key
MOST_ARGUMENTS = 16
MOST_DIMENSIONS = 16
_REFUSED = {
    "INST",
    "OBJ",
    "PERSID",
    "EXT1",
    "EXT2",
    "EXT4",
}  # of old classes, and of what this process registered


class Global(str):
    """The name of a class or function. It is never imported."""


@dataclass(eq=False)
class Instance:
    """An object that is not built: the name of its class, and its state; the items of a list or dict are dropped."""

    kind: str = "builtins.object"
    state: dict[str, Any] = field(default_factory=dict)


def unpickle(stream: BinaryIO, storage: Callable[[Any], np.ndarray]) -> Any:
    """The value of one pickle, read up to its end; `storage` gives the elements [n] of a persistent id.

    The stream must be in memory, so that a length that the pickle claims allocates nothing. Sets are lists in the
    value, tensors are arrays, and beside Python's own it has `Global` and `Instance`. Raises JaxlmError where the
    pickle is too long, or asks for something that could run code, which is named; and anything where it is damaged.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lies below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step == MOST_STEPS:
            raise JaxlmError(
                f"its pickle takes over {MOST_STEPS:,} steps, more than any model needs"
            )
        if opcode.name in _REFUSED or opcode.proto > 4:
            what = f"{opcode.name} {'' if argument is None else quote(argument)}".rstrip()
            raise JaxlmError(
                f"its pickle has the instruction {what}, which no model needs; nothing was run"
            )
        items = []
        operands = opcode.stack_before
        if pickletools.markobject in operands:
            items = stack
            stack = below.pop()
            operands = operands[:-2]
        match opcode.name, [stack.pop() for _ in operands][::-1]:
            case ("PROTO" | "FRAME" | "POP" | "POP_MARK", _):
                continue
            case ("MARK", _):
                below.append(stack)
                stack = []
                continue
            case ("PUT" | "BINPUT" | "LONG_BINPUT", _) if argument in range(MOST_STEPS):
                memo[argument] = stack[-1]
                continue
            case ("STOP", [value]):
                return value
            case ("MEMOIZE", [value]):
                memo[len(memo)] = value
            case ("GET" | "BINGET" | "LONG_BINGET", _):
                value = memo[argument]
            case ("NONE" | "NEWTRUE" | "NEWFALSE", _):
                value = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name]
            case ("EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", values):
                value = (*values, *items)
            case ("EMPTY_LIST" | "EMPTY_SET" | "LIST" | "FROZENSET", _):
                value = items
            case ("EMPTY_DICT" | "DICT", _):
                value = _with_entries({}, items)
            case ("APPEND" | "APPENDS" | "ADDITEMS", [list() as value, *one]):
                value += one or items
            case ("SETITEM" | "SETITEMS", [dict() as value, *pair]):
                _with_entries(value, pair or items)
            case (
                "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS",
                [Instance() as value, *_],
            ):
                pass
            case ("GLOBAL", _):
                value = _named(*argument.split(" ", 1))
            case ("STACK_GLOBAL", [str() as module, str() as name]):
                value = _named(module, name)
            case ("REDUCE", [function, arguments]):
                value = _call(function, arguments)
            case ("NEWOBJ" | "NEWOBJ_EX", [kind, arguments, *_]):
                inert = (
                    isinstance(kind, Global) and kind not in _CALLS
                )  # (a tensor's class is ours to make)
                value = Instance(kind) if inert else _call(kind, arguments)
            case ("BUILD", [Instance() as value, state]):
                value.state = state if isinstance(state, dict) else {}
            case ("BUILD", [value, _]):  # (the state of anything else is ignored)
                if isinstance(value, Global):
                    raise JaxlmError(f"its pickle changes {quote(value)}; nothing was run")
            case ("BINPERSID", [identifier]):
                value = storage(identifier)
            case (_, []) if argument is not None and opcode.stack_after:
                value = argument  # a number or a string
            case _:
                raise ValueError(f"{opcode.name} of something else than it takes")
        stack.append(value)


# Python's own modules, of Python 2 too.
_LIBRARY = sys.stdlib_module_names | {
    "copy_reg",
    "commands",
    "popen2",
    "cPickle",
    "cStringIO",
    "imp",
}


def _named(module: str, name: str) -> Global:
    if len(module) + len(name) > MOST_NAME:
        raise JaxlmError(f"its pickle is damaged: the name of a class has over {MOST_NAME} letters")
    found = Global(f"{'builtins' if module == '__builtin__' else module}.{name}")
    if found.split(".")[0] in _LIBRARY and found not in _CALLS:
        raise JaxlmError(
            f"it asks for {quote(found)}, which is no part of a model and could run code; nothing was run"
        )
    return found


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function not in _CALLS:
        # (The repr of another value may be endless.)
        what = quote(function) if isinstance(function, Global) else f"a {type(function).__name__}"
        raise JaxlmError(
            f"it asks to call {what}, which is no part of a model that can be imported; nothing was run"
        )
    if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
        raise JaxlmError(
            f"its pickle is damaged: expected a tuple of at most {MOST_ARGUMENTS} arguments of a call"
        )
    return _CALLS[function](*arguments)


def _with_entries(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """The dict with keys and values in turn, without those whose key is anything but a short string."""
    pairs = zip(items[::2], items[1::2], strict=True)
    target.update(
        (key, value) for key, value in pairs if isinstance(key, str) and len(key) <= MOST_NAME
    )
    return target


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """Stands for _rebuild_tensor and _rebuild_tensor_v2 (storage, offset, shape, strides, grad, hooks, metadata).

    They are checked here to stay within the storage, since NumPy's own check is of numbers that wrap around, and passes
    over an empty storage; `check_sharing` checks what strides of 0 claim.
    """
    few = all(
        isinstance(sizes, tuple | list) and len(sizes) <= MOST_DIMENSIONS
        for sizes in (shape, strides)
    )
    numbers: tuple[Any, ...] = (
        (offset, *shape, *strides) if few and len(shape) == len(strides) else (None,)
    )
    whole = all(isinstance(number, int) and 0 <= number < 1 << 62 for number in numbers)
    if not isinstance(storage, np.ndarray) or not whole:
        raise JaxlmError(
            "a tensor of its pickle is not made of a storage, an offset, a shape and strides"
        )
    if any(isinstance(told, dict) and (told.get("neg") or told.get("conj")) for told in rest[2:]):
        what = "a tensor of its pickle is a view that negates or conjugates what is stored"
        raise JaxlmError(f"{what}; save it after resolve_neg() and resolve_conj()")
    last = offset + sum(
        (extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)
    )
    if 0 not in shape and last >= storage.size:
        raise JaxlmError(
            f"a tensor in a storage of {storage.size:,} elements is damaged: it ends at element {last:,}"
        )
    start, *steps = (number * storage.itemsize for number in (offset, *strides))
    return np.ndarray(shape, storage.dtype, storage.view(np.uint8), start, steps)


def _mapping(given: Any = None, *_: Any) -> dict[str, Any]:
    """Stands for dict, OrderedDict and Counter, of nothing, of a dict or of a list of pairs."""
    if not isinstance(given, list):
        if given is None:
            return {}
        return given
    items = [item for key, value in given for item in (key, value)]
    given.clear()  # so that a pickle which gives it again causes no more work
    return _with_entries({}, items)


def _attribute(target: Any = None, *_: Any) -> Instance:
    """Stands for getattr, as which an object's own method is kept (awd-lstm-lm): it becomes a name and nothing else."""
    if not isinstance(target, Instance):
        found = quote(target) if isinstance(target, Global) else "no object of a model"
        raise JaxlmError(f"it asks for getattr of {found}, which could run code; nothing was run")
    return Instance()


_GIVEN = """
torch.Size torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state
torch.nn.parameter.Parameter torch.nn.parameter.Buffer torch.autograd.variable.Variable
"""
_INERT = """
builtins.int builtins.long builtins.float builtins.complex builtins.bool builtins.str builtins.unicode builtins.bytes
builtins.bytearray builtins.slice builtins.range builtins.xrange builtins.object
builtins.list builtins.tuple builtins.set builtins.frozenset collections.deque collections.defaultdict
argparse.Namespace types.SimpleNamespace _codecs.encode
datetime.date datetime.datetime datetime.time datetime.timedelta
pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
torch.device torch._utils._get_dtype torch.torch_version.TorchVersion
torch.nn.backends.thnn._get_thnn_function_backend numpy.dtype numpy.ndarray
numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.core.numeric._frombuffer
numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer
"""
# This file's function for each name that the pickle of a PyTorch model may call.
_CALLS: dict[str, Callable[..., Any]] = {
    name: function
    for function, names in (
        (lambda *_: Instance(), _INERT),  # calls whose results are never used
        (
            _mapping,
            "builtins.dict collections.OrderedDict collections.Counter torch.nn.modules.container.OrderedDict",
        ),
        (_attribute, "builtins.getattr"),
        (_tensor, "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2"),
        (lambda given, *_: given, _GIVEN),  # a parameter is its tensor, and a size its tuple
    )
    for name in names.split()
}
