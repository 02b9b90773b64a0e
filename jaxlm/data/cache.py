"""The user's cache: downloads, compiled programs, and the ids of corpora that take long to read or to generate."""

import glob
import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.files import Folder

MAX_BYTES = (
    512 << 20
)  # of a sealed file: 4 bytes for each byte of the longest text without a cut, and its units


def cache_dir() -> Path:
    """The user's cache: `$JAXLM_CACHE`, or the folder that this system has for caches."""
    import platformdirs

    return Path(os.environ.get("JAXLM_CACHE") or platformdirs.user_cache_dir("jaxlm"))


def processor() -> str:
    """The processor's model and instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            model = sorted(
                {line for line in file if line.startswith(("model name", "flags", "Features"))}
            )
    except OSError:
        model = [
            platform.processor()
        ]  # on some systems the word of a program, which takes hundredths of a second
    return "\n".join([*model, platform.machine()])


def compilation_cache() -> Path:
    """The folder of XLA's compiled programs for this kind of processor: a program for one may not run on another."""
    return cache_dir() / "xla" / hashlib.sha256(processor().encode()).hexdigest()[:16]


def remove_programs(name: str) -> None:
    """Removes the compiled programs of a name from the folder that JAX uses, where it can."""
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", os.devnull))
    with suppress(OSError):
        for path in folder.glob(f"{glob.escape(name)}-*"):
            path.unlink()


def recall(folder: Folder, name: str, key: str) -> tuple[dict[str, Any], np.ndarray] | None:
    """What `remember` wrote under this name and key; None if the file is missing, damaged, or made by other code."""
    with suppress(OSError):
        data = folder.read(name, MAX_BYTES)
        if data[:32] == _seal(key, data[32:]):
            fields, _, ids = data[32:].partition(b"\n")
            return json.loads(fields), np.frombuffer(ids, "<i4")
    return None


def remember(folder: Folder, name: str, key: str, fields: dict[str, Any], ids: np.ndarray) -> None:
    """Writes int32 ids, and fields as JSON, to a sealed file; not durably: a torn file is noticed and made again.

    The key is what determines the content besides the code of `jaxlm.data`. Raises OSError.
    """
    content = json.dumps(fields).encode() + b"\n" + ids.astype("<i4").tobytes()
    folder.remove(name)
    with folder.append(name) as file:
        file.write(_seal(key, content))
        file.write(content)


def _seal(key: str, content: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    for path in sorted(Path(__file__).parent.glob("*.*")):
        digest.update(path.read_bytes())
    digest.update(content)
    return digest.digest()
