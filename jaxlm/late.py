"""JAX, optax and Optuna, imported at their first use, so that `jaxlm --help`, which reads all fields, is instant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxlm.errors import JaxlmError

__all__ = ("jax", "jnp", "optax", "optuna")


class _Late:
    """Stands for a module; `extra` names the extra of jaxlm that installs it, if jaxlm alone does not."""

    def __init__(self, module: str, extra: str = ""):
        self._module = module
        self._extra = extra

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(import_module(self._module), name)
        except ImportError as error:
            if not self._extra:
                raise
            why = f"a {self._extra} needs {self._module}, which cannot be imported ({error})"
            raise JaxlmError(f"{why}: pip install 'jaxlm[{self._extra}]'") from None


if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
    import optuna
else:
    jax = _Late("jax")
    jnp = _Late("jax.numpy")
    optax = _Late("optax")
    optuna = _Late("optuna", "sweep")
