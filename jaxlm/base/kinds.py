"""Tables of kinds, to which a class adds itself where it is defined.

`@MODELS.kind("lstm")` stands above the class `LSTM`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, dataclass_transform

import jax

from jaxlm.base.fields import Section, specs

Base = TypeVar("Base", bound=Section)
Kind = TypeVar("Kind", bound=type[Section])


class Kinds(dict[str, type[Base]], Generic[Base]):
    """The kinds of one sort (models, optimisers, ...) by name, in the order of their definition.

    Attributes:
        of_several: Makes the kind of several names with commas between; None: there are no such
            kinds.
    """

    of_several: Callable[[str], type[Base]] | None = None

    def __missing__(self, name: str) -> type[Base]:
        if self.of_several and all(kind_name in self for kind_name in name.split(",")):
            return self.of_several(name)
        raise KeyError(name)

    @dataclass_transform(frozen_default=True)
    def kind(self, name: str) -> Callable[[Kind], Kind]:
        """Adds the class below it to the table, as a frozen dataclass and a pytree.

        The numbers of a kind are the leaves of its pytree, so that changing one compiles nothing.
        Its class and all other fields are static.

        Args:
            name: What `--model`, `Config.replace(model=...)` and config.json call the kind.

        Returns:
            A decorator, which returns the class.
        """

        def add(cls: Kind) -> Kind:
            kind: Any = dataclass(frozen=True)(cls)
            kind.kind_name = name
            register_pytree(kind)
            self[name] = kind
            return kind

        return add


def register_pytree(kind: type) -> None:
    """Makes a dataclass a pytree whose leaves are its numbers.

    `jax.tree_util.register_dataclass` will not do: two classes with the same fields have equal
    trees there, and `jax.jit` may run the program of one for the other, wherever their hashes
    collide. Here the class is static data.
    """
    numbers = [name for name, spec in specs(kind).items() if spec.type is float]
    static = [name for name in specs(kind) if name not in numbers]

    def flatten(section):
        leaves = [getattr(section, name) for name in numbers]
        return leaves, (kind, *(getattr(section, name) for name in static))

    def unflatten(data, leaves):
        # No field is checked here: JAX makes trees of any leaves.
        values = dict(zip(static, data[1:], strict=True))
        return kind(**values, **dict(zip(numbers, leaves, strict=True)))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
