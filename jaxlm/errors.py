"""Errors for the person who can fix them: each is one sentence, which the command line prints."""


class JaxlmError(ValueError):
    """A user's mistake: what was expected, what came, what to do next."""


class DataError(JaxlmError):
    """Text, a vocabulary or a corpus that cannot be used."""


class CheckpointError(JaxlmError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class RunDirError(JaxlmError):
    """A run directory that is in use, holds another run, or cannot be written."""


class OutOfMemory(JaxlmError):
    """More memory was needed than there is now."""


class Diverged(JaxlmError):
    """A cost or a gradient that is not finite."""
