"""Registers the parts of a recipe, and the protocols, as pytrees; `models/stack.py` registers the models.

The packages that trace them import this file. (It is apart from `config.py`, so that help imports no JAX.)
"""

from dataclasses import fields

import jax

from jaxlm.config.config import KINDS, Recipe
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.models import stack  # noqa: F401 (registers the models)
from jaxlm.models.kinds import MODELS
from jaxlm.pytrees import register

_kinds = [kind for kinds in (*KINDS.values(), PROTOCOLS) for kind in kinds.values()]
for _kind in _kinds:
    if _kind not in MODELS.values():
        register(_kind)
jax.tree_util.register_dataclass(Recipe, [item.name for item in fields(Recipe)], [])
