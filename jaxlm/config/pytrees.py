"""Registers all parts of a recipe but its model (`models/stack.py` does), and the protocols, as pytrees.

The packages that trace them import this file. (It is apart from `config.py`, so that help imports no JAX.)
"""

from dataclasses import fields

import jax

from jaxlm.config.config import Recipe
from jaxlm.config.optimizers import OPTIMIZERS
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.config.schedules import SCHEDULES
from jaxlm.pytrees import register

for _kinds in (OPTIMIZERS, SCHEDULES, PROTOCOLS):
    for _kind in _kinds.values():
        register(_kind)
jax.tree_util.register_dataclass(Recipe, [item.name for item in fields(Recipe)], [])
