"""Checkpoints: a directory each, either whole or not there, and never silently wrong.

A checkpoint appears under its name by one rename, after every byte has reached the disk, and older ones go only then;
a name that begins with a dot is unfinished or half removed, and nobody reads it. Nothing is restored that differs from
what its manifest seals (`manifest.py`). Which ones there are is `listing.py`'s.

    RUN/checkpoints/00000774/   manifest.json  config.json  vocab.json  metrics.jsonl (the run's, until here)
                                state.safetensors (each array under its dotted name; a PRNG key is its bits)
"""

import contextlib
import re
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
from jaxlm.files import Folder, reason
from jaxlm.runs import arrays, listing, memory
from jaxlm.runs import manifest as sealed
from jaxlm.runs.manifest import Manifest
from jaxlm.training.step import TrainState, fresh_state

MOST_LAYERS = 1000  # tracing more takes minutes
_LEFTOVER = re.compile(r"\.[0-9]{8,10}\.(partial|removed)")
_DAMAGE = (JaxlmError, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    path: Path
    manifest: Manifest
    config: Config
    vocab: Vocab
    metrics: bytes  # the run's metrics.jsonl, until here
    state: TrainState


def save(run: Folder, state: Any, config: Config, vocab: Vocab, manifest: Manifest) -> Path:
    """Writes one checkpoint durably, then removes the older ones that the config does not keep.

    Args:
        run: the run's directory, which the caller holds (`lock.lock`); its metrics.jsonl is saved with it.
        state: a pytree of arrays, whole in the host's memory or on one device.
        config: the run's.
        vocab: the run's.
        manifest: what the checkpoint is of; its files are filled in here.
    Returns:
        The checkpoint's directory.
    Raises:
        RunDirError: the disk refuses; what was saved before is then as it was.
    """
    name = f"{manifest.step:08d}"
    partial = f".{name}.partial"
    try:
        with run.folder(listing.FOLDER, create=True) as folder:
            _clean(folder)
            try:
                with folder.folder(partial, create=True) as new:
                    sealed.write(new, manifest, _contents(run, state, config, vocab))
                if folder.exists(name):  # a damaged one: this run was resumed from an older one
                    _remove(folder, name)
                folder.rename(partial, name)
                folder.sync()
            except BaseException:
                with contextlib.suppress(OSError):
                    folder.remove(partial)
                raise
            _prune(folder, manifest.step, config.train)
    except (OSError, ValueError, MemoryError) as error:
        raise RunDirError(
            f"cannot save {run.path / listing.FOLDER / name}: {reason(error)}; the checkpoints before it "
            f"are whole: fix that, then resume with --resume"
        ) from None
    return run.path / listing.FOLDER / name


def _contents(run: Folder, state: Any, config: Config, vocab: Vocab) -> dict[str, bytes]:
    leaves = named_leaves(jax.device_get(_without_keys(state)))
    named = {name: np.asarray(leaf) for name, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two arrays of the state have one name")
    return {
        "config.json": config.to_json().encode(),
        "vocab.json": vocab.to_json().encode(),
        "metrics.jsonl": run.read("metrics.jsonl", sealed.TEXTS["metrics.jsonl"]),
        arrays.FILE: arrays.encoded(named),
    }


def _prune(folder: Folder, step: int, policy: TrainConfig) -> None:
    """Keeps the last `keep_last`, the best, and one every `keep_every` epochs.

    One of a later step was found damaged when the run was resumed; it goes too, or it would pass for the last.
    """
    found = {at: manifest for at, manifest in listing.intact(folder).items() if at <= step}
    kept = {*sorted(found)[-policy.keep_last :], listing.best_step(found)}
    if policy.keep_every:
        kept |= {
            at
            for at, manifest in found.items()
            if manifest.valid_perplexity is not None and manifest.epoch % policy.keep_every == 0
        }
    for at, name in listing.names(folder).items():
        if at not in kept:
            _remove(folder, name)


def _remove(folder: Folder, name: str) -> None:
    """Out of sight by one rename, then away: killed in between, it is not half a checkpoint."""
    hidden = f".{name}.removed"
    folder.rename(name, hidden)
    with contextlib.suppress(OSError):  # (`clean` removes it later)
        folder.remove(hidden)


def clean(run: Folder) -> None:
    """Removes what a killed process left unfinished or half removed; the caller holds the run's directory."""
    run.clean()
    if run.exists(listing.FOLDER):
        with run.folder(listing.FOLDER) as folder:
            _clean(folder)


def _clean(folder: Folder) -> None:
    for name in folder.names():
        if _LEFTOVER.fullmatch(name):
            folder.remove(name)


def load(run: str | Path | Folder, which: str = "last") -> Checkpoint:
    """Finds and reads a checkpoint. Where it is damaged, the CheckpointError offers the newest intact one."""
    path = listing.find(run, which)
    try:
        with listing.checkpoints(run) as folder:
            if folder is None:
                raise CheckpointError(f"{path} was removed")
            return _read_in(folder, path.name)
    except CheckpointError as error:
        intact, _ = newest_intact(run)
        offer = (
            "none of this run's is intact"
            if intact is None
            else (f"this run's newest intact one is {intact.manifest.step}: name it with --checkpoint")
        )
        raise CheckpointError(f"{error}; {offer}") from None


def newest_intact(run: str | Path | Folder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    problems = []
    with listing.checkpoints(run) as folder:
        if folder:
            for name in reversed(listing.names(folder).values()):
                try:
                    return _read_in(folder, name), problems
                except CheckpointError as error:
                    problems.append(str(error))
    return None, problems


def read(path: str | Path) -> Checkpoint:
    """A checkpoint, every byte of it verified, from its own directory; `load` finds it in a run's.

    Raises CheckpointError, naming the file that is not as it was saved.
    """
    try:
        with Folder.open(path) as folder:
            return _read(folder)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None


def _read_in(folder: Folder, name: str) -> Checkpoint:
    try:
        with folder.folder(name) as checkpoint:
            return _read(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{folder.path / name} is damaged: {reason(error)}") from None


def _read(folder: Folder) -> Checkpoint:
    path = folder.path
    try:
        manifest = sealed.read(folder)
        config = Config.from_json(sealed.verified(folder, manifest, "config.json").decode())
        template = state_shapes(config)
        leaves = dict(named_leaves(jax.eval_shape(_without_keys, template)))
        memory.check(2 * sum(map(arrays.nbytes, leaves.values())), f"the config of {path}", "it cannot be loaded here")
        found = arrays.read(folder, manifest, leaves)
        vocab = Vocab.from_json(sealed.verified(folder, manifest, "vocab.json").decode())
        if len(vocab) != config.model.vocab_size:
            raise CheckpointError(
                f"{path / 'vocab.json'} has {len(vocab)} words for a model of "
                f"{config.model.vocab_size}: it is another model's"
            )
        metrics = sealed.verified(folder, manifest, "metrics.jsonl")
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    state = jax.tree.unflatten(
        jax.tree.structure(template),
        [
            jax.random.wrap_key_data(jax.device_put(found[name])) if _is_key(leaf) else jax.device_put(found[name])
            for name, leaf in named_leaves(template)
        ],
    )
    return Checkpoint(path, manifest, config, vocab, metrics, state)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{leaf's name: shape} of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree)}


def array_bytes(state: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """{array's name: (dtype, shape, bytes)} of a state, a PRNG key as its bits: equal where states are."""
    return {
        name: (array.dtype.name, array.shape, array.tobytes())
        for name, array in named_leaves(jax.device_get(_without_keys(state)))
    }


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(dotted name, leaf) of each leaf of a tree."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def state_shapes(config: Config) -> Any:
    """The shapes and dtypes of a config's training state, nothing allocated; all that is known here of the state."""
    if (layers := len(config.model.hidden_sizes)) > MOST_LAYERS:
        raise JaxlmError(f"a model of {layers:,} layers: expected at most {MOST_LAYERS:,}")
    return fresh_state.eval_shape(config.recipe, np.uint32(0), config.train.batch_size, config.train.patience)


def check_memory(config: Config) -> None:
    """Raises JaxlmError where this machine has no memory for what a config's training needs at the least.

    That is its state, a gradient and an update of each parameter, and what a window saves for its gradient.
    """
    try:
        template = state_shapes(config)
        needed = sum(arrays.nbytes(leaf) for _, leaf in named_leaves(jax.eval_shape(_without_keys, template)))
        needed += 2 * sum(arrays.nbytes(leaf) for _, leaf in named_leaves(template.params))
        counts, model = config.train, config.model
        needed += 4 * counts.longest * counts.batch_size * (model.embedding_size + 6 * sum(model.hidden_sizes))
    except (OverflowError, ValueError, TypeError) as error:
        raise JaxlmError(f"no model of this config can be made: {error}") from None
    memory.check(needed, "training this config", "take smaller embedding_size, hidden_sizes, vocab_size or batch_size")


def _without_keys(state: Any) -> Any:
    """Each PRNG key as its bits."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
