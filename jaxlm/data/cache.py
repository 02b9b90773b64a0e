"""The user's cache: downloads, compiled programs, and the ids of corpora that take long to read or to generate."""

import contextlib
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm import files
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab

MAX_BYTES = 256 << 20  # of a corpus in the cache; Penn Treebank takes 4 MB


def cache_dir() -> Path:
    """The user's cache: `$JAXLM_CACHE`, or the folder that this system has for caches."""
    import platformdirs

    return Path(os.environ.get("JAXLM_CACHE") or platformdirs.user_cache_dir("jaxlm"))


def compilation_cache() -> Path:
    """The folder of XLA's compiled programs for this kind of processor: a program for one may not run on another."""
    try:
        with open("/proc/cpuinfo") as file:
            model = sorted({line for line in file if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        model = [platform.processor()]  # on some systems the word of a program, which takes hundredths of a second
    model.append(platform.machine())
    return cache_dir() / "xla" / hashlib.sha256("\n".join(model).encode()).hexdigest()[:16]


def remove_programs(name: str) -> None:
    """Removes the compiled programs of a name from the folder that JAX uses, where it can."""
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", os.devnull))
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(f"{name}-"):
                path.unlink()


def cached(name: str, key: str, build: Callable[[], Corpus]) -> Corpus:
    """A corpus from the cache, or from `build`, whose result is then kept there.

    The cached file begins with a sha256 over its content, `key` and the code of this folder, so that a damaged file,
    another text and other code all have the same effect: the corpus is built again. A cache that cannot be written
    is no error.

    Args:
        name: The name of the cached file.
        key: Everything that determines the corpus, besides the code.
        build: Reads or generates the corpus.

    Returns:
        The corpus, its ids in memory.
    """
    path = cache_dir() / "ids" / f"{name}.npz"
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    salt = hashlib.sha256(key.encode() + code).digest()
    with contextlib.suppress(OSError):
        data = files.read_bytes(path, MAX_BYTES)
        if data[:32] == hashlib.sha256(salt + data[32:]).digest():
            return _unpack(data[32:])
    corpus = build()
    payload = _pack(corpus)
    with contextlib.suppress(OSError), files.Folder.open(path.parent, create=True) as folder:
        folder.write(path.name, hashlib.sha256(salt + payload).digest() + payload)
    return corpus


def _pack(corpus: Corpus) -> bytes:
    """A corpus as an .npz archive: its ids, and JSON for the rest."""
    fields = {name: getattr(corpus, name) for name in ("name", "description", "sha256", "floor")}
    fields["words"] = corpus.vocab.words
    buffer = io.BytesIO()
    np.savez(buffer, corpus.train, corpus.valid, corpus.test, np.frombuffer(json.dumps(fields).encode(), np.uint8))
    return buffer.getvalue()


def _unpack(payload: bytes) -> Corpus:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        train, valid, test, text = (arrays[name] for name in arrays.files)
    fields = json.loads(text.tobytes())
    return Corpus(vocab=Vocab(tuple(fields.pop("words"))), train=train, valid=valid, test=test, **fields)
