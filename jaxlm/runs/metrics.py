"""A run's `metrics.jsonl`: its format, reader and writer.

The file depends on nothing but the training: it holds no time, so a resumed run ends with the same bytes as an
uninterrupted one. Seconds go to `timing.jsonl`. Lines:

    {"kind":"window","step":1,"epoch":1,"cost":184.2,"grad_norm":3.1,"learning_rate":1.0}
    {"kind":"epoch","corpus":"ptb","epoch":1,"train_perplexity":...,"valid_perplexity":...,"valid_bits_per_byte":...}
    {"kind":"test","corpus":"ptb","test_perplexity":...,"test_bits_per_byte":...,"unknown_test":...}

A window's cost is the sum over its steps of the batch's mean nats; the line of a window whose length is not
bptt_length ends with `"steps":T`. `unknown_SPLIT` is the share of `<unk>` among the split's tokens, and
`"train_estimated":true` marks a training perplexity estimated from the words drawn (--sampled-words). JSON has only
finite numbers: the texts "nan", "inf" and "-inf" stand for the others.
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

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, explained
from jaxlm.report.trackers import OnMetrics

MOST_BYTES = 1 << 32  # of a metrics.jsonl: thirty million windows
MOST_TIMING = 64 << 20  # of a timing.jsonl
NAME = "metrics.jsonl"
TIMING = "timing.jsonl"
SERIES = ("cost", "grad_norm", "learning_rate")
_NEEDED = {"window": {"step", "epoch", *SERIES}, "epoch": {"epoch"}}
_COUNT = re.compile("step|steps|epoch")
_NUMBER = re.compile("|".join(SERIES) + "|.*perplexity|.*bits_per.*|floor.*|unknown.*")


class Prefix(NamedTuple):
    """The lines of a `metrics.jsonl` up to a checkpoint, which the checkpoint seals instead of copying them."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


def read_metrics(run: str | Path | Folder) -> list[dict[str, Any]]:
    """A dict for each whole line of a run's `metrics.jsonl`; perplexities, costs, norms and rates are floats.

    A killed writer's unfinished last line is dropped.

    Raises:
        RunDirError: There is no such file, or no regular file of at most `MOST_BYTES`.
        JaxlmError: A line is damaged; names the file and the line's number.
    """
    return _rows(_read(run), Path(run) / NAME)


def read_prefix(run: str | Path | Folder, prefix: Prefix) -> bytes:
    """The lines that a checkpoint sealed. Raises RunDirError where the file has others in their place, or fewer."""
    data = _read(run)[: prefix.bytes] if prefix.bytes else b""
    if len(data) < prefix.bytes or hashlib.sha256(data).hexdigest() != prefix.sha256:
        raise RunDirError(
            f"{Path(run) / NAME} is damaged: its first {prefix.bytes:,} bytes are not those that the checkpoint "
            f"sealed; restore the file from a copy, or train the parameters further in another run (--init)"
        )
    return data


class MetricsLog:
    """Writes a run's metrics. Every method but `timing` may raise RunDirError.

    Args:
        folder: the run directory, which the caller holds.
        files: closes the log's file.
        corpus: the corpus's name, in the line of every result.
        bptt_length: the steps of a window whose line does not say otherwise.
        kept: the lines to keep, from `sync`; None: none.
        on_metrics: called with (step, values by tag) of each window and each result.

    Attributes:
        epochs: the lines of epochs that were kept.
        skipped: the number of windows in each epoch whose cost or gradient is not finite; they made no update.
    """

    def __init__(
        self,
        folder: Folder,
        files: ExitStack,
        corpus: str,
        bptt_length: int,
        *,
        kept: Prefix | None = None,
        on_metrics: OnMetrics | None = None,
    ):
        self._folder = folder
        self._corpus = corpus
        self._bptt_length = bptt_length
        self._on_metrics = on_metrics
        lines = read_prefix(folder, kept or Prefix())
        self._digest = hashlib.sha256(lines)
        self._step = 0
        self.skipped: Counter[int] = Counter()
        self._cost: defaultdict[int, float] = defaultdict(
            float
        )  # of each epoch, summed in order of the windows
        self._steps: Counter[int] = Counter()
        rows = _rows(lines, folder.path / NAME)
        self._count([row for row in rows if row["kind"] == "window"])
        self.epochs = [row for row in rows if row["kind"] == "epoch"]
        with self._disk():
            self._file = files.enter_context(folder.append(NAME, buffering=0))
            self._file.truncate(len(lines))

    def windows(
        self, first_step: int, epoch: int, *series: ArrayLike, steps: ArrayLike | None = None
    ) -> None:
        """Writes a line for each of n windows of an epoch, from `first_step` on (both from 1).

        The three `SERIES` are float32 [n]; `steps` [n] is each window's length (default: bptt_length for all).
        """
        columns = zip(*(np.asarray(column, np.float32) for column in series), strict=True)
        values = (dict(zip(SERIES, one, strict=True)) for one in columns)
        rows = [
            {"kind": "window", "step": step, "epoch": epoch, **one}
            for step, one in enumerate(values, first_step)
        ]
        for row, length in (
            zip(rows, np.asarray(steps).tolist(), strict=True) if steps is not None else ()
        ):
            if length != self._bptt_length:
                row["steps"] = length
        self._write(*rows)
        self._count(rows)
        if self._on_metrics:
            for row in rows:
                self._on_metrics(row["step"], {f"train/{name}": row[name] for name in SERIES})

    def result(self, kind: str, **values: Any) -> None:
        """Writes the line of an epoch's or a test's result, without values that are None."""
        values = {name: value for name, value in values.items() if value is not None}
        self._write({"kind": kind, "corpus": self._corpus, **values})
        if self._on_metrics:
            tag = (
                "best" if values.get("checkpoint") == "best" else kind
            )  # (the test of the last has the step too)
            tags = {
                f"{tag}/{name}": value
                for name, value in values.items()
                if "perplexity" in name or "bits" in name
            }
            self._on_metrics(self._step, tags)

    def timing(self, **values: Any) -> None:
        """Writes a line of `timing.jsonl`, where it can be written: the file only informs."""
        with suppress(OSError), self._folder.append(TIMING, buffering=0) as file:
            file.write(_line(values))

    def epoch_cost(self, epoch: int) -> tuple[float, int]:
        """The sum of an epoch's finite costs (nats) in order of the windows, read or written; the windows' steps."""
        return self._cost.get(epoch, 0.0), self._steps[epoch]

    def sync(self) -> Prefix:
        """Waits until all lines are on the disk; the seal of the lines so far."""
        with self._disk():
            os.fsync(self._file.fileno())
            return Prefix(self._file.seek(0, os.SEEK_END), self._digest.hexdigest())

    def _count(self, windows: Sequence[Mapping[str, Any]]) -> None:
        with np.errstate(over="ignore"):
            pairs = np.array(
                [(row["cost"], row["grad_norm"]) for row in windows], np.float32
            ).tolist()
        for row, (cost, norm) in zip(windows, pairs, strict=True):
            epoch = row["epoch"]
            self._step = max(self._step, row["step"])
            self.skipped[epoch] += not (math.isfinite(cost) and math.isfinite(norm))
            if math.isfinite(cost):
                self._cost[epoch] += cost
                self._steps[epoch] += row.get("steps", self._bptt_length)

    def _write(self, *rows: Mapping[str, Any]) -> None:
        rest = memoryview(lines := b"".join(map(_line, rows)))
        self._digest.update(lines)
        with self._disk():
            while rest:  # the file is unbuffered, and may take only some of the bytes
                rest = rest[self._file.write(rest) :]

    def _disk(self) -> AbstractContextManager[None]:
        return explained(
            RunDirError, f"cannot write {self._folder.path / NAME}", "fix that, then resume"
        )


def read_timing(run: str | Path) -> dict[int, dict[str, float]]:
    """{epoch: its seconds and words_per_second} from `timing.jsonl`, of an epoch that was trained twice the last time.

    The file only informs: what is missing or damaged in it is passed over.
    """
    found = {}
    with suppress(OSError), Folder.open(run) as folder:
        for line in folder.read(TIMING, MOST_TIMING).splitlines():
            with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
                row = json.loads(line)
                values = {name: float(row[name]) for name in ("seconds", "words_per_second")}
                if type(row["epoch"]) is int and all(map(math.isfinite, values.values())):
                    found[row["epoch"]] = values
    return found


def _read(run: str | Path | Folder) -> bytes:
    what = f"expected a run's metrics in {Path(run) / NAME}"
    remedy = "give the directory of a run that has started"
    with explained(RunDirError, what, remedy), Folder.open(run) as folder:
        return folder.read(NAME, MOST_BYTES)


def _rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    """A dict for each whole line; `path` names the file in the error of a damaged line."""
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            rows.append(_row(line))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            what = f"expected a window or a result as JSON, found {line[:60]!r}"
            raise JaxlmError(
                f"{path}, line {number}: {what}; the file is damaged, restore it from a copy"
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
    """A scalar as JSON has it: float32 by its shortest digits, nan and infinities by their names."""
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
