"""Pickles of strangers, interpreted without running anything.

Python's own unpickler is a small machine whose instructions can call any function. This one has the same
instructions and calls nothing that a pickle names: numbers, strings, lists, tuples and dicts are built; a class or a
function is only its name (`Global`); an object is its class's name and its state (`Instance`); a call is done by a
function of ours where `calls` has one for the name, and is refused by name where it has none. Names of Python's
standard library are refused on sight, but for a few that are data.

Work and memory are bounded by the length of the pickle: an instruction adds at most what its own bytes hold, and
whatever copies is charged to the same budget.
"""

import pickletools
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import shown

MOST_STEPS = 2_000_000  # instructions of a pickle; a module takes thousands, a vocabulary beside it 6 a word
MOST_NAME = 1000  # letters of a class's name or of a key, which are copied and searched
MOST_MEMO = 1 << 24  # the highest place in the memo

# Parts of Python's standard library that a pickle may name: all of them are data.
_HARMLESS = {
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "builtins": {
        "object",
        "dict",
        "list",
        "tuple",
        "set",
        "frozenset",
        "int",
        "long",
        "float",
        "complex",
        "bool",
        "str",
        "unicode",
        "bytes",
        "bytearray",
        "slice",
        "range",
        "xrange",
        "getattr",
    },
    "copyreg": {"_reconstructor"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "_codecs": {"encode"},
    "datetime": {"date", "datetime", "time", "timedelta"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_LIBRARY = sys.stdlib_module_names | {*_PYTHON_2, "commands", "popen2", "cPickle", "cStringIO", "imp", "urllib2", "pip"}


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An object of a class that is not built: the class's name and the state that the pickle gives it."""

    kind: Global
    state: dict[str, Any] = field(default_factory=dict)
    built: bool = False


Spend = Callable[[int], None]  # charges work to the pickle's budget
Call = Callable[[tuple[Any, ...], Spend], Any]  # what stands for a call: (arguments, budget) -> value


def interpret(stream: BinaryIO, calls: Mapping[Global, Call], storage: Callable[[Any], Any]) -> Any:
    """The value of one pickle, read up to its end; the stream is left just behind it.

    Args:
        stream: where the pickle begins; in memory, so that a length that it claims allocates nothing.
        calls: the functions that stand for calls, by the name that a pickle calls.
        storage: gives the value of a persistent id.
    Returns:
        None, numbers, strings, bytes, lists, tuples, dicts (entries with other keys than names are left out),
        `Global`, `Instance`, and what `calls` and `storage` give.
    Raises:
        JaxlmError: the pickle is damaged, too long, or asks for something that could run code, which is named.
    """
    machine = _Machine(calls, storage)
    instructions = pickletools.genops(stream)
    while True:
        try:
            opcode, argument, _ = next(instructions)
        except StopIteration:
            return machine.result()
        except (ValueError, AssertionError, OverflowError, struct.error) as error:
            raise JaxlmError(f"its pickle is damaged or cut short ({shown(error)})") from None
        machine.spend(1)
        action = _ACTIONS.get(opcode.name)
        if action is None:
            raise JaxlmError(f"its pickle has the instruction {opcode.name}, which no model needs; nothing was run")
        action(machine, argument)


class _Machine:
    """The stack, the marks on it, and the memo."""

    def __init__(self, calls: Mapping[Global, Call], storage: Callable[[Any], Any]):
        self.calls, self.storage = calls, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def spend(self, steps: int) -> None:
        """Counts work. Raises JaxlmError where a pickle asks for too much of it."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise JaxlmError(f"its pickle takes over {MOST_STEPS:,} steps, more than any model needs")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise JaxlmError("its pickle is damaged: it takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        self.push(value := self.pop())
        return value

    def mark(self, _: Any = None) -> None:
        self.marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        """Takes what lies above the last mark."""
        if not self.marks:
            raise JaxlmError("its pickle is damaged: it looks for a mark, and there is none")
        place = self.marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items

    def result(self) -> Any:
        return self.pop()

    def put(self, place: Any) -> None:
        place = len(self.memo) if place is None else place
        if not 0 <= place < MOST_MEMO:
            raise JaxlmError("its pickle is damaged: a place in the memo is out of range")
        self.memo[place] = self.top()

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise JaxlmError("its pickle is damaged: it asks the memo for what was never put there")
        self.push(self.memo[place])

    def drop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):  # as in Python's own: POP may take a mark
            self.marks.pop()
        else:
            self.pop()

    def drop_marked(self, _: Any) -> None:
        self.marked()

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Instance):  # an object that is a list keeps only its state
            raise JaxlmError(f"its pickle is damaged: it appends to {_noun(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2 or not isinstance(target, dict | Instance):
            raise JaxlmError(f"its pickle is damaged: it sets items of {_noun(target)}")
        if isinstance(target, dict):
            target.update(_entries(zip(items[::2], items[1::2], strict=True)))

    def new_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise JaxlmError("its pickle is damaged: the name of a class is not a string")
        if len(module) + len(name) > MOST_NAME:
            raise JaxlmError(f"its pickle is damaged: the name of a class has over {MOST_NAME} letters")
        found = Global(_PYTHON_2.get(module, module), name)
        if module.split(".")[0] in _LIBRARY and name not in _HARMLESS.get(found.module, ()):
            raise JaxlmError(
                f"it asks for {shown(f'{module}.{name}')}, which is no part of a model and could run "
                "code; nothing was run"
            )
        self.push(found)

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise JaxlmError("its pickle is damaged: the arguments of a call are not a tuple")
        if not isinstance(function, Global):
            raise JaxlmError(f"its pickle calls {_noun(function)}; nothing was run")
        if function not in self.calls:
            raise JaxlmError(
                f"it asks to call {shown(function)}, which is no part of a model that can be imported; nothing was run"
            )
        self.push(self.calls[function](arguments, self.spend))

    def reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new_object(self, arguments: Any, kind: Any) -> None:
        """An object of a class, made without calling the class (NEWOBJ). A tensor's class is ours to make."""
        if not isinstance(kind, Global):
            raise JaxlmError(f"its pickle makes an object of {_noun(kind)}, which is not a class; nothing was run")
        if kind in self.calls:
            self.call(kind, arguments)
        else:
            self.push(Instance(kind))

    def newobj(self, _: Any) -> None:
        arguments = self.pop()
        self.new_object(arguments, self.pop())

    def newobj_ex(self, _: Any) -> None:
        self.pop()  # keyword arguments
        self.newobj(None)

    def inst(self, argument: str) -> None:
        arguments = tuple(self.marked())
        self.new_global(*_pair(argument))
        self.call(self.pop(), arguments)

    def obj(self, _: Any) -> None:
        function, *arguments = self.marked() or [None]
        self.call(function, tuple(arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Global):
            raise JaxlmError(f"its pickle changes {shown(target)}; nothing was run")
        if isinstance(target, Instance):
            if target.built:
                raise JaxlmError(f"its pickle is damaged: it builds one object of {shown(target.kind)} twice")
            parts = state if isinstance(state, tuple) else (state,)  # a tuple: (attributes, slots)
            target.state = next((part for part in parts[:2] if isinstance(part, dict)), {})
            target.built = True

    def persistent(self, _: Any) -> None:
        self.push(self.storage(self.pop()))

    def dictionary(self, _: Any) -> None:
        items = self.marked()
        self.push({})
        self.set_items(items)

    def stack_global(self, _: Any) -> None:
        name = self.pop()
        self.new_global(self.pop(), name)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])


def _entries(pairs: Any) -> dict[str, Any]:
    """Entries whose keys are names: others are never looked up, and hashing a stranger's values can take forever."""
    return {key: value for key, value in pairs if isinstance(key, str) and len(key) <= MOST_NAME}


def _pair(argument: str) -> tuple[str, str]:
    module, _, name = argument.partition(" ")
    return module, name


def _noun(value: Any) -> str:
    if isinstance(value, Instance):
        return f"an object of {shown(value.kind)}"
    return shown(value) if isinstance(value, Global) else f"a {type(value).__name__}"


def mapping(arguments: tuple[Any, ...], spend: Spend) -> dict[str, Any]:
    """Stands for dict, OrderedDict and Counter: of nothing, of a dict or of a list of pairs."""
    if not arguments:
        return {}
    given = arguments[0]
    if len(arguments) > 1 or not isinstance(given, dict | list | tuple):
        raise JaxlmError("its pickle is damaged: a dict is not made of pairs")
    spend(len(given))
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise JaxlmError("its pickle is damaged: a dict is not made of pairs")
    return _entries(pairs)


def inert(name: Global) -> Call:
    """Stands for a call whose result is never used: an object of that name."""
    return lambda _, __: Instance(name)


def _attribute(arguments: tuple[Any, ...], _: Spend) -> Instance:
    """Stands for getattr, as which an object's own method is kept (awd-lstm-lm): it becomes a name and nothing else."""
    if len(arguments) != 2 or not isinstance(arguments[0], Instance) or not isinstance(arguments[1], str):
        found = shown(arguments[0]) if arguments and isinstance(arguments[0], Global) else "no object of a model"
        raise JaxlmError(f"it asks for getattr of {found}, which could run code; nothing was run")
    return Instance(Global("builtins", "getattr"))


def _reconstructor(arguments: tuple[Any, ...], _: Spend) -> Instance:
    """Stands for copyreg._reconstructor, with which the oldest protocols make objects: (class, base, base's state)."""
    if not arguments or not isinstance(arguments[0], Global):
        raise JaxlmError("its pickle is damaged: an object without a class")
    return Instance(arguments[0])


def _sequence(arguments: tuple[Any, ...], _: Spend) -> Any:
    """Stands for list, tuple and set: the given sequence itself, since nothing here changes it."""
    return arguments[0] if arguments and isinstance(arguments[0], list | tuple) else []


# Calls of Python's own types that data need.
PYTHON_CALLS: dict[Global, Call] = {
    **{Global("builtins", name): _sequence for name in ("list", "tuple", "set", "frozenset")},
    **{
        Global("builtins", name): inert(Global("builtins", name))
        for name in (
            "int",
            "long",
            "float",
            "complex",
            "bool",
            "str",
            "unicode",
            "bytes",
            "bytearray",
            "slice",
            "range",
            "xrange",
            "object",
        )
    },
    **{
        Global(module, name): inert(Global(module, name))
        for module in ("datetime", "pathlib", "_codecs")
        for name in _HARMLESS[module]
    },
    Global("builtins", "dict"): mapping,
    Global("collections", "OrderedDict"): mapping,
    Global("collections", "Counter"): mapping,
    Global("collections", "defaultdict"): lambda _, __: {},
    Global("collections", "deque"): lambda _, __: [],
    Global("builtins", "getattr"): _attribute,
    Global("copyreg", "_reconstructor"): _reconstructor,
}

_LITERALS = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
)

_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.marked())),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.marked())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": _Machine.dictionary,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": lambda machine, _: machine.push(machine.top()),
    "GLOBAL": lambda machine, argument: machine.new_global(*_pair(argument)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.newobj,
    "NEWOBJ_EX": _Machine.newobj_ex,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
