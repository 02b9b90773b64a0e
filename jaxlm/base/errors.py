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


def reason(error: Exception) -> str:
    """An error in the words that end a sentence: without its number and its file's name."""
    text = str(getattr(error, "strerror", None) or error)
    if not text and isinstance(error, MemoryError):
        return "there is not enough memory"
    return text or type(error).__name__
