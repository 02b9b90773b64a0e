"""The main memory that this process may have, asked before a large allocation."""

import os
import re
import resource
from contextlib import suppress

from jaxlm import files
from jaxlm.errors import JaxlmError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def limit() -> int:
    """The most bytes that this process can have: the machine's memory, or less where a limit is set."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits += [bytes for bytes in soft if bytes != resource.RLIM_INFINITY]
    for path in _LIMITS:
        with suppress(OSError, ValueError), files.reader(path) as file:  # ("max": there is none)
            limits.append(int(file.read(100)))
    return min(limits)


def available() -> int:
    """The bytes that this process can have now, without swapping what other processes use."""
    with suppress(OSError), files.reader("/proc/meminfo") as file:
        if found := re.search(rb"^MemAvailable: *([0-9]+) kB$", file.read(1 << 16), re.MULTILINE):
            return min(limit(), int(found[1]) << 10)
    return limit()


def check(needed: int, what: str, remedy: str) -> None:
    """Raises JaxlmError, with both numbers, where there is no room for `needed` bytes now."""
    if needed > (there := available()):
        raise JaxlmError(
            f"{what} needs at least {_gigabytes(needed)} of memory, and there is {_gigabytes(there)} for this "
            f"process: {remedy}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e15 else f"10^{len(str(count)) - 10} GB"
