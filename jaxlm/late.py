"""Optuna, imported at its first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxlm.errors import JaxlmError

__all__ = ("optuna",)


class _Late:
    """Stands for Optuna, which an extra of jaxlm installs."""

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(import_module("optuna"), name)
        except ImportError as error:
            why = f"a sweep needs optuna, which cannot be imported ({error})"
            raise JaxlmError(f"{why}: pip install 'jaxlm[sweep]'") from None


if TYPE_CHECKING:
    import optuna
else:
    optuna = _Late()
