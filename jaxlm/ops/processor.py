"""What a program runs on: the platform that it is lowered for, and the CPU as Linux describes it."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from jax import lax

T = TypeVar("T")
CPUINFO = Path("/proc/cpuinfo")


def by_platform(function: Callable[..., T], *arguments: object) -> T:
    """`function(on_cpu, *arguments)`, of which programs for CPUs hold the one and programs for other devices the other.

    The platform is the one that the program is lowered for, which need not be the platform of this process's devices.

    Args:
        function: its first argument is a Python bool; its results have the same shapes for both.
        arguments: pytrees of arrays.
    """
    return lax.platform_dependent(*arguments, cpu=partial(function, True), default=partial(function, False))


@lru_cache(maxsize=4)
def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The names of the processor's instructions and features; none where they are not told."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split())
