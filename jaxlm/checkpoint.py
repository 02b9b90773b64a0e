"""Checkpoints: a directory each, either whole or not there, and never silently wrong.

Orbax writes the arrays. Around them this file keeps two promises that orbax does not: a checkpoint
appears under its name by one rename, after every byte has reached the disk; and a manifest holds the sha256
of every file (and its own), and nothing is restored that differs. Which checkpoint is *last* and which is
*best* follows from the manifests, so no label can go stale.

    RUN/checkpoints/00000774/   manifest.json, config.json, vocab.json, state/ (orbax)
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import Config
from jaxlm.data.vocab import Vocab
from jaxlm.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int  # windows trained
    epoch: int  # epochs finished
    valid_perplexity: float | None  # None in the middle of an epoch
    metrics_bytes: int  # length of metrics.jsonl when it was saved
    corpus: dict[str, str]  # name and sha256
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    path: Path
    manifest: Manifest
    config: Config
    vocab: Vocab
    arrays: dict[str, np.ndarray]  # leaf name -> array


def library_versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on."""
    return {name: version(name) for name in ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}


def save(run_dir: Path, state: Any, config: Config, vocab: Vocab, manifest: Manifest, keep: int = 2) -> Path:
    """Writes one checkpoint durably, then prunes all but the last `keep` and the best. Returns its directory."""
    import orbax.checkpoint as ocp

    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial, final = folder / f".partial-{manifest.step:08d}", folder / f"{manifest.step:08d}"
    partial.mkdir()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)) as orbax:
        orbax.save(partial.resolve() / "state", to_arrays(state))
    (partial / "config.json").write_text(config.to_json())
    (partial / "vocab.json").write_text(vocab.to_json())
    files = {str(path.relative_to(partial)): _sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()}
    (partial / "manifest.json").write_text(_seal({**asdict(manifest), "files": files}))
    for path in (*partial.rglob("*"), partial):
        _fsync(path)
    if final.exists():
        os.rename(final, folder / f".replaced-{manifest.step:08d}")
    os.rename(partial, final)
    _fsync(folder)
    kept = manifests(run_dir)
    for step in sorted(kept)[:-keep]:
        if step != best_step(kept):
            os.rename(folder / f"{step:08d}", folder / f".pruned-{step:08d}")
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def manifests(run_dir: Path) -> dict[int, Manifest]:
    """step -> manifest of every checkpoint whose manifest is intact."""
    found = {}
    for path in sorted((run_dir / "checkpoints").glob("[0-9]*")):
        with contextlib.suppress(CheckpointError):
            manifest = read_manifest(path)
            found[manifest.step] = manifest
    return found


def best_step(found: dict[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity."""
    measured = [(m.valid_perplexity, step) for step, m in found.items() if m.valid_perplexity is not None]
    return min(measured)[1] if measured else None


def find(run_dir: Path, which: str = "last") -> Path:
    """The checkpoint labelled `last` or `best`, or the one of a step. Raises CheckpointError if there is none."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_dir} holds no checkpoints: give the directory of a run that jaxlm trained")
    names = sorted(path.name for path in folder.glob("[0-9]*"))
    if which == "last" and names:
        return folder / names[-1]
    if which == "best" and (step := best_step(manifests(run_dir))) is not None:
        return folder / f"{step:08d}"
    if which.isdigit() and f"{int(which):08d}" in names:
        return folder / f"{int(which):08d}"
    raise CheckpointError(f"{run_dir} has no checkpoint {which!r}; it has "
                          f"{', '.join(str(int(name)) for name in names) or 'none'}")


def read(path: Path) -> Checkpoint:
    """A checkpoint, every byte of it verified. Raises CheckpointError, naming the file that is not as it was."""
    import orbax.checkpoint as ocp

    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        found = _sha256(path / name) if (path / name).is_file() else "no file"
        if found != expected:
            raise CheckpointError(f"{path / name} is damaged: expected sha256 {expected}, found {found}; "
                                  f"choose another checkpoint of this run")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as orbax:
        arrays = orbax.restore(path.resolve() / "state")
    return Checkpoint(path, manifest, Config.from_json((path / "config.json").read_text()),
                      Vocab.from_json((path / "vocab.json").read_text()), arrays)


def newest_intact(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    problems = []
    for path in sorted((run_dir / "checkpoints").glob("[0-9]*"), reverse=True):
        try:
            return read(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not the bytes that were sealed."""
    try:
        text = (path / "manifest.json").read_bytes().decode()
        tree = json.loads(text)
        tree.pop("sha256")
        manifest = Manifest(**tree)
        intact = _seal(tree) == text
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} cannot be read: {error}") from None
    if not intact or manifest.format != FORMAT:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged or of another format; expected format {FORMAT}")
    return manifest


def to_arrays(state: Any) -> dict[str, np.ndarray]:
    """A state as {leaf's name: array}, a PRNG key as its bits."""
    return {name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            for name, leaf in _named_leaves(state)}


def from_arrays(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The state that `to_arrays` took apart. Raises CheckpointError with every name, shape or type that differs."""
    leaves, problems = [], []
    for name, leaf in _named_leaves(template):
        expected = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array = arrays.get(name)
        if array is None or (array.shape, array.dtype) != (expected.shape, expected.dtype):
            found = "nothing" if array is None else f"{array.dtype}{array.shape}"
            problems.append(f"{name}: expected {expected.dtype}{expected.shape}, found {found}")
        elif _is_key(leaf):
            leaves.append(jax.random.wrap_key_data(array))
        else:
            leaves.append(jax.numpy.asarray(array))
    if problems:
        raise CheckpointError("the checkpoint does not fit this config: " + "; ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{leaf's name: shape} of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in _named_leaves(tree)}


def write_text(path: Path, text: str) -> None:
    """Replaces a small file at once and durably: a reader finds the old text or the new."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    _fsync(partial)
    os.replace(partial, path)
    _fsync(path.parent)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _seal(tree: dict[str, Any]) -> str:
    """Canonical JSON with the sha256 of the rest inside: any changed byte shows."""
    body = json.dumps(tree, indent=1, sort_keys=True)
    return json.dumps({**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
