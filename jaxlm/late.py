"""JAX and optax, imported at their first use, so that `jaxlm --help`, which reads every kind's fields, is instant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ("jax", "jnp", "optax")


class _Late:
    """Stands for a module."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = _Late("jax"), _Late("jax.numpy"), _Late("optax")
