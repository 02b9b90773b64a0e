"""Text to ids: corpora, vocabularies, batches. NumPy only; nothing here imports JAX."""
