"""Checkpoints: a directory each, either whole or not there, and never silently wrong.

Orbax writes and reads the arrays. Around it this file keeps three promises that orbax does not make:

- A checkpoint appears under its name by one rename, after every byte has reached the disk; what is older is
  removed only then. A name that begins with a dot is unfinished or half removed, and nobody reads it.
- A manifest holds the sha256 of every file (and its own), and nothing is restored that differs.
- A stranger's checkpoint is only data. The config tells which files there must be and how large each array is;
  a link, any other file, or an array of another size is refused before orbax looks at it.

Which checkpoint is *last* and which is *best* follows from the manifests, so no label can go stale.

    RUN/checkpoints/00000774/   manifest.json  config.json  vocab.json  metrics.jsonl (the run's, until here)
                                state/ (orbax: uncompressed zarr, one chunk an array)
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import Config, TrainConfig
from jaxlm.data.vocab import Vocab
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.step import TrainState, init_state

FORMAT = 1
MAX_BYTES = {"manifest.json": 16 << 20, "vocab.json": 64 << 20, "metrics.jsonl": 1 << 40}
MAX_OTHER_BYTES = 1 << 20  # of any other file that is not an array's bytes


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


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    path: Path
    manifest: Manifest
    config: Config
    vocab: Vocab
    state: TrainState


def library_versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on."""
    return {name: version(name) for name in ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}


def save(run_dir: Path, state: TrainState, config: Config, vocab: Vocab, manifest: Manifest) -> Path:
    """Writes one checkpoint durably, then removes the older ones that the config does not keep. Returns its directory.

    Raises RunDirError where the disk refuses; what was saved before is then as it was.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"{manifest.step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(exist_ok=True)
        clean(run_dir)
        partial.mkdir()
        _write(partial, run_dir / "metrics.jsonl", state, config, vocab, manifest)
        if final.exists():  # a damaged one, which this run has been resumed from before
            _remove(final)
        os.rename(partial, final)
        fsync(folder)
        fsync(run_dir)
        _prune(run_dir, manifest.step, config.train)
    except (OSError, ValueError) as error:  # ValueError: what orbax makes of a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise RunDirError(f"cannot save {final}: {reason}; the checkpoints before it are whole: "
                          f"mend that, then go on with --resume") from None
    return final


def _write(partial: Path, metrics: Path, state: TrainState, config: Config, vocab: Vocab, manifest: Manifest) -> None:
    import orbax.checkpoint as ocp

    # The handler and not ocp.Checkpointer: ours is the rename, and the same state gives the same bytes, no clock in it.
    ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False).save(
        partial.resolve() / "state", args=ocp.args.PyTreeSave(_arrays(state)))
    (partial / "config.json").write_text(config.to_json(), encoding="utf-8")
    (partial / "vocab.json").write_text(vocab.to_json(), encoding="utf-8")
    shutil.copyfile(metrics, partial / "metrics.jsonl")
    files = {path.relative_to(partial).as_posix(): _sha256(path) for path in partial.rglob("*") if path.is_file()}
    (partial / "manifest.json").write_text(_seal({**asdict(manifest), "files": files}), encoding="utf-8")
    for path in (*partial.rglob("*"), partial):
        fsync(path)


def _prune(run_dir: Path, step: int, policy: TrainConfig) -> None:
    """Keeps the last `keep_last`, the best, and one every `keep_every` epochs.

    One later than `step` was found damaged when the run was resumed, and is in the way of *last*.
    """
    found = manifests(run_dir)
    kept = {*sorted(at for at in found if at <= step)[-policy.keep_last:], best_step(found)}
    if policy.keep_every:
        kept |= {at for at, m in found.items() if m.valid_perplexity is not None and m.epoch % policy.keep_every == 0}
    for path in _directories(run_dir):
        if int(path.name) not in kept or int(path.name) > step:
            _remove(path)


def _remove(path: Path) -> None:
    """Out of sight by one rename, then away: killed in between, it is not half a checkpoint."""
    hidden = path.with_name(f".{path.name}.removed")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clean(run_dir: Path) -> None:
    """Deletes what a killed process left unfinished or half removed."""
    for leftover in (run_dir / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def manifests(run_dir: Path) -> dict[int, Manifest]:
    """step -> manifest, of every checkpoint whose manifest is intact."""
    found = {}
    for path in _directories(run_dir):
        with contextlib.suppress(CheckpointError):
            found[int(path.name)] = read_manifest(path)
    return found


def best_step(found: Mapping[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity."""
    measured = [(m.valid_perplexity, step) for step, m in found.items()
                if m.valid_perplexity is not None and math.isfinite(m.valid_perplexity)]
    return min(measured)[1] if measured else None


def find(run_dir: Path, which: str = "last") -> Path:
    """The directory labelled `last` or `best`, or the one of a step. Raises CheckpointError if there is none."""
    if not (run_dir / "checkpoints").is_dir():
        raise CheckpointError(f"{run_dir} holds no checkpoints: give the directory of a run that jaxlm trained")
    steps = {int(path.name): path for path in _directories(run_dir)}
    step = (max(steps, default=None) if which == "last" else best_step(manifests(run_dir)) if which == "best"
            else int(which) if re.fullmatch("[0-9]{1,10}", which) else None)
    if step not in steps:
        raise CheckpointError(f"{run_dir} has no checkpoint {which!r}; it has {', '.join(map(str, steps)) or 'none'}")
    return steps[step]


def load(run_dir: Path, which: str = "last") -> Checkpoint:
    """Finds and reads a checkpoint. Where it is damaged, the CheckpointError offers the newest intact one."""
    path = find(run_dir, which)
    try:
        return read(path)
    except CheckpointError as error:
        intact, _ = newest_intact(run_dir)
        offer = "none of this run is intact" if intact is None else (
            f"the newest intact one of this run is {intact.manifest.step}: name it with --checkpoint")
        raise CheckpointError(f"{error}; {offer}") from None


def newest_intact(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    problems = []
    for path in reversed(_directories(run_dir)):
        try:
            return read(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read(path: Path) -> Checkpoint:
    """A checkpoint, every byte of it verified. Raises CheckpointError, naming the file that is not as it should be."""
    manifest = read_manifest(path)
    try:
        _verify(path, "config.json", manifest.files.get("config.json"))
        config = Config.from_json((path / "config.json").read_text(encoding="utf-8"))
        leaves = _expected(config, len(manifest.files))
        _verify_files(path, manifest, leaves)
        _verify_layout(path / "state", leaves)
        vocab = Vocab.from_json((path / "vocab.json").read_text(encoding="utf-8"))
        if len(vocab) != config.model.vocab_size:
            raise CheckpointError(f"{path / 'vocab.json'} has {len(vocab)} words for a model of "
                                  f"{config.model.vocab_size}: it is not this checkpoint's own")
        return Checkpoint(path, manifest, config, vocab, _restore(path / "state", config, leaves))
    except CheckpointError:
        raise
    except (JaxlmError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not the bytes that were sealed."""
    file = path / "manifest.json"
    try:
        _verify(path, file.name, None)
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text)
        del tree["sha256"]
        manifest = Manifest(**tree)
        tables = (manifest.corpus, manifest.versions, manifest.files)
        if (_seal(tree) != text or manifest.format != FORMAT
                or not all(type(count) is int and 0 <= count < 2**31 for count in (manifest.step, manifest.epoch))
                or type(manifest.valid_perplexity) not in (float, type(None))
                or not all(isinstance(word, str) for table in tables for item in table.items() for word in item)):
            raise ValueError(f"it is damaged, or of another format than {FORMAT}")
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    return manifest


def _expected(config: Config, files: int) -> dict[str, jax.ShapeDtypeStruct]:
    """{leaf's name: shape and type} of a config's state. Allocates nothing, however much the config asks for."""
    try:
        if len(config.model.hidden_sizes) > files:  # each layer has its files, and a shape for each takes time
            raise ValueError(f"{len(config.model.hidden_sizes)} layers")
        leaves = _arrays(jax.eval_shape(lambda: _fresh(config)))
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
        if needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise ValueError(f"{needed:,} bytes, and this machine has {memory:,}")
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the checkpoint's config asks for what cannot be here: {error}") from None
    return leaves


def _verify_files(path: Path, manifest: Manifest, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Just the files that the leaves need are there, each of its size, each with its hash."""
    sizes: dict[str, int | None] = dict.fromkeys(("config.json", "vocab.json", "metrics.jsonl", "state/_METADATA"))
    for name, leaf in leaves.items():
        sizes[f"state/{name}/.zarray"] = None
        sizes[f"state/{name}/{'.'.join('0' * len(leaf.shape)) or '0'}"] = math.prod(leaf.shape) * leaf.dtype.itemsize
    here = {file.relative_to(path).as_posix() for file in (path / "state").rglob("*") if not file.is_dir()}
    for other in sorted((manifest.files.keys() | here) - sizes.keys()):
        raise CheckpointError(f"{path / other} does not belong to a checkpoint of this config")
    for name, size in sizes.items():
        _verify(path, name, manifest.files.get(name, "a hash in the manifest"), size)


def _verify(path: Path, name: str, sha256: str | None, size: int | None = None) -> None:
    """A file of a checkpoint is a plain one, of its size (None: bounded), with its hash (None: sealed in itself)."""
    file = path / name
    if file.resolve() != path.resolve() / name or not file.is_file():
        raise CheckpointError(f"{file} is missing, or a link: the checkpoint is damaged")
    found, most = file.stat().st_size, MAX_BYTES.get(name, MAX_OTHER_BYTES)
    if (found > most) if size is None else (found != size):
        raise CheckpointError(f"{file} is damaged: expected {f'at most {most}' if size is None else size:,} bytes, "
                              f"found {found:,}")
    if sha256 is not None and (actual := _sha256(file)) != sha256:
        raise CheckpointError(f"{file} is damaged: expected sha256 {sha256}, found {actual}")


def _verify_layout(state: Path, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Orbax's own files ask for plain arrays of these shapes and types, and for nothing else."""
    try:
        tree = json.loads((state / "_METADATA").read_bytes())
        entries = [(entry["key_metadata"], entry["value_metadata"]["value_type"])
                   for entry in tree["tree_metadata"].values()]
        plain = not (tree["use_ocdbt"] or tree["use_zarr3"]) and len(entries) == len(leaves) and all(
            len(keys) == 1 and keys[0]["key"] in leaves and kind == "np.ndarray" for keys, kind in entries)
        for name, leaf in leaves.items():
            array = json.loads((state / name / ".zarray").read_bytes())
            shape, dtype = list(leaf.shape), leaf.dtype.name if leaf.dtype.kind == "V" else leaf.dtype.str
            plain &= (array["shape"], array["chunks"], array["dtype"], array["order"]) == (shape, shape, dtype, "C")
            plain &= array["compressor"] is None and array["filters"] is None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise CheckpointError(f"{state} does not hold the arrays of this config as plain zarr: it is not ours")


def _restore(state: Path, config: Config, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in leaves}
    try:
        arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=False).restore(
            state.resolve(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (ValueError, KeyError, TypeError, MemoryError) as error:
        raise CheckpointError(f"orbax cannot read {state}: {error}") from None
    template = jax.eval_shape(lambda: _fresh(config))
    return jax.tree.unflatten(jax.tree.structure(template), [
        jax.random.wrap_key_data(arrays[name]) if _is_key(leaf) else jnp.asarray(arrays[name])
        for name, leaf in _named_leaves(template)])


def _fresh(config: Config) -> TrainState:
    return init_state(jax.random.key(0), config.model, config.hyper, config.train.batch_size)


def _arrays(state: TrainState) -> dict[str, Any]:
    """{leaf's name: NumPy array, or shape and type}; a PRNG key is its bits."""
    if not isinstance(state.step, jax.ShapeDtypeStruct):
        state = jax.device_get(jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state))
        return {name: np.asarray(leaf) for name, leaf in _named_leaves(state)}
    return {name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
            for name, leaf in _named_leaves(state)}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{leaf's name: shape} of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in _named_leaves(tree)}


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file at once and durably: a reader finds the old bytes or the new."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_bytes(data)
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Waits until a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directories(run_dir: Path) -> list[Path]:
    """The checkpoints' directories, by step."""
    return sorted((path for path in (run_dir / "checkpoints").glob("*") if re.fullmatch("[0-9]{8,10}", path.name)),
                  key=lambda path: int(path.name))


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
