"""Files that are not waited for, in the default suite.

The commands that tests start wait for theirs: many are to be met in the middle.
"""

import os
import stat
from collections.abc import Callable

ORIGINAL = os.fsync


def not_synced(descriptor: int) -> None:
    """What `os.fsync` refuses it refuses too: what is closed, and what has no disk behind it."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        ORIGINAL(descriptor)


def leave_out(setattr: Callable[[object, str, object], None]) -> None:
    """Replaces `os.fsync` where the session asks for it."""
    if os.environ.get("JAXLM_TEST_SYNC") == "none":
        setattr(os, "fsync", not_synced)
