"""Which checkpoints a run has, read from their manifests alone. Nothing here loads JAX.

Which one is *last* and which is *best* follows from the manifests, so no label can go stale.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxlm.errors import CheckpointError
from jaxlm.files import Folder, held, reason
from jaxlm.runs import manifest as sealed
from jaxlm.runs.manifest import Manifest

FOLDER = "checkpoints"


def manifests(run: str | Path | Folder) -> dict[int, Manifest]:
    """step -> manifest, of every checkpoint whose manifest is intact, by step."""
    with checkpoints(run) as folder:
        return intact(folder) if folder else {}


def damaged(run: str | Path | Folder) -> list[str]:
    """A sentence for each checkpoint whose manifest is missing or damaged."""
    with checkpoints(run) as folder:
        found = [_manifest(folder, name) for name in names(folder).values()] if folder else []
    return [str(problem) for problem in found if isinstance(problem, CheckpointError)]


def saved_metrics(run: str | Path | Folder) -> bytes:
    """The run's metrics.jsonl as the newest checkpoint has it that is intact in this respect; empty without one."""
    with checkpoints(run) as folder:
        if folder:
            for step, manifest in reversed(intact(folder).items()):
                with contextlib.suppress(CheckpointError, OSError), folder.folder(f"{step:08d}") as checkpoint:
                    return sealed.verified(checkpoint, manifest, "metrics.jsonl")
    return b""


def intact(folder: Folder) -> dict[int, Manifest]:
    """The same, of the folder of a run's checkpoints."""
    return {
        step: found for step, name in names(folder).items() if isinstance(found := _manifest(folder, name), Manifest)
    }


def _manifest(folder: Folder, name: str) -> Manifest | CheckpointError:
    try:
        with folder.folder(name) as checkpoint:
            return sealed.read(checkpoint)
    except OSError as error:
        return CheckpointError(f"{folder.path / name} is damaged: {reason(error)}")
    except CheckpointError as error:
        return error


def best_step(found: Mapping[int, Manifest]) -> int | None:
    """The step with the lowest validation perplexity."""
    measured = [
        (manifest.valid_perplexity, step)
        for step, manifest in found.items()
        if manifest.valid_perplexity is not None and math.isfinite(manifest.valid_perplexity)
    ]
    return min(measured)[1] if measured else None


def find(run: str | Path | Folder, which: str = "last") -> Path:
    """The directory of the checkpoint `last` or `best`, or of a step. Raises CheckpointError if there is none."""
    with checkpoints(run) as folder:
        where = run.path if isinstance(run, Folder) else run
        found = names(folder) if folder else {}
        if not folder or not found:
            raise CheckpointError(f"{where} holds no checkpoints: give the directory of a run that jaxlm trained")
        step = (
            max(found)
            if which == "last"
            else best_step(intact(folder))
            if which == "best"
            else int(which)
            if re.fullmatch("[0-9]{1,10}", which)
            else None
        )
        if step not in found:
            raise CheckpointError(f"{where} has no checkpoint {which!r}; it has {', '.join(map(str, found))}")
        return folder.path / found[step]


@contextlib.contextmanager
def checkpoints(run: str | Path | Folder) -> Iterator[Folder | None]:
    """The folder of a run's checkpoints; None where there is none. Raises CheckpointError where it is a link."""
    with contextlib.ExitStack() as stack:
        try:
            held_run = stack.enter_context(held(run))
            folder = stack.enter_context(held_run.folder(FOLDER)) if held_run.exists(FOLDER) else None
        except FileNotFoundError:
            folder = None
        except (OSError, ValueError) as error:
            where = getattr(error, "filename", None) or run
            raise CheckpointError(f"{where} cannot be read: {reason(error)}") from None
        yield folder


def names(folder: Folder) -> dict[int, str]:
    """step -> name of each checkpoint, by step."""
    return {
        step: f"{step:08d}"
        for step in sorted(int(name) for name in folder.names() if sealed.STEP.fullmatch(name))
        if folder.exists(f"{step:08d}")
    }
