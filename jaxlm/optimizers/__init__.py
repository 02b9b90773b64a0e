"""Kinds of optimisers: each file has the fields of a kind and its optax transformation."""
