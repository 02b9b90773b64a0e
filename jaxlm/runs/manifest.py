"""What a checkpoint must be before anyone opens it: the manifest, and every file held to it.

The manifest seals the sha256 of every file, and its own. The config that is among them tells which files there
must be and how large each array is. A flipped bit, a lost or shortened file, a link, a file too many, a shape
that asks for a terabyte: each is refused here, before orbax or an allocation, so a stranger's checkpoint is only
data.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxlm.errors import CheckpointError

FORMAT = 1
NAME, ARRAYS = "manifest.json", "state"
TEXTS = {"config.json": 1 << 20, "vocab.json": 64 << 20, "metrics.jsonl": 1 << 40}  # name -> most bytes
MOST_BYTES = 16 << 20  # of the manifest itself
MOST_LAYOUT_BYTES = 1 << 20  # of a file in which orbax describes arrays


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int  # windows trained
    epoch: int  # epochs finished
    valid_perplexity: float | None  # None in the middle of an epoch
    corpus: dict[str, str]  # its name, its sha256 and its vocabulary's
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    format: int = FORMAT


def library_versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on."""
    return {name: version(name) for name in ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}


def write(folder: Path, manifest: Manifest) -> None:
    """Seals the files of a folder into its manifest."""
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*"))
             if path.is_file() and path != folder / NAME}
    (folder / NAME).write_text(_seal(asdict(replace(manifest, files=files))), encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not the bytes that were sealed."""
    try:
        _check_plain(folder, NAME)
        if (folder / NAME).stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        text = (folder / NAME).read_text(encoding="utf-8")
        tree = json.loads(text)
        del tree["sha256"]
        manifest = Manifest(**tree)
        if _seal(tree) != text or not _well_formed(manifest):
            raise ValueError(f"its seal is broken, or its format is not {FORMAT}")
        if folder.name.isdigit() and int(folder.name) != manifest.step:
            raise ValueError(f"it is that of window {manifest.step}")
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{folder / NAME} is damaged: {error}") from None
    return manifest


def verified_text(folder: Path, manifest: Manifest, name: str) -> str:
    """The content of one of the `TEXTS`: the very bytes that were sealed."""
    _check_file(folder, name, manifest.files.get(name), most=TEXTS[name])
    return (folder / name).read_text(encoding="utf-8")


def verify(folder: Path, manifest: Manifest, leaves: Mapping[str, Any]) -> None:
    """Holds every file to the manifest, and the arrays to `leaves`: {name: anything with shape and dtype}.

    Raises CheckpointError, naming the file that is missing, changed, a link, or one too many.
    """
    needed = sum(map(_bytes, leaves.values()))
    if needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise CheckpointError(f"{folder} has a config that asks for {needed:,} bytes; this machine has {memory:,}")
    layout = {f"{ARRAYS}/_METADATA", *(f"{ARRAYS}/{name}/.zarray" for name in leaves)}
    chunks = {f"{ARRAYS}/{name}/{'.'.join('0' * len(leaf.shape)) or '0'}": leaf for name, leaf in leaves.items()}
    found = {path.relative_to(folder).as_posix() for path in (folder / ARRAYS).rglob("*") if not path.is_dir()}
    for name in sorted((found | manifest.files.keys()) - {*TEXTS, *layout, *chunks}):
        raise CheckpointError(f"{folder / name} does not belong to a checkpoint of this config")
    for name in sorted({*TEXTS, *layout}):
        _check_file(folder, name, manifest.files.get(name), most=TEXTS.get(name, MOST_LAYOUT_BYTES))
    for name, leaf in chunks.items():
        _check_file(folder, name, manifest.files.get(name), exactly=_bytes(leaf))
    try:
        plain = _plain(folder / ARRAYS, leaves)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise CheckpointError(f"{folder / ARRAYS} does not describe this config's arrays as plain uncompressed zarr")


def _check_file(folder: Path, name: str, sha256: str | None, *, most: int = 0, exactly: int | None = None) -> None:
    _check_plain(folder, name)
    found, expected = (folder / name).stat().st_size, f"at most {most:,}" if exactly is None else f"{exactly:,}"
    if found > most if exactly is None else found != exactly:
        raise CheckpointError(f"{folder / name} is damaged: expected {expected} bytes, found {found:,}")
    if (actual := _sha256(folder / name)) != sha256:
        raise CheckpointError(f"{folder / name} is damaged: expected sha256 {sha256}, found {actual}")


def _check_plain(folder: Path, name: str) -> None:
    """A regular file, reached over no link."""
    path = folder / name
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        raise CheckpointError(f"{path} is damaged: expected a file, found {'a link' if path.exists() else 'none'}")


def _plain(state: Path, leaves: Mapping[str, Any]) -> bool:
    """Whether orbax's own files ask for one chunk of raw bytes for each leaf, and for nothing else."""
    tree = _json(state / "_METADATA")
    entries = [(entry["key_metadata"], entry["value_metadata"]["value_type"])
               for entry in tree["tree_metadata"].values()]
    plain = not tree["use_ocdbt"] and not tree["use_zarr3"] and len(entries) == len(leaves)
    plain &= all(len(keys) == 1 and keys[0]["key"] in leaves and kind == "np.ndarray" for keys, kind in entries)
    for name, leaf in leaves.items():
        array, shape = _json(state / name / ".zarray"), list(leaf.shape)
        dtype = leaf.dtype.name if leaf.dtype.kind == "V" else leaf.dtype.str  # bfloat16 goes by its name
        plain &= array.pop("dimension_separator", ".") == "." and array.pop("fill_value", None) in (None, 0)
        plain &= array == {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": dtype, "order": "C",
                           "compressor": None, "filters": None}
    return plain


def _json(path: Path) -> Any:
    """JSON in which no name comes twice: of two, another reader might believe the other."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    return json.loads(path.read_bytes(), object_pairs_hook=once)


def _well_formed(manifest: Manifest) -> bool:
    counts = (manifest.step, manifest.epoch)
    tables = (manifest.corpus, manifest.versions, manifest.files)
    return (manifest.format == FORMAT and all(type(count) is int and 0 <= count < 2**31 for count in counts)
            and type(manifest.valid_perplexity) in (float, type(None))
            and all(isinstance(word, str) for table in tables for item in table.items() for word in item))


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _seal(tree: dict[str, Any]) -> str:
    """Canonical JSON with the sha256 of the rest inside: any changed byte shows."""
    body = json.dumps(tree, indent=1, sort_keys=True)
    return json.dumps({**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
