"""Experiment trackers: metrics sent to TensorBoard or Weights & Biases, both optional."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.base.errors import JaxlmError

# Called with a step and values by tag, such as "train/cost".
OnMetrics = Callable[[int, Mapping[str, float]], object]
PROJECT = "jaxlm"
FLUSH_SECONDS = 10


class Tracker(NamedTuple):
    """An open run of a tracker."""

    log: Callable[[int, dict[str, float]], object]  # of a step's values by tag
    close: Callable[[], object]


@contextmanager
def tracked(
    name: str,
    run_dir: str | Path,
    config: Mapping[str, Any],
) -> Iterator[OnMetrics]:
    """Opens a run of a tracker; a later failure ends the tracking with a warning, never the run.

    TensorBoard's files go into the run directory. Weights & Biases names the run by it; where it
    sends metrics (a server, a folder, offline) is its own setting.

    Args:
        name: One of `TRACKERS`.
        run_dir: The run directory.
        config: What the tracker records of the run.

    Yields:
        A function for `train(on_metrics=...)`.

    Raises:
        JaxlmError: The tracker is unknown, is not installed, or cannot be opened.
    """
    if name not in TRACKERS:
        raise JaxlmError(
            f"unknown tracker {name!r}: expected one of {', '.join(TRACKERS)}; "
            "others take metrics by train(on_metrics=...)"
        )
    try:
        tracker = TRACKERS[name](Path(run_dir).absolute(), dict(config))
    except ImportError as error:
        package = _INSTALLED_AS[name]
        raise JaxlmError(
            f"{name}, which --track {name} needs, cannot be imported ({error}): "
            f"pip install {package}"
        ) from None
    except Exception as error:  # a tracker's code may raise anything, also where it is imported
        raise JaxlmError(f"{name} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    failed = False

    def log(step: int, values: Mapping[str, float]) -> None:
        nonlocal failed
        if not failed:
            numbers = {tag: float(value) for tag, value in values.items()}
            failed = not _quietly(name, tracker.log, step, numbers)

    try:
        yield log
    finally:
        _quietly(name, tracker.close)  # also after a failure


def _quietly(
    name: str,
    call: Callable[..., object],
    *arguments: object,
) -> bool:
    """Whether a call of a tracker succeeds; if not, a warning says why."""
    try:
        call(*arguments)
    except Exception as error:
        warnings.warn(
            f"{name}'s tracking ends here, the run continues: {error}", RuntimeWarning, stacklevel=3
        )
        return False
    return True


def _tensorboard(run_dir: Path, config: dict[str, Any]) -> Tracker:
    files: Any = import_module("tensorboardX.event_file_writer")
    events: Any = import_module("tensorboardX.proto.event_pb2")
    summaries: Any = import_module("tensorboardX.proto.summary_pb2")
    folder = run_dir / "tensorboard"
    writer = None
    next_flush = 0.0

    def log(step: int, values: dict[str, float]) -> None:
        nonlocal writer, next_flush
        now = time.time()
        if writer is None:  # at the first window: by then the run directory is begun or resumed
            folder.mkdir(exist_ok=True)
            writer = files.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            # TensorBoard then hides what an interrupted run logged from this step on.
            start = events.SessionLog(status=events.SessionLog.START)
            first = step + ("train/cost" not in values)
            writer.write_event(events.Event(wall_time=now, step=first, session_log=start))
        scalars = [
            summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
        ]
        writer.write_event(
            events.Event(wall_time=now, step=step, summary=summaries.Summary(value=scalars))
        )
        if now >= next_flush:
            writer.flush()
            next_flush = now + FLUSH_SECONDS

    return Tracker(log, lambda: writer and writer.close())


def _wandb(run_dir: Path, config: dict[str, Any]) -> Tracker:
    wandb: Any = import_module("wandb")
    wandb.init(project=PROJECT, name=run_dir.name, config=config)
    return Tracker(lambda step, values: wandb.log(values, step=step), wandb.finish)


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
_INSTALLED_AS = {"tensorboard": "'jaxlm[tensorboard]'", "wandb": "wandb"}  # by pip
