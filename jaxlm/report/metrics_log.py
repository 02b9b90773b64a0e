"""The writer of a run's `metrics.jsonl`: new, or continued from a checkpoint's."""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from jaxlm.errors import RunDirError
from jaxlm.files import Folder, reason
from jaxlm.report.metrics import NAME, SERIES, read_bytes, rows_of
from jaxlm.report.tensorboard import TensorBoard

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from jaxlm.report.trackers import OnMetrics


def finite_windows(costs: "ArrayLike", grad_norms: "ArrayLike") -> np.ndarray:
    """Whether windows have a finite cost and gradient: no update is made of one that has not.

    Args:
        costs: any shape.
        grad_norms: the same shape.

    Returns:
        Booleans of that shape.
    """
    return np.isfinite(costs) & np.isfinite(grad_norms)  # apart: their sum could overflow


class MetricsLog:
    """Writes a run's metrics; a context manager.

    Args:
        folder: the run directory, held by the caller for as long as the log is open.
        corpus: the corpus's name, in the line of every result.
        bptt_length: the steps of a window whose line does not say otherwise.
        offset: bytes to keep of the file, from `sync`, when a run is resumed; None: the run is new.
        tensorboard: whether to write TensorBoard's event files too.
        on_metrics: called with each window's and each result's (step, values by tag), as TensorBoard has them.

    Attributes:
        skipped: in each epoch, the windows whose cost or gradient is not finite.

    Raises:
        RunDirError: A new run's file exists, the file is shorter than `offset`, or it cannot be written.
        JaxlmError: A line before `offset` is damaged.
    """

    def __init__(
        self,
        folder: Folder,
        corpus: str,
        bptt_length: int,
        *,
        offset: int | None = None,
        tensorboard: bool = True,
        on_metrics: "OnMetrics | None" = None,
    ):
        self._folder, self._corpus, self._bptt_length, self._on_metrics = folder, corpus, bptt_length, on_metrics
        if offset is None and folder.exists(NAME):
            raise RunDirError(f"{folder.path / NAME} exists: resume its run, or choose a new directory")
        kept = read_bytes(folder)[:offset] if offset else b""
        if offset and not (len(kept) == offset and kept.endswith(b"\n")):
            raise RunDirError(
                f"{folder.path / NAME} held {offset} bytes of whole lines when its checkpoint was "
                f"saved, and no longer does: restore it from a copy"
            )
        self._step = 0
        self.skipped: Counter[int] = Counter()
        self._cost: defaultdict[int, float] = defaultdict(float)  # of each epoch, summed in order of the windows
        self._steps: Counter[int] = Counter()
        self._count([row for row in rows_of(kept, folder.path / NAME) if row["kind"] == "window"])
        with ExitStack() as stack:
            self._file, self._timing = (
                stack.enter_context(_appending(folder, name)) for name in (NAME, "timing.jsonl")
            )
            with _disk(folder.path / NAME):
                self._file.truncate(len(kept))
            if tensorboard:
                self._board = TensorBoard(folder, self._step + 1)
                stack.callback(self._board.close)
            else:
                self._board = None
            self._open = stack.pop_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        with _disk(self._folder.path / NAME):
            self._open.close()

    def windows(
        self,
        first_step: int,
        epoch: int,
        costs: "ArrayLike",
        grad_norms: "ArrayLike",
        learning_rates: "ArrayLike",
        steps: "ArrayLike | None" = None,
    ) -> None:
        """Writes a line for each of n windows.

        Args:
            first_step: the first one's step, from 1 in the run.
            epoch: their epoch, from 1.
            costs: float32 [n], nats: the sum over a window's steps of the batch's mean.
            grad_norms: float32 [n], the global norm before clipping.
            learning_rates: float32 [n].
            steps: integers [n], each window's length (default: bptt_length for all).

        Raises:
            RunDirError: The file cannot be written.
        """
        series = [np.asarray(column, np.float32) for column in (costs, grad_norms, learning_rates)]
        rows = [
            {"kind": "window", "step": step, "epoch": epoch, **dict(zip(SERIES, values, strict=True))}
            for step, values in enumerate(zip(*series, strict=True), first_step)
        ]
        for row, length in zip(rows, np.asarray(steps).tolist(), strict=True) if steps is not None else ():
            if length != self._bptt_length:
                row["steps"] = length
        self._write(*rows)
        self._count(rows)
        self._show([(row["step"], {f"train/{name}": row[name] for name in SERIES}) for row in rows])

    def result(self, kind: str, **values: Any) -> None:
        """Writes the line of an epoch's or a test's result.

        Args:
            kind: "epoch" or "test".
            values: by name; None is left out. `learning_curve` draws epoch, train_perplexity, valid_perplexity,
                test_perplexity and floor_*, and puts `preset` in its title.

        Raises:
            RunDirError: The file cannot be written.
        """
        values = {name: value for name, value in values.items() if value is not None}
        self._write({"kind": kind, "corpus": self._corpus, **values})
        self._show([(self._step, {f"{kind}/{name}": value for name, value in values.items() if "perplexity" in name})])

    def timing(self, **values: Any) -> None:
        """Writes a line of `timing.jsonl`, such as seconds and words per second. Raises RunDirError."""
        with _disk(self._folder.path / "timing.jsonl"):
            _write_all(self._timing, _line(values))

    def epoch_cost(self, epoch: int) -> tuple[float, int]:
        """What is logged of an epoch so far, for its training perplexity, exp(cost / steps).

        Args:
            epoch: the epoch, from 1.

        Returns:
            The sum of the finite costs (nats), in the order of the windows, and the steps of their windows. It is
            the same whether the lines were written by this process or read on resuming.
        """
        return self._cost.get(epoch, 0.0), self._steps[epoch]

    def sync(self) -> int:
        """Waits until all lines are on the disk.

        Returns:
            The file's length in bytes: the `offset` to resume from.

        Raises:
            RunDirError: The disk cannot be written.
        """
        with _disk(self._folder.path / NAME):
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    def _show(self, rows: list[tuple[int, dict[str, Any]]]) -> None:
        if self._board:
            self._board.scalars(rows)
        if self._on_metrics:
            for step, values in rows:
                self._on_metrics(step, values)

    def _count(self, windows: Sequence[Mapping[str, Any]]) -> None:
        with np.errstate(over="ignore"):
            costs, norms = (np.array([row[name] for row in windows], np.float32) for name in ("cost", "grad_norm"))
        for row, cost, finite in zip(windows, costs.tolist(), finite_windows(costs, norms).tolist(), strict=True):
            epoch = row["epoch"]
            self._step = max(self._step, row["step"])
            self.skipped[epoch] += not finite
            if math.isfinite(cost):
                self._cost[epoch] += cost
                self._steps[epoch] += row.get("steps", self._bptt_length)

    def _write(self, *rows: Mapping[str, Any]) -> None:
        with _disk(self._folder.path / NAME):
            _write_all(self._file, b"".join(map(_line, rows)))


def _line(row: Mapping[str, Any]) -> bytes:
    values = {name: _json(value) for name, value in row.items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _json(value: Any) -> Any:
    """A scalar as JSON has it: float32 by its shortest digits, one that is not finite by its name."""
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _appending(folder: Folder, name: str) -> BinaryIO:
    with _disk(folder.path / name):
        return folder.append(name, buffering=0)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Writes all bytes to an unbuffered file, whose `write` may take only some."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {reason(error)}; fix that, then resume") from None
