"""Text to vocabulary, ids and windows. NumPy only: nothing here imports JAX."""
