"""The memory that this process and its device have, asked before a large allocation."""

import os
import re
import resource
from contextlib import suppress

import jax

from jaxlm.base import files
from jaxlm.base.errors import OutOfMemory

OF_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def limit() -> int:
    """The most bytes that this process can have: the machine's memory, or a limit below it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    for path in OF_CONTAINER:
        with suppress(OSError, ValueError), files.reader(path) as file:  # "max" is no number
            limits.append(int(file.read(100)))
    return min(limits)


def available() -> int:
    """The bytes that this process can have now, without swapping what other processes use."""
    with suppress(OSError), files.reader("/proc/meminfo") as file:
        kilobytes = re.search(rb"^MemAvailable: *([0-9]+) kB$", file.read(1 << 16), re.MULTILINE)
        if kilobytes:
            return min(limit(), int(kilobytes[1]) << 10)
    return limit()


def of_device() -> int | None:
    """The bytes that are free on the first device; None: it has the process's own memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return None


def check(
    needed: int,
    purpose: str,
    remedy: str,
    free: int | None = None,
) -> None:
    """Refuses what there is no memory for.

    Args:
        needed: Bytes.
        purpose: What needs them; the error's sentence begins with it.
        remedy: What to do; the sentence ends with it.
        free: Bytes that are free on the device; None: what this process can have now counts.

    Raises:
        OutOfMemory: More is needed than is free.
    """
    where = "on this device"
    if free is None:
        free = available()
        where = "for this process"
    if needed > free:
        raise OutOfMemory(
            f"{purpose} needs at least {needed / 1e9:,.1f} GB of memory, "
            f"and there is {free / 1e9:,.1f} GB {where}: {remedy}"
        )
