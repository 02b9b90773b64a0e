"""Runs: how they are trained, kept, resumed, reproduced and loaded."""
