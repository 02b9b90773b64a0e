"""The per-user cache: where downloads lie, and the ids of corpora that take long to read or to generate."""

import contextlib
import hashlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.data.vocab import Vocab

if TYPE_CHECKING:
    from jaxlm.data.corpora import Corpus


def cache_dir() -> Path:
    """The per-user cache: `$JAXLM_CACHE`, or where this system keeps caches."""
    import platformdirs

    return Path(os.environ.get("JAXLM_CACHE") or platformdirs.user_cache_dir("jaxlm"))


def compilation_cache() -> Path:
    """Where XLA's compiled programs are kept for this kind of processor: one's code may not run on another."""
    model = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model += sorted({line for line in file if line.startswith(("model name", "flags", "Features"))})
    return cache_dir() / "xla" / hashlib.sha256("\n".join(model).encode()).hexdigest()[:16]


def cached(name: str, key: str, build: Callable[[], "Corpus"]) -> "Corpus":
    """What `build` gives, from the user's cache where an earlier process left it.

    The file is sealed by a hash over its content, the `key` and this folder's code, so that damage, another
    text and older code all look alike: it is made anew. A cache that cannot be written is done without.
    """
    path = cache_dir() / "ids" / f"{name}.npz"
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    salt = hashlib.sha256(key.encode() + code).digest()
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        if data[:32] == hashlib.sha256(salt + data[32:]).digest():
            return _unpacked(data[32:])
    corpus = build()
    payload = _packed(corpus)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            Path(scratch, path.name).write_bytes(hashlib.sha256(salt + payload).digest() + payload)
            os.replace(Path(scratch, path.name), path)
    return corpus


def _packed(corpus: "Corpus") -> bytes:
    """A corpus as an .npz archive: its ids, and JSON for the rest."""
    told = {name: getattr(corpus, name) for name in ("name", "description", "sha256", "floor")}
    told["words"] = corpus.vocab.words
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, corpus.train, corpus.valid, corpus.test, text)
    return buffer.getvalue()


def _unpacked(payload: bytes) -> "Corpus":
    from jaxlm.data.corpora import Corpus

    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        train, valid, test, told = (arrays[name] for name in arrays.files)
    told = json.loads(told.tobytes())
    return Corpus(vocab=Vocab(tuple(told.pop("words"))), train=train, valid=valid, test=test, **told)
