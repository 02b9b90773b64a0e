"""Kinds as pytrees: their numbers are leaves, all else is static."""

from typing import Any

import jax

from jaxlm.fields import specs


def register(kind: type) -> None:
    """Makes the numbers of a kind leaves, and its class and all else static.

    (`jax.tree_util.register_dataclass` will not do: of two classes with the same fields it makes equal trees, and
    `jax.jit` may then take one's program for the other's, wherever their hashes happen to meet.)
    """
    numbers = [name for name, spec in specs(kind).items() if spec.type is float]
    static = [name for name in specs(kind) if name not in numbers]

    def flatten(section: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(section, name) for name in numbers], (kind, *(getattr(section, name) for name in static))

    def unflatten(rest: tuple[Any, ...], leaves: Any) -> Any:
        return kind(**dict(zip(static, rest[1:], strict=True)), **dict(zip(numbers, leaves, strict=True)))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
