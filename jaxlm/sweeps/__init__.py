"""Sweeps. Optuna, which nothing else needs, is imported at its first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxlm.errors import JaxlmError

if TYPE_CHECKING:
    import optuna as optuna
else:

    class _Optuna:
        def __getattr__(self, name: str) -> Any:
            try:
                return getattr(import_module("optuna"), name)
            except ImportError as error:
                raise JaxlmError(
                    f"a sweep needs Optuna, which cannot be imported ({error}): pip install 'jaxlm[sweep]'"
                ) from None

    optuna = _Optuna()
