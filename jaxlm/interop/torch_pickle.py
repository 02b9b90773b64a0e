"""Pickles of PyTorch's files, read by an `Unpickler` that never imports or calls what they name.

- A class or function becomes its name (`Global`), an object the name of its class and its state
  (`Instance`).
- A call is answered by this file's function of that name (`_CALLS`). Any other call is refused, and
  so is every name of Python's standard library that has no such function.
- The instructions are scanned and counted first. No instruction does more work than the file has
  bytes for.
- Dicts keep only entries whose keys are short strings: hashing other values may take forever.
"""

import io
import pickle
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.interop.foreign import quote

MOST_STEPS = 2_000_000  # instructions of a pickle: a model has thousands, a vocabulary 6 a word
MOST_NAME = 1000  # letters of a class's name or of a key
MOST_ARGUMENTS = 16
MOST_DIMENSIONS = 16
_REFUSED = ("PERSID", "EXT1", "EXT2", "EXT4")  # EXT: what this process has registered in copyreg


class Global(str):
    """The name of a class or function. It is never imported."""


@dataclass(eq=False)
class Instance:
    """An object that is not built. The items of a list or dict of its own class are dropped.

    Attributes:
        kind: The name of its class.
        state: Its attributes.
    """

    kind: str = "builtins.object"
    state: dict[str, Any] = field(default_factory=dict)

    def append(self, _: Any) -> None:
        """Drops an item."""


def unpickle(stream: io.BytesIO, storage: Callable[[Any], np.ndarray]) -> Any:
    """Reads one pickle from the place of a stream.

    Args:
        stream: The bytes, in memory, so that a length that the pickle claims allocates nothing.
        storage: Gives the elements [n] of a persistent id.

    Returns:
        The value, of Python's own types, arrays (tensors), `Global` and `Instance`. Sets are lists.

    Raises:
        JaxlmError: The pickle is too long, or asks for something that could run code, which the
            error names.
        Exception: The pickle is damaged.
    """
    start = stream.tell()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step == MOST_STEPS:
            raise JaxlmError(
                f"its pickle takes over {MOST_STEPS:,} steps, more than any model needs"
            )
        if opcode.name in _REFUSED or opcode.proto > 4:
            raise JaxlmError(
                f"its pickle has the instruction {opcode.name}, which no model needs; "
                "nothing was run"
            )
        if opcode.name.endswith("PUT") and argument not in range(MOST_STEPS):
            raise ValueError("a place in the memo beyond the number of instructions")
    stream.seek(start)
    return _InertUnpickler(stream, storage).load()


class _InertUnpickler(pickle._Unpickler):
    """Python's unpickler in Python: that in C hashes whatever key a dict is given."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO, storage: Callable[[Any], np.ndarray]):
        super().__init__(stream, encoding="latin-1")
        self.storage = storage

    def persistent_load(self, pid: Any) -> np.ndarray:
        return self.storage(pid)

    def find_class(self, module: str, name: str) -> Global:
        if len(module) + len(name) > MOST_NAME:
            raise JaxlmError(
                f"its pickle is damaged: the name of a class has over {MOST_NAME} letters"
            )
        if module == "__builtin__":  # as Python 2 calls it
            module = "builtins"
        path = Global(f"{module}.{name}")
        if path.split(".")[0] in _LIBRARY and path not in _CALLS:
            raise JaxlmError(
                f"it asks for {quote(path)}, which is no part of a model and could run code; "
                "nothing was run"
            )
        return path

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _instantiate(self, klass: Any, args: list[Any]) -> None:  # of the instructions INST and OBJ
        self.append(_call(klass, tuple(args)))

    def new_object(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack[-1]
        if isinstance(kind, Global) and kind not in _CALLS:
            self.stack[-1] = Instance(kind)
        else:
            self.stack[-1] = _call(kind, arguments)

    def new_object_with_keywords(self) -> None:
        self.stack.pop()
        self.new_object()

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Global):
            raise JaxlmError(f"its pickle changes {quote(target)}; nothing was run")
        if isinstance(target, Instance):
            target.state = state if isinstance(state, dict) else {}

    def new_dict(self) -> None:
        items = self.pop_mark()
        self.append(_with_entries({}, items))

    def set_item(self) -> None:
        pair = self.stack[-2:]
        del self.stack[-2:]
        _with_entries(self.stack[-1], pair)

    def set_items(self) -> None:
        items = self.pop_mark()
        _with_entries(self.stack[-1], items)

    dispatch = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: reduce,
        pickle.NEWOBJ[0]: new_object,
        pickle.NEWOBJ_EX[0]: new_object_with_keywords,
        pickle.BUILD[0]: build,
        pickle.DICT[0]: new_dict,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.FROZENSET[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
        pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
    }


# Python's own modules, of Python 2 too.
_LIBRARY = sys.stdlib_module_names | {
    "copy_reg",
    "commands",
    "popen2",
    "cPickle",
    "cStringIO",
    "imp",
}


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global):
        # The repr of any other value may be endless.
        raise JaxlmError(
            f"it asks to call a {type(function).__name__}, which no model needs; nothing was run"
        )
    if function not in _CALLS:
        raise JaxlmError(
            f"it asks to call {quote(function)}, which is no part of a model that can be imported; "
            "nothing was run"
        )
    if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
        raise JaxlmError(
            "its pickle is damaged: expected a tuple of at most "
            f"{MOST_ARGUMENTS} arguments of a call"
        )
    return _CALLS[function](*arguments)


def _with_entries(target: Any, items: list[Any]) -> Any:
    """A dict with keys and values in turn, but for keys that are no short strings."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) and len(key) <= MOST_NAME:
                target[key] = value
    elif not isinstance(target, Instance):
        raise ValueError("an entry of something that is no dict")
    return target


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    *rest: Any,
) -> np.ndarray:
    """Stands for _rebuild_tensor and _rebuild_tensor_v2, whose rest is (grad, hooks, metadata).

    It checks here that the tensor stays within its storage: NumPy's own check overflows, and
    ignores an empty storage. `check_sharing` checks what strides of 0 claim.
    """
    sizes = [offset]
    for dimensions in (shape, strides):
        if not isinstance(dimensions, tuple | list) or len(dimensions) > MOST_DIMENSIONS:
            sizes.append(None)
        else:
            sizes += dimensions
    are_sizes = all(isinstance(size, int) and 0 <= size < 1 << 62 for size in sizes)
    if not isinstance(storage, np.ndarray) or not are_sizes or len(shape) != len(strides):
        raise JaxlmError(
            "a tensor of its pickle is not made of a storage, an offset, a shape and strides"
        )
    for metadata in rest[2:]:
        if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
            raise JaxlmError(
                "a tensor of its pickle is a view that negates or conjugates what is stored; "
                "save it after resolve_neg() and resolve_conj()"
            )
    last = offset + sum(
        (extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)
    )
    if 0 not in shape and last >= storage.size:
        raise JaxlmError(
            f"a tensor in a storage of {storage.size:,} elements is damaged: "
            f"it ends at element {last:,}"
        )
    start, *steps = (size * storage.itemsize for size in (offset, *strides))
    return np.ndarray(shape, storage.dtype, storage.view(np.uint8), start, steps)


def _mapping(content: Any = None, *_: Any) -> Any:
    """Stands for dict, OrderedDict and Counter, of nothing, of a dict or of a list of pairs."""
    if content is None:
        return {}
    if not isinstance(content, list):
        return content
    items = [item for key, value in content for item in (key, value)]
    content.clear()  # a pickle that gives the list again causes no more work
    return _with_entries({}, items)


def _attribute(target: Any = None, *_: Any) -> Instance:
    """Stands for getattr, by which awd-lstm-lm's pickles name a method of an object."""
    if not isinstance(target, Instance):
        owner = quote(target) if isinstance(target, Global) else "no object of a model"
        raise JaxlmError(f"it asks for getattr of {owner}, which could run code; nothing was run")
    return Instance()


def _unused(*_: Any) -> Instance:
    """Stands for calls whose results a model does not need."""
    return Instance()


def _first_argument(argument: Any, *_: Any) -> Any:
    """Stands for what holds its first argument: a parameter its tensor, a size its tuple."""
    return argument


_NAMES = {
    _mapping: """
builtins.dict collections.OrderedDict collections.Counter torch.nn.modules.container.OrderedDict
""",
    _attribute: "builtins.getattr",
    _tensor: "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2",
    _first_argument: """
torch.Size torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state
torch.nn.parameter.Parameter torch.nn.parameter.Buffer torch.autograd.variable.Variable
""",
    _unused: """
builtins.int builtins.long builtins.float builtins.complex builtins.bool builtins.str
builtins.unicode builtins.bytes builtins.bytearray builtins.slice builtins.range builtins.xrange
builtins.object builtins.list builtins.tuple builtins.set builtins.frozenset collections.deque
collections.defaultdict argparse.Namespace types.SimpleNamespace _codecs.encode datetime.date
datetime.datetime datetime.time datetime.timedelta pathlib.Path pathlib.PosixPath
pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath torch.device
torch._utils._get_dtype torch.torch_version.TorchVersion
torch.nn.backends.thnn._get_thnn_function_backend numpy.dtype numpy.ndarray
numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.core.numeric._frombuffer
numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer
""",
}
# This file's function for each name that the pickle of a PyTorch model may call.
_CALLS = {name: function for function, names in _NAMES.items() for name in names.split()}
