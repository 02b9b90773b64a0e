"""Recurrent language models.

Each file listed here adds its kinds to the table MODELS, in the order of help.
"""

from jaxlm.models import lstm, gru, mingru, mogrifier, rlstm, hawk, hgrn2, xlstm  # noqa: F401, I001
from jaxlm.models import gated_deltanet, attention, mixed  # noqa: F401
