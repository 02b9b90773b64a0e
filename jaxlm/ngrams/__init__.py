"""n-gram models: interpolated modified Kneser-Ney, scored like any other model; ARPA files."""
