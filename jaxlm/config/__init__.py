"""Sections of a config, presets, and the protocols of evaluation."""
