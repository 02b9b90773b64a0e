"""Optimisers.

Each file listed here adds its kinds to the table OPTIMIZERS, in the order of help.
"""

from jaxlm.optimizers import descent, adamw, muon  # noqa: F401, I001
