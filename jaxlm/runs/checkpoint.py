"""Checkpoints: a directory each, whole or absent, with every byte verified before it is used.

    RUN/checkpoints/00000774/   manifest.json  config.json  vocab.json
                                state.safetensors (each array under its dotted name; a PRNG key is
                                its bits)

The manifest carries its own sha256, that of each file, and the length and sha256 of the run's
metrics.jsonl at its step. A checkpoint appears under its name by one rename, after all its bytes
have reached the disk; only then are older ones removed. A name that begins with a dot is unfinished
or half removed, and is never read. Which checkpoint is *last* and which is *best* follows from the
manifests, so no label can go stale. A file is opened once, over no link, and its size is bounded
first: a stranger's checkpoint is only data.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxlm.base.errors import CheckpointError, RunDirError, reason
from jaxlm.base.files import Folder, explained
from jaxlm.base.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.config.config import Config
from jaxlm.data.vocab import MAX_VOCAB_BYTES, Vocab
from jaxlm.runs import ram, state_arrays
from jaxlm.runs.metrics import Prefix, RunDir
from jaxlm.runs.state_arrays import Part

FORMAT = 3
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.safetensors"
MOST_BYTES = {MANIFEST: 1 << 20, "config.json": 1 << 20, "vocab.json": MAX_VOCAB_BYTES}
LIBRARIES = ("jaxlm", "jax", "jaxlib", "optax", "safetensors", "numpy")
_STEP = re.compile("[0-9]{8,10}")


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that a run's results depend on, read once."""
    versions: dict[str, str] = dict.fromkeys(LIBRARIES, "unknown")
    for name in versions:
        with suppress(PackageNotFoundError):  # a source tree that is imported uninstalled
            versions[name] = version(name)
    return versions


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    step: int  # windows trained
    epoch: int  # epochs finished
    valid_perplexity: float | None  # None in the middle of an epoch
    corpus: dict[str, str]  # its name, its sha256 and its vocabulary's
    metrics_bytes: int = 0  # of the run's metrics.jsonl
    metrics_sha256: str = Prefix().sha256
    versions: dict[str, str] = field(default_factory=library_versions)
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256
    words: int | None = None  # the milestone of `keep_checkpoints` for which it is kept for good
    format: int = FORMAT

    @property
    def metrics(self) -> Prefix:
        """The lines of the run's metrics.jsonl at this step."""
        return Prefix(self.metrics_bytes, self.metrics_sha256)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    manifest: Manifest
    config: Config
    vocab: Vocab
    state: Any  # the TrainState, or the part of it that was asked for


class Unreadable(CheckpointError):
    """A checkpoint that cannot be read now, for want of memory or permission; it may be intact."""


def save(
    run: Folder,
    state: Any,
    config: Config,
    vocab: Vocab,
    manifest: Manifest,
) -> None:
    """Writes one checkpoint durably, then removes the older ones that the config does not keep.

    Args:
        run: The run's directory, which the caller holds (`lock.lock`).
        state: A pytree of arrays, whole in the host's memory or on one device.
        config: The run's config.
        vocab: The vocabulary of the run's corpus.
        manifest: What the checkpoint holds; its `files` are filled in here.

    Raises:
        RunDirError: The disk refuses; the checkpoints before this one are then unchanged.
    """
    name = f"{manifest.step:08d}"
    remedy = "the checkpoints before it are whole: fix that, then resume with --resume"
    problem = f"cannot save {run.path / FOLDER / name}"
    with explained(RunDirError, problem, remedy), run.folder(FOLDER, create=True) as folder:
        contents = {
            "config.json": config.to_json().encode(),
            "vocab.json": vocab.to_bytes(),
            STATE: state_arrays.encoded(state),
        }
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        contents[MANIFEST] = to_hashed_json(asdict(replace(manifest, files=hashes))).encode()
        folder.clean()
        with folder.new_folder(name) as new:
            for file, data in contents.items():
                new.write(file, data)
            if folder.exists(name):
                # It is damaged: the run was resumed from an older checkpoint.
                folder.discard(name)
        # A checkpoint whose manifest cannot be read may have been kept for good: it stays.
        saved = manifests(run)
        newest = list(saved)[-config.train.keep_last :]
        best = best_step(saved)
        for step, older in saved.items():
            if step not in newest and step != best and not _kept_for_good(older, config):
                folder.discard(f"{step:08d}")


def _kept_for_good(manifest: Manifest, config: Config) -> bool:
    """Whether a checkpoint is one of `keep_checkpoints`, or of each `keep_every`-th epoch."""
    if manifest.words:
        return True
    every = config.train.keep_every
    if not every or manifest.valid_perplexity is None:
        return False
    return manifest.epoch % every == 0


def set_aside_later(
    run: Folder,
    step: int,
    ending: str = "damaged",
) -> None:
    """Renames the checkpoints after the step that a run is resumed from to `STEP.ending`.

    Their metrics will not be those of the resumed run, so no run could be resumed from them.

    Args:
        run: The run's directory, which the caller holds.
        step: The checkpoint that the run is resumed from.
        ending: Why they are not used: they are damaged, or the run diverged after them.
    """
    with run.folder(FOLDER) as folder:
        for later_step, path in _listed(run).items():
            if later_step > step:
                aside = f"{path.name}.{ending}"
                folder.remove(aside)
                folder.rename(path.name, aside)
        folder.sync()


def manifests(run: RunDir, problems: list[str] | None = None) -> dict[int, Manifest]:
    """The manifests of a run's checkpoints that are intact; no arrays are read.

    Args:
        run: The run's directory.
        problems: A sentence about each manifest that is missing or damaged is appended to it.

    Returns:
        {step: manifest}, by step.

    Raises:
        CheckpointError: The checkpoints are behind a link, or cannot be listed.
    """
    intact = {}
    for step, path in _listed(run).items():
        try:
            with _reading(path), Folder.open(path, follow=False) as folder:
                intact[step] = _manifest(folder)
        except CheckpointError as error:
            # A run that is training may have removed the checkpoint meanwhile.
            if problems is not None and step in _listed(run):
                problems.append(str(error))
    return intact


def best_step(manifests: Mapping[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity; None if none was validated."""
    measured = {}
    for step, manifest in manifests.items():
        valid = manifest.valid_perplexity
        if valid and math.isfinite(valid):
            measured[step] = valid
    return min(measured, key=measured.__getitem__, default=None)


def find(run: RunDir, which: str | int = "last") -> Path:
    """The directory of a checkpoint.

    Args:
        run: The run's directory.
        which: `last`, `best` or a step.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    folders = _listed(run)
    if not folders:
        raise CheckpointError(
            f"{Path(run)} holds no checkpoints: give the directory of a run that jaxlm trained"
        )
    step = None
    if which == "last":
        step = max(folders)
    elif which == "best":
        step = best_step(manifests(run))
    elif re.fullmatch("[0-9]{1,10}", str(which)):
        step = int(which)
    if step not in folders:
        steps = ", ".join(map(str, folders))
        raise CheckpointError(f"{Path(run)} has no checkpoint {which!r}; it has {steps}")
    return folders[step]


def load(
    run: RunDir,
    which: str | int = "last",
    part: Part = state_arrays.whole,
) -> Checkpoint:
    """Finds and reads a checkpoint.

    Args:
        run: The run's directory.
        which: `last`, `best` or a step.
        part: Picks the part of the state to decode, such as `state_arrays.evaluated`.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged; then the newest intact one
            is offered.
    """
    path = find(run, which)
    try:
        return read(path, part)
    except CheckpointError as error:
        if find(run, which) != path:
            return load(run, which, part)  # a run that is training has removed it meanwhile
        newest, _ = newest_intact(run, part)
        remedy = "none of this run's is intact"
        if newest:
            step = newest.manifest.step
            remedy = f"this run's newest intact one is {step}: name it with --checkpoint"
        raise CheckpointError(f"{error}; {remedy}") from None


def newest_intact(
    run: RunDir, part: Part = state_arrays.whole
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not.

    Args:
        run: The run's directory.
        part: Picks the part of the state to decode.

    Raises:
        Unreadable: One cannot be read now, and may be intact.
    """
    problems = []
    for path in reversed(_listed(run).values()):
        try:
            return read(path, part), problems
        except Unreadable:
            raise
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read(path: str | Path, part: Part = state_arrays.whole) -> Checkpoint:
    """A checkpoint from its own directory, every byte of it verified; `load` finds it in a run's.

    Args:
        path: The checkpoint's directory.
        part: Picks the part of the state to decode, and to have the memory for.

    Raises:
        CheckpointError: A file is not as it was saved, which is named.
        Unreadable: There is no memory or no permission to read it.
    """
    path = Path(path)
    with _reading(path, "cannot be read"), Folder.open(path, follow=False) as folder:
        manifest = _manifest(folder)
        config = Config.from_json(_verified(folder, manifest, "config.json").decode())
        template = state_arrays.shapes_of_state(config)
        with explained(Unreadable, f"{path} cannot be read"):
            needed = state_arrays.bytes_of(part(template))
            ram.check(needed, "its config", "it cannot be loaded here")
        strangers = sorted({*manifest.files, *folder.names()} - {*MOST_BYTES, STATE})
        if strangers:
            raise CheckpointError(
                f"{path}/{strangers[0]} does not belong to a checkpoint of this config"
            )
        state = _verified_state(folder, manifest, template, part)
        vocab = Vocab.from_json(_verified(folder, manifest, "vocab.json").decode())
        words = config.model.vocab_size
        if words != len(vocab):
            raise ValueError(
                f"vocab.json has {len(vocab)} words for a model of {words}: it is another model's"
            )
        return Checkpoint(manifest, config, vocab, state)


@contextmanager
def _reading(path: Path, problem: str = "is damaged") -> Iterator[None]:
    """Turns an error of reading a file into CheckpointError, or Unreadable if it may be intact."""
    with explained(CheckpointError, f"{path} {problem}"):
        try:
            yield
        except (PermissionError, MemoryError) as error:
            raise Unreadable(f"{path} cannot be read: {reason(error)}") from None


def _manifest(folder: Folder) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or damaged."""
    with _reading(folder.path / MANIFEST):
        tree = from_hashed_json(folder.read(MANIFEST, MOST_BYTES[MANIFEST]))
        written = tree.get("format")
        if written != FORMAT:
            raise ValueError(
                f"its format is {str(written)[:20]!r}; this version of jaxlm reads {FORMAT}"
            )
        if {*tree, "words"} != {*Manifest.__dataclass_fields__}:
            raise ValueError("it holds something else than a manifest does")
        manifest = Manifest(**tree)
        if not _well_formed(manifest):
            raise ValueError("it holds something else than a manifest does")
        if _STEP.fullmatch(folder.path.name) and int(folder.path.name) != manifest.step:
            raise ValueError(f"it is that of window {manifest.step}")
        return manifest


def _well_formed(manifest: Manifest) -> bool:
    """Whether the values, which a stranger may have written, are of their fields' types."""

    def fits(value: Any, kind: Any) -> bool:
        if kind == dict[str, str]:
            return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        return isinstance(value, kind) and not isinstance(value, bool)

    return (
        all(fits(getattr(manifest, declared.name), declared.type) for declared in fields(Manifest))
        and min(manifest.step, manifest.epoch, manifest.metrics_bytes) >= 0
        and max(manifest.step, manifest.epoch) < 2**31
        and manifest.corpus.keys() >= {"name", "sha256"}
    )


def _verified(
    folder: Folder,
    manifest: Manifest,
    name: str,
) -> bytes:
    """The bytes of a file. Raises CheckpointError where they are not those that were saved."""
    with _reading(folder.path / name):
        data = folder.read(name, MOST_BYTES[name])
        _check_hash(manifest, name, hashlib.sha256(data).hexdigest())
        return data


def _verified_state(
    folder: Folder,
    manifest: Manifest,
    template: Any,
    part: Part,
) -> Any:
    """A part of the state, from a file whose every byte is verified first."""
    path = folder.path / STATE
    most = state_arrays.most_file_bytes(template)
    with _reading(path), folder.reader(STATE) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"expected at most {most:,} bytes, found {size:,}")
        _check_hash(manifest, STATE, hashlib.file_digest(file, "sha256").hexdigest())
        return state_arrays.decoded(file, template, path, part)


def _check_hash(
    manifest: Manifest,
    name: str,
    actual: str,
) -> None:
    expected = manifest.files.get(name)
    if actual != expected:
        raise ValueError(f"expected sha256 {expected}, found {actual}")


def _listed(run: RunDir) -> dict[int, Path]:
    """{step: directory} of a run's checkpoints, by step. Raises CheckpointError."""
    path = Path(run) / FOLDER
    names = []
    with (
        explained(CheckpointError, f"{path} cannot be read"),
        suppress(FileNotFoundError),
        Folder.open(path, follow=False) as folder,
    ):
        names = sorted(filter(_STEP.fullmatch, folder.names()), key=int)
    return {int(name): path / name for name in names if name == f"{int(name):08d}"}
