"""The memory that this process may have, its own and its device's, asked before a large allocation."""

import os
import re
import resource
from contextlib import suppress

from jaxlm import files
from jaxlm.errors import OutOfMemory


def limit() -> int:
    """The most bytes that this process can have: the machine's memory, or less where a limit is set."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits += [bytes for bytes in soft if bytes != resource.RLIM_INFINITY]
    for path in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):  # of a container
        with suppress(OSError, ValueError), files.reader(path) as file:  # ("max": there is none)
            limits.append(int(file.read(100)))
    return min(limits)


def available() -> int:
    """The bytes that this process can have now, without swapping what other processes use."""
    with suppress(OSError), files.reader("/proc/meminfo") as file:
        found = re.search(rb"^MemAvailable: *([0-9]+) kB$", file.read(1 << 16), re.MULTILINE)
        if found:
            return min(limit(), int(found[1]) << 10)
    return limit()


def of_device() -> int | None:
    """The bytes that are free on this process's first device; None: it has the process's own memory."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return None


def check(needed: int, what: str, remedy: str, there: int | None = None) -> None:
    """Raises OutOfMemory, with both numbers, for more than `there` bytes; None: than this process can have now."""
    if needed > (room := available() if there is None else there):
        found = f"{room / 1e9:,.1f} GB {'for this process' if there is None else 'on this device'}"
        raise OutOfMemory(
            f"{what} needs at least {needed / 1e9:,.1f} GB of memory, and there is {found}: {remedy}"
        )
