"""The step. All numbers of a recipe and of a protocol are leaves of pytrees once this package is imported."""

import jax

from jaxlm.config.config import KINDS, Recipe
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.models.kinds import register

for _kinds in (*KINDS.values(), PROTOCOLS):
    for _kind in _kinds.values():
        register(_kind)
jax.tree_util.register_dataclass(Recipe)
