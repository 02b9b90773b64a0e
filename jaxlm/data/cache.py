"""The user's cache: downloads, the ids of texts, and compiled programs."""

import glob
import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache: `$JAXLM_CACHE`, or the folder that this system has for caches."""
    import platformdirs

    return Path(os.environ.get("JAXLM_CACHE") or platformdirs.user_cache_dir("jaxlm"))


def processor() -> str:
    """What a compiled program depends on: the processor's model and its instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = {line for line in file if line.startswith(("model name", "flags", "Features"))}
    except OSError:
        # Only here, since on some systems it starts a program.
        lines = {platform.processor()}
    return "\n".join([*sorted(lines), platform.machine()])


def compilation_cache() -> Path:
    """The folder of XLA's compiled programs for this kind of processor.

    A program for one processor may not run on another.
    """
    return cache_dir() / "xla" / hashlib.sha256(processor().encode()).hexdigest()[:16]


def remove_programs(name: str) -> None:
    """Removes the compiled programs with a name from JAX's cache; a failure is ignored."""
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", os.devnull))
    with suppress(OSError):
        for path in folder.glob(f"{glob.escape(name)}-*"):
            path.unlink()
