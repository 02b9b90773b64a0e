"""Checkpoints: a directory each, whole or absent, with every byte verified before it is used.

    RUN/checkpoints/00000774/   manifest.json  config.json  vocab.json
                                state.safetensors (each array under its dotted name; a PRNG key is its bits)

The manifest seals itself, the sha256 of each file, and the length and sha256 of the run's metrics.jsonl at its step.
A checkpoint appears under its name by one rename, after all its bytes have reached the disk; only then are older ones
removed. A name that begins with a dot is unfinished or half removed, and is never read. Which checkpoint is *last* and
which is *best* follows from the manifests, so no label can go stale. A file is opened once, over no link, and its size
is bounded first: a stranger's checkpoint is only data. JAX is loaded only to save or to read arrays.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.config.config import Config
from jaxlm.data.vocab import Vocab
from jaxlm.errors import CheckpointError, RunDirError
from jaxlm.files import MAX_VOCAB_BYTES, Folder, explained, reason
from jaxlm.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.runs.metrics import Prefix

if TYPE_CHECKING:
    from jaxlm.training.step import TrainState

FORMAT = 3
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.safetensors"
MOST_BYTES = {MANIFEST: 1 << 20, "config.json": 1 << 20, "vocab.json": MAX_VOCAB_BYTES}
_STEP = re.compile("[0-9]{8,10}")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a run's results depend on."""
    found: dict[str, str] = dict.fromkeys(
        ("jaxlm", "jax", "jaxlib", "optax", "safetensors", "numpy"), "unknown"
    )
    for name in found:
        with suppress(
            PackageNotFoundError
        ):  # a source tree that is imported without being installed
            found[name] = version(name)
    return found


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of."""

    step: int  # windows trained
    epoch: int  # epochs finished
    valid_perplexity: float | None  # None in the middle of an epoch
    corpus: dict[str, str]  # its name, its sha256 and its vocabulary's
    metrics_bytes: int = 0  # of the run's metrics.jsonl
    metrics_sha256: str = Prefix().sha256
    versions: dict[str, str] = field(default_factory=library_versions)
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256
    words: int | None = None  # seen, of `keep_checkpoints`: it is kept for good
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
    state: "TrainState"


class Unreadable(CheckpointError):
    """A checkpoint that there is no memory or no permission to read now, and that may be intact."""


def save(run: Folder, state: Any, config: Config, vocab: Vocab, manifest: Manifest) -> None:
    """Writes one checkpoint durably, then removes the older ones that the config does not keep.

    Args:
        run: the run's directory, which the caller holds (`lock.lock`).
        state: a pytree of arrays, whole in the host's memory or on one device.
        manifest: what the checkpoint is of; its files are filled in here.
    Raises:
        RunDirError: the disk refuses; the checkpoints before this one are then unchanged.
    """
    from jaxlm.runs import state_arrays

    name = f"{manifest.step:08d}"
    remedy = "the checkpoints before it are whole: fix that, then resume with --resume"
    what = f"cannot save {run.path / FOLDER / name}"
    with explained(RunDirError, what, remedy), run.folder(FOLDER, create=True) as folder:
        contents = {
            "config.json": config.to_json().encode(),
            "vocab.json": vocab.to_json().encode(),
        }
        contents[STATE] = state_arrays.encoded(state)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        contents[MANIFEST] = to_hashed_json(asdict(replace(manifest, files=hashes))).encode()
        folder.clean()
        with folder.new_folder(name) as new:
            for file, data in contents.items():
                new.write(file, data)
            if folder.exists(name):  # a damaged one: this run was resumed from an older checkpoint
                folder.discard(name)
        found = manifests(run)
        kept = {*[*found][-config.train.keep_last :], best_step(found)}
        every = config.train.keep_every
        for step, saved in found.items():  # (one that cannot be read may have been kept for good)
            due = every and saved.valid_perplexity is not None and saved.epoch % every == 0
            if not (step in kept or saved.words or due):
                folder.discard(f"{step:08d}")


def set_aside_later(run: Folder, step: int) -> None:
    """Renames the checkpoints after the one that a run is resumed from, which cannot be read, to `STEP.damaged`.

    The metrics that they sealed are written again, so that none of them could be resumed from later.
    """
    with run.folder(FOLDER) as folder:
        for later, path in _listed(run).items():
            if later > step:
                folder.remove(aside := f"{path.name}.damaged")
                folder.rename(path.name, aside)
        folder.sync()


def manifests(run: str | Path | Folder, problems: list[str] | None = None) -> dict[int, Manifest]:
    """{step: manifest} of the run's checkpoints whose manifest is intact, by step.

    A sentence about each manifest that is missing or damaged is appended to `problems`. Raises CheckpointError where
    the checkpoints are behind a link, or cannot be listed.
    """
    found = {}
    for step, path in _listed(run).items():
        try:
            with _sound(path), Folder.open(path, follow=False) as folder:
                found[step] = _manifest(folder)
        except CheckpointError as error:
            if problems is not None and step in _listed(
                run
            ):  # (else a run that trains has just removed it)
                problems.append(str(error))
    return found


def best_step(found: Mapping[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity."""
    measured = {
        step: valid
        for step, one in found.items()
        if math.isfinite(valid := one.valid_perplexity or math.nan)
    }
    return min(measured, key=measured.__getitem__, default=None)


def find(run: str | Path | Folder, which: str | int = "last") -> Path:
    """The directory of the checkpoint `last` or `best`, or of a step. Raises CheckpointError if there is none."""
    found = _listed(run)
    if not found:
        raise CheckpointError(
            f"{Path(run)} holds no checkpoints: give the directory of a run that jaxlm trained"
        )
    if which in ("last", "best"):
        step = max(found) if which == "last" else best_step(manifests(run))
    else:
        step = int(which) if re.fullmatch("[0-9]{1,10}", str(which)) else None
    if step not in found:
        raise CheckpointError(
            f"{Path(run)} has no checkpoint {which!r}; it has {', '.join(map(str, found))}"
        )
    return found[step]


def load(run: str | Path | Folder, which: str | int = "last") -> Checkpoint:
    """Finds and reads a checkpoint. Where it is damaged, the CheckpointError offers the newest intact one."""
    path = find(run, which)
    try:
        return read(path)
    except CheckpointError as error:
        if find(run, which) != path:
            return load(run, which)  # a run that trains has removed it meanwhile
        intact, _ = newest_intact(run)
        offer = "none of this run's is intact"
        if intact:
            offer = (
                f"this run's newest intact one is {intact.manifest.step}: name it with --checkpoint"
            )
        raise CheckpointError(f"{error}; {offer}") from None


def newest_intact(run: str | Path | Folder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not. Raises Unreadable."""
    problems = []
    for path in reversed(_listed(run).values()):
        try:
            return read(path), problems
        except Unreadable:
            raise
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def read(path: str | Path) -> Checkpoint:
    """A checkpoint, every byte of it verified, from its own directory; `load` finds it in a run's.

    Raises CheckpointError, naming the file that is not as it was saved.
    """
    from jaxlm.runs import state_arrays

    path = Path(path)
    with _sound(path, "cannot be read"), Folder.open(path, follow=False) as folder:
        manifest = _manifest(folder)
        config = Config.from_json(_verified(folder, manifest, "config.json").decode())
        template = state_arrays.shapes_of_state(config)
        with explained(Unreadable, f"{path} cannot be read"):
            most = state_arrays.most_bytes(template, "its config")
        for other in sorted({*manifest.files, *folder.names()} - {*MOST_BYTES, STATE}):
            raise CheckpointError(f"{path}/{other} does not belong to a checkpoint of this config")
        state = state_arrays.decoded(
            _verified(folder, manifest, STATE, most), template, path / STATE
        )
        vocab = Vocab.from_json(_verified(folder, manifest, "vocab.json").decode())
        words = config.model.vocab_size
        if words != len(vocab):
            raise ValueError(
                f"vocab.json has {len(vocab)} words for a model of {words}: it is another model's"
            )
        return Checkpoint(manifest, config, vocab, state)


@contextmanager
def _sound(path: Path, problem: str = "is damaged") -> Iterator[None]:
    """Turns an error of reading into a CheckpointError with the problem; Unreadable without memory or permission."""
    with explained(CheckpointError, f"{path} {problem}"):
        try:
            yield
        except (PermissionError, MemoryError) as error:
            raise Unreadable(f"{path} cannot be read: {reason(error)}") from None


def _manifest(folder: Folder) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not the bytes that were sealed."""
    with _sound(folder.path / MANIFEST):
        tree = from_hashed_json(folder.read(MANIFEST, MOST_BYTES[MANIFEST]))
        if tree.get("format") != FORMAT:
            raise ValueError(
                f"its format is {str(tree.get('format'))[:20]!r}; this version of jaxlm reads {FORMAT}"
            )
        if {*tree, "words"} != {*Manifest.__dataclass_fields__} or not _well_formed(
            manifest := Manifest(**tree)
        ):
            raise ValueError("it holds something else than a manifest does")
        if _STEP.fullmatch(folder.path.name) and int(folder.path.name) != manifest.step:
            raise ValueError(f"it is that of window {manifest.step}")
        return manifest


def _well_formed(manifest: Manifest) -> bool:
    tables = (manifest.corpus, manifest.versions, manifest.files)
    return (
        all(type(count) is int and 0 <= count < 2**31 for count in (manifest.step, manifest.epoch))
        and type(manifest.metrics_bytes) is int
        and manifest.metrics_bytes >= 0
        and type(manifest.valid_perplexity) in (float, type(None))
        and type(manifest.words) in (int, type(None))
        and all(isinstance(table, dict) for table in tables)
        and all(
            isinstance(word, str) for table in tables for item in table.items() for word in item
        )
        and manifest.corpus.keys() >= {"name", "sha256"}
    )


def _verified(folder: Folder, manifest: Manifest, name: str, most: int | None = None) -> bytes:
    """The bytes of a file, of at most `most`. Raises CheckpointError where they are not those that were sealed."""
    with _sound(folder.path / name):
        data = folder.read(name, MOST_BYTES[name] if most is None else most)
        actual = hashlib.sha256(data).hexdigest()
        if actual != (expected := manifest.files.get(name)):
            raise ValueError(f"expected sha256 {expected}, found {actual}")
        return data


def _listed(run: str | Path | Folder) -> dict[int, Path]:
    """{step: directory} of a run's checkpoints, by step. Raises CheckpointError where they are behind a link."""
    path = Path(run) / FOLDER
    names = []
    what = f"{path} cannot be read"
    with (
        explained(CheckpointError, what),
        suppress(FileNotFoundError),
        Folder.open(path, follow=False) as folder,
    ):
        names = sorted(filter(_STEP.fullmatch, folder.names()), key=int)
    return {int(name): path / name for name in names if name == f"{int(name):08d}"}
