"""Makes recipe and protocols pytrees: their numbers are leaves, all else is static. Imported by whatever traces one.

(Apart from `config.py`, so that a command line's help need not import JAX.)
"""

from dataclasses import fields

import jax

from jaxlm.config.config import KINDS, Recipe
from jaxlm.config.fields import specs
from jaxlm.config.protocols import PROTOCOLS

for _kinds in (*KINDS.values(), PROTOCOLS):
    for _kind in _kinds.values():
        _specs = specs(_kind)
        jax.tree_util.register_dataclass(_kind, [name for name, spec in _specs.items() if spec.type is float],
                                         [name for name, spec in _specs.items() if spec.type is not float])
jax.tree_util.register_dataclass(Recipe, [item.name for item in fields(Recipe)], [])
