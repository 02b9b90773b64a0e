"""Kinds that repeat published codes to the quirk, one file a code.

They add themselves to the tables of all kinds. `config` imports each.
"""
