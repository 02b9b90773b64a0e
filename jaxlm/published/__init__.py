"""Kinds that repeat published codes to the quirk, one file a code.

They add themselves to the tables of all kinds.
"""

from jaxlm.published import awd_lstm, lamb  # noqa: F401
