"""Kinds of optimisers, by name: each file has the fields of a kind and its optax transformation."""

from jaxlm.optimizers.adamw import AdamW
from jaxlm.optimizers.descent import ASGD, SGD
from jaxlm.optimizers.muon import Muon
from jaxlm.optimizers.optimizer import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "asgd": ASGD, "adamw": AdamW, "muon": Muon}
