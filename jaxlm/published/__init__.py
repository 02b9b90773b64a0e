"""Kinds that repeat published codes to the quirk: one file a code. The presets and the tests name them."""
