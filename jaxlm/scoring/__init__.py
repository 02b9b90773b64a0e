"""Scores of texts: perplexity, surprisal, minimal pairs and test suites; and text from a model."""
