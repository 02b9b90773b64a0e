"""A run's `metrics.jsonl`: its format, reader and writer.

The file depends on nothing but the training: it holds no time, so a resumed run ends with the same
bytes as an uninterrupted one. Seconds go to `timing.jsonl`. Lines:

    {"kind":"window","step":1,"epoch":1,"cost":184.2,"grad_norm":3.1,"learning_rate":1.0}
    {"kind":"epoch","corpus":"ptb","epoch":1,"train_perplexity":...,"valid_perplexity":...,"valid_bits_per_byte":...}
    {"kind":"test","corpus":"ptb","test_perplexity":...,"test_bits_per_byte":...,"unknown_test":...}
    {"kind":"diverged","corpus":"ptb","step":17,"epoch":1,"cost":"nan","grad_norm":"inf","learning_rate":1.0}

A window's cost is the sum over its steps of the batch's mean nats; the line of a window whose
length is not bptt_length ends with `"steps":T`. `unknown_SPLIT` is the share of `<unk>` among the
split's tokens, and `"train_estimated":true` marks a training perplexity estimated from the words
drawn (--sampled-words). The window of a line `diverged` ended the run, without an update. JSON has
only finite numbers: the texts "nan", "inf" and "-inf" stand for the others.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.report.trackers import OnMetrics

MOST_BYTES = 1 << 32  # of a metrics.jsonl: thirty million windows
MOST_TIMING = 64 << 20  # bytes of a timing.jsonl
NAME = "metrics.jsonl"
TIMING = "timing.jsonl"
RunDir = str | Path | Folder  # a run's directory, by its path or held open
SERIES = ("cost", "grad_norm", "learning_rate")
_NEEDED = {"window": {"step", "epoch", *SERIES}, "epoch": {"epoch"}}
_COUNT = re.compile("step|steps|epoch")
_NUMBER = re.compile("|".join(SERIES) + "|.*perplexity|.*bits_per.*|floor.*|unknown.*")
_DAMAGE = (ValueError, TypeError, KeyError, OverflowError, RecursionError)  # of a damaged line


class Prefix(NamedTuple):
    """The lines of a `metrics.jsonl` up to a checkpoint, whose manifest has their hash, no copy."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


def read_metrics(run: RunDir) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without an unfinished last one of a killed writer.

    Args:
        run: The run's directory.

    Returns:
        A dict for each line, with floats for perplexities, costs, norms and rates.

    Raises:
        RunDirError: There is no such file, or no regular file of at most `MOST_BYTES`.
        JaxlmError: A line is damaged; names the file and the line's number.
    """
    return _rows(_read(run), Path(run) / NAME)


def read_prefix(run: RunDir, prefix: Prefix) -> bytes:
    """The lines of a run's `metrics.jsonl` up to a checkpoint.

    Args:
        run: The run's directory.
        prefix: Their length and hash, from the checkpoint's manifest.

    Raises:
        RunDirError: The file has others in their place, or fewer.
    """
    data = b""
    if prefix.bytes:
        data = _read(run)[: prefix.bytes]
    if len(data) < prefix.bytes or hashlib.sha256(data).hexdigest() != prefix.sha256:
        raise RunDirError(
            f"{Path(run) / NAME} is damaged: its first {prefix.bytes:,} bytes are not those that "
            "the checkpoint sealed; restore the file from a copy, or train the parameters further "
            "in another run (--init)"
        )
    return data


class MetricsLog:
    """Writes a run's metrics. Every method but `timing` may raise RunDirError.

    Attributes:
        epochs: The lines of epochs in the file when the run was begun or resumed.
        skipped: How many windows of each epoch had a cost or gradient that is not finite; they made
            no update.
    """

    def __init__(
        self,
        folder: Folder,
        files: ExitStack,
        corpus: str,
        bptt_length: int,
        prefix: Prefix = Prefix(),  # noqa: B008 (immutable)
        on_metrics: OnMetrics | None = None,
    ):
        """Opens the file, and cuts off the lines after those of the checkpoint.

        Args:
            folder: The run's directory, which the caller holds.
            files: Closes the file.
            corpus: The corpus's name, for the line of every result.
            bptt_length: The steps of a window whose line does not say otherwise.
            prefix: The lines to keep.
            on_metrics: Called with (step, values by tag) of each window and each result.
        """
        self._folder = folder
        self._corpus = corpus
        self._bptt_length = bptt_length
        self._on_metrics = on_metrics
        lines = read_prefix(folder, prefix)
        self._digest = hashlib.sha256(lines)
        self._step = 0
        self.skipped: Counter[int] = Counter()
        self._cost: defaultdict[int, float] = defaultdict(float)  # by epoch
        self._steps: Counter[int] = Counter()  # by epoch
        rows = _rows(lines, folder.path / NAME)
        self._count([row for row in rows if row["kind"] == "window"])
        self.epochs = [row for row in rows if row["kind"] == "epoch"]
        with self._disk():
            self._file = files.enter_context(folder.append(NAME, buffering=0))
            self._file.truncate(len(lines))

    def windows(
        self,
        first_step: int,
        epoch: int,
        *series: ArrayLike,
        steps: ArrayLike | None = None,
    ) -> None:
        """Writes a line for each of n windows of an epoch.

        Args:
            first_step: The first window's step, from 1.
            epoch: Their epoch, from 1.
            *series: Cost, gradient norm and learning rate (`SERIES`), each float32 [n].
            steps: Each window's length [n]; None: bptt_length.
        """
        rows = []
        columns = [np.asarray(column, np.float32) for column in series]
        for step, values in enumerate(zip(*columns, strict=True), first_step):
            numbers = dict(zip(SERIES, values, strict=True))
            rows.append({"kind": "window", "step": step, "epoch": epoch, **numbers})
        if steps is not None:
            for row, length in zip(rows, np.asarray(steps).tolist(), strict=True):
                if length != self._bptt_length:
                    row["steps"] = length
        self._write(*rows)
        self._count(rows)
        if self._on_metrics:
            for row in rows:
                self._on_metrics(row["step"], {f"train/{name}": row[name] for name in SERIES})

    def result(self, kind: str, **values: Any) -> None:
        """Writes the line of a result.

        Args:
            kind: `epoch`, `test` or `diverged`.
            **values: Its values; those that are None are left out.
        """
        values = {name: value for name, value in values.items() if value is not None}
        self._write({"kind": kind, "corpus": self._corpus, **values})
        # The tests of the last and of the best checkpoint come at the same step.
        tag = "best" if values.get("checkpoint") == "best" else kind
        tags = {
            f"{tag}/{name}": value
            for name, value in values.items()
            if "perplexity" in name or "bits" in name
        }
        if tags and self._on_metrics:
            self._on_metrics(self._step, tags)

    def timing(self, **values: Any) -> None:
        """Writes a line of `timing.jsonl`, where it can be written: the file only informs."""
        with suppress(OSError), self._folder.append(TIMING, buffering=0) as file:
            file.write(_line(values))

    def epoch_cost(self, epoch: int) -> tuple[float, int]:
        """The sum of an epoch's finite costs (nats), in order of its windows; and their steps."""
        return self._cost.get(epoch, 0.0), self._steps[epoch]

    def sync(self) -> Prefix:
        """Waits until all lines are on the disk, and returns their length and hash."""
        with self._disk():
            os.fsync(self._file.fileno())
            return Prefix(self._file.seek(0, os.SEEK_END), self._digest.hexdigest())

    def _count(self, windows: Sequence[Mapping[str, Any]]) -> None:
        with np.errstate(over="ignore"):
            costs = np.array([row["cost"] for row in windows], np.float32).tolist()
            norms = np.array([row["grad_norm"] for row in windows], np.float32).tolist()
        for row, cost, norm in zip(windows, costs, norms, strict=True):
            epoch = row["epoch"]
            self._step = max(self._step, row["step"])
            self.skipped[epoch] += not (math.isfinite(cost) and math.isfinite(norm))
            if math.isfinite(cost):
                self._cost[epoch] += cost
                self._steps[epoch] += row.get("steps", self._bptt_length)

    def _write(self, *rows: Mapping[str, Any]) -> None:
        lines = b"".join(map(_line, rows))
        self._digest.update(lines)
        rest = memoryview(lines)
        with self._disk():
            while rest:  # the file is unbuffered, and may take only some of the bytes
                rest = rest[self._file.write(rest) :]

    def _disk(self) -> AbstractContextManager[None]:
        return explained(
            RunDirError, f"cannot write {self._folder.path / NAME}", "fix that, then resume"
        )


def read_timing(run: str | Path) -> dict[int, dict[str, float]]:
    """The speed of each epoch, from `timing.jsonl`; damaged lines are skipped.

    Args:
        run: The run's directory.

    Returns:
        {epoch: {"seconds": ..., "words_per_second": ...}}. If a resumed run trained an epoch again,
        the later line counts.
    """
    epochs = {}
    with suppress(OSError), Folder.open(run) as folder:
        for line in folder.read(TIMING, MOST_TIMING).splitlines():
            with suppress(*_DAMAGE):
                row = json.loads(line)
                values = {name: float(row[name]) for name in ("seconds", "words_per_second")}
                if type(row["epoch"]) is int and all(map(math.isfinite, values.values())):
                    epochs[row["epoch"]] = values
    return epochs


def _read(run: RunDir) -> bytes:
    problem = f"expected a run's metrics in {Path(run) / NAME}"
    remedy = "give the directory of a run that has started"
    with explained(RunDirError, problem, remedy), Folder.open(run) as folder:
        return folder.read(NAME, MOST_BYTES)


def _rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    """A dict for each whole line; `path` names the file in the error of a damaged line."""
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            rows.append(_row(line))
        except _DAMAGE:
            raise JaxlmError(
                f"{path}, line {number}: expected a window or a result as JSON, found "
                f"{line[:60]!r}; the file is damaged, restore it from a copy"
            ) from None
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode())
    if not (isinstance(row["kind"], str) and row.keys() >= _NEEDED.get(row["kind"], set())):
        raise ValueError
    for name, value in row.items():
        if _COUNT.fullmatch(name) and not (type(value) is int and 0 <= value < 2**53):
            raise ValueError
        if _NUMBER.fullmatch(name):
            row[name] = float(value)
    return row


def _line(row: Mapping[str, Any]) -> bytes:
    values = {name: _json(value) for name, value in row.items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _json(value: Any) -> Any:
    """A scalar as JSON has it: float32 by its shortest digits, nan and infinities by name."""
    if isinstance(value, np.floating):
        value = float(str(value))
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
