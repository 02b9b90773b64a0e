"""Checkpoints: a directory each, either whole or not there, and never silently wrong.

Orbax writes and reads the arrays. Around it stand two ideas. A checkpoint appears under its name by one rename,
after every byte has reached the disk, and older ones go only then; a name that begins with a dot is unfinished or
half removed, and nobody reads it. And nothing is restored that differs from what its manifest seals
(`manifest.py`). Which one is *last* and which is *best* follows from the manifests, so no label can go stale.

    RUN/checkpoints/00000774/   manifest.json  config.json  vocab.json  metrics.jsonl (the run's, until here)
                                state/ (orbax: one uncompressed zarr chunk for each array)
"""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.settings import TrainConfig
from jaxlm.data.vocab import Vocab
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.runs import manifest as sealed
from jaxlm.runs.manifest import Manifest
from jaxlm.training.step import TrainState, init_state

RAW = {"use_ocdbt": False, "use_compression": False}  # orbax's plainest form: a file of raw bytes for each array


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    path: Path
    manifest: Manifest
    config: Config
    vocab: Vocab
    state: TrainState


def save(run_dir: Path, state: TrainState, config: Config, vocab: Vocab, manifest: Manifest) -> Path:
    """Writes one checkpoint durably, then removes the older ones that the config does not keep; its directory.

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
        if final.exists():  # a damaged one, older than which this run was resumed from
            _remove(final)
        os.rename(partial, final)
        fsync(folder)
        fsync(run_dir)
        _prune(run_dir, manifest.step, config.train)
    except (OSError, ValueError) as error:  # ValueError: what orbax makes of a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise RunDirError(f"cannot save {final}: {getattr(error, 'strerror', None) or error}; the checkpoints "
                          f"before it are whole: mend that, then go on with --resume") from None
    return final


def _write(partial: Path, metrics: Path, state: TrainState, config: Config, vocab: Vocab, manifest: Manifest) -> None:
    # Orbax's handler without its Checkpointer: the rename is ours, and equal states give equal bytes, no clock.
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(jax.device_get(_without_keys(state)))}
    _reserve(partial / "reserved", [array.nbytes for array in arrays.values()])
    ocp, folder = _orbax(partial)
    ocp.PyTreeCheckpointHandler(**RAW).save(folder, args=ocp.args.PyTreeSave(arrays))
    (partial / "config.json").write_text(config.to_json(), encoding="utf-8")
    (partial / "vocab.json").write_text(vocab.to_json(), encoding="utf-8")
    shutil.copyfile(metrics, partial / "metrics.jsonl")
    sealed.write(partial, manifest)
    with ThreadPoolExecutor(16) as together:  # the disk's journal serves them at once: six times as fast
        list(together.map(fsync, (*partial.rglob("*"), partial)))


def _reserve(folder: Path, sizes: Iterable[int]) -> None:
    """Raises OSError where the disk has no room for the arrays: orbax would say it with its threads' tracebacks."""
    folder.mkdir()
    for place, size in enumerate(sizes):
        with open(folder / str(place), "wb") as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size + 8192)
    shutil.rmtree(folder)


def _prune(run_dir: Path, step: int, policy: TrainConfig) -> None:
    """Keeps the last `keep_last`, the best, and one every `keep_every` epochs.

    One of a later step was found damaged when the run was resumed; it goes too, or it would pass for the last.
    """
    found = {at: manifest for at, manifest in manifests(run_dir).items() if at <= step}
    kept = {*sorted(found)[-policy.keep_last:], best_step(found)}
    if policy.keep_every:
        kept |= {at for at, manifest in found.items()
                 if manifest.valid_perplexity is not None and manifest.epoch % policy.keep_every == 0}
    for at, path in _directories(run_dir).items():
        if at not in kept:
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
    """step -> manifest, of every checkpoint whose manifest is intact, by step."""
    found = {}
    for step, path in _directories(run_dir).items():
        with contextlib.suppress(CheckpointError):
            found[step] = sealed.read(path)
    return found


def best_step(found: Mapping[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity."""
    measured = [(manifest.valid_perplexity, step) for step, manifest in found.items()
                if manifest.valid_perplexity is not None and math.isfinite(manifest.valid_perplexity)]
    return min(measured)[1] if measured else None


def find(run_dir: Path, which: str = "last") -> Path:
    """The directory of the checkpoint `last` or `best`, or of a step. Raises CheckpointError if there is none."""
    steps = _directories(run_dir)
    if not steps:
        raise CheckpointError(f"{run_dir} holds no checkpoints: give the directory of a run that jaxlm trained")
    step = (max(steps) if which == "last" else best_step(manifests(run_dir)) if which == "best"
            else int(which) if re.fullmatch("[0-9]{1,10}", which) else None)
    if step not in steps:
        raise CheckpointError(f"{run_dir} has no checkpoint {which!r}; it has {', '.join(map(str, steps))}")
    return steps[step]


def load(run_dir: Path, which: str = "last") -> Checkpoint:
    """Finds and reads a checkpoint. Where it is damaged, the CheckpointError offers the newest intact one."""
    path = find(run_dir, which)
    try:
        return read(path)
    except CheckpointError as error:
        intact, _ = newest_intact(run_dir)
        offer = "none of this run's is intact" if intact is None else (
            f"this run's newest intact one is {intact.manifest.step}: name it with --checkpoint")
        raise CheckpointError(f"{error}; {offer}") from None


def newest_intact(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    problems = []
    for path in reversed(_directories(run_dir).values()):
        try:
            return read(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read(path: Path) -> Checkpoint:
    """A checkpoint, every byte of it verified. Raises CheckpointError, naming the file that is not as it was."""
    try:
        manifest = sealed.read(path)
        config = Config.from_json(sealed.verified_text(path, manifest, "config.json"))
        if len(config.model.hidden_sizes) > len(manifest.files):
            raise CheckpointError(f"{path} has a config of {len(config.model.hidden_sizes)} layers, and fewer files")
        template = jax.eval_shape(lambda: _fresh(config))  # shapes alone: nothing is allocated
        leaves = dict(_named_leaves(jax.eval_shape(_without_keys, template)))
        sealed.verify(path, manifest, leaves)
        vocab = Vocab.from_json(sealed.verified_text(path, manifest, "vocab.json"))
        if len(vocab) != config.model.vocab_size:
            raise CheckpointError(f"{path / 'vocab.json'} has {len(vocab)} words for a model of "
                                  f"{config.model.vocab_size}: it is another model's")
        ocp, folder = _orbax(path)
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in leaves}
        arrays = ocp.PyTreeCheckpointHandler(**RAW).restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except CheckpointError:
        raise
    except (JaxlmError, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    state = jax.tree.unflatten(jax.tree.structure(template), [
        jax.random.wrap_key_data(arrays[name]) if _is_key(leaf) else jnp.asarray(arrays[name])
        for name, leaf in _named_leaves(template)])
    return Checkpoint(path, manifest, config, vocab, state)


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


def _directories(run_dir: Path) -> dict[int, Path]:
    """step -> directory of each checkpoint, by step."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if re.fullmatch("[0-9]{8,10}", path.name)]
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def _orbax(checkpoint: Path) -> tuple[Any, Any]:
    """Orbax, and a checkpoint's folder of arrays as it wants it; loaded at the first save, for it takes a second."""
    import orbax.checkpoint as ocp
    from etils import epath

    return ocp, epath.Path(checkpoint.resolve()) / sealed.ARRAYS


def _fresh(config: Config) -> TrainState:
    return init_state(config.recipe, jax.random.key(0), config.train.batch_size)


def _without_keys(state: TrainState) -> TrainState:
    """Each PRNG key as its bits."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
