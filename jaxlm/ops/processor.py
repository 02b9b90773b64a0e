"""What a program runs on: the platform that it is lowered for, and the CPU as Linux describes it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from jax import lax

T = TypeVar("T")


def by_platform(function: Callable[..., T], *arguments: object) -> T:
    """`function(on_cpu, *arguments)`, of which programs for CPUs hold the one and programs for other devices the other.

    The platform is the one that the program is lowered for, which need not be the platform of this process's devices.

    Args:
        function: its first argument is a Python bool; its results have the same shapes for both.
        arguments: pytrees of arrays.
    """
    return lax.platform_dependent(*arguments, cpu=partial(function, True), default=partial(function, False))


def cpu_flags() -> set[str]:
    """The names of the processor's instructions and features, as Linux tells them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
