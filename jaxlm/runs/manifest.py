"""What a checkpoint must be before it is used: its manifest, and every file held to it.

The manifest seals the sha256 of every file, and its own. The bytes that are checked are the bytes that are returned:
a file is opened once, over no link, and its size is bounded first. So a flipped bit, a lost or shortened file, a link,
a FIFO or a file too many is refused by name, and a stranger's checkpoint is only data.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jaxlm.errors import CheckpointError
from jaxlm.files import MAX_VOCAB_BYTES, Folder, reason, seal, unseal

FORMAT = 2
FORMATS = (1, 2)  # that are read
NAME = "manifest.json"
TEXTS = {"config.json": 1 << 20, "vocab.json": MAX_VOCAB_BYTES, "metrics.jsonl": 4 << 30}  # name -> most bytes
MOST_BYTES = 16 << 20  # of the manifest itself
STEP = re.compile("[0-9]{8,10}")  # a checkpoint's name: the windows trained


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of."""

    step: int  # windows trained
    epoch: int  # epochs finished
    valid_perplexity: float | None  # None in the middle of an epoch
    corpus: dict[str, str]  # its name, its sha256 and its vocabulary's
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    format: int = FORMAT


def library_versions() -> dict[str, str]:
    """The versions of what a run's results depend on."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:  # a source tree that is imported without being installed
            return "unknown"

    return {name: installed(name) for name in ("jaxlm", "jax", "jaxlib", "optax", "safetensors", "numpy")}


def write(folder: Folder, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Writes the files of a new checkpoint, and the manifest that seals them. Raises OSError."""
    for name, data in contents.items():
        folder.create(name, data)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    folder.create(NAME, seal(asdict(replace(manifest, files=files, format=FORMAT))).encode())
    folder.sync()


def read(folder: Folder) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not the bytes that were sealed."""
    try:
        tree = unseal(folder.read(NAME, MOST_BYTES))
        if tree.get("format") not in FORMATS:
            raise ValueError(
                f"its format is {str(tree.get('format'))[:20]!r}; this version of jaxlm reads "
                f"{' and '.join(map(str, FORMATS))}"
            )
        manifest = Manifest(**tree)
        if not _well_formed(manifest):
            raise ValueError("it holds something else than a manifest does")
        if STEP.fullmatch(folder.path.name) and int(folder.path.name) != manifest.step:
            raise ValueError(f"it is that of window {manifest.step}")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder.path / NAME} is damaged: {reason(error)}") from None
    return manifest


def verified(
    folder: Folder, manifest: Manifest, name: str, *, most: int | None = None, exactly: int | None = None
) -> bytes:
    """The very bytes of a file that were sealed.

    Args:
        folder: the checkpoint's.
        manifest: its manifest.
        name: the file's path below the folder, with slashes.
        most: the most bytes that it may have (default: of the `TEXTS`).
        exactly: the bytes that it must have, where that is known.
    Raises:
        CheckpointError: the file is missing, changed, too large, or no regular file.
    """
    path = folder.path / name
    try:
        with ExitStack() as stack:
            *above, last = name.split("/")
            for part in above:
                folder = stack.enter_context(folder.folder(part))
            data = folder.read(last, exactly if exactly is not None else TEXTS[name] if most is None else most)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {reason(error)}") from None
    if exactly is not None and len(data) != exactly:
        raise CheckpointError(f"{path} is damaged: expected {exactly:,} bytes, found {len(data):,}")
    if (actual := hashlib.sha256(data).hexdigest()) != manifest.files.get(name):
        raise CheckpointError(f"{path} is damaged: expected sha256 {manifest.files.get(name)}, found {actual}")
    return data


def check_names(folder: Folder, manifest: Manifest, expected: Iterable[str]) -> None:
    """Raises CheckpointError for a file, in the folder or in the manifest, that is not among those expected."""
    found = {*manifest.files, *folder.files()} - {NAME}
    for name in sorted(found - set(expected)):
        raise CheckpointError(f"{folder.path}/{name} does not belong to a checkpoint of this config")


def _well_formed(manifest: Manifest) -> bool:
    counts = (manifest.step, manifest.epoch)
    tables = (manifest.corpus, manifest.versions, manifest.files)
    return (
        type(manifest.format) is int
        and all(type(count) is int and 0 <= count < 2**31 for count in counts)
        and type(manifest.valid_perplexity) in (float, type(None))
        and all(_is_table(table) for table in tables)
        and manifest.corpus.keys() >= {"name", "sha256"}
    )


def _is_table(table: Any) -> bool:
    return isinstance(table, dict) and all(isinstance(word, str) for item in table.items() for word in item)
