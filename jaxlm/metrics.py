"""What a training tells: a JSONL file that depends on nothing but the training, TensorBoard, and a person.

No transforms and no JAX: NumPy arrays and Python numbers come in. Lines of `metrics.jsonl`:

    {"kind":"window","step":1,"epoch":1,"cost":184.2,"grad_norm":3.1,"learning_rate":1.0}
    {"kind":"epoch","corpus":"ptb","epoch":1,"train_perplexity":...,"valid_perplexity":...,"floor_valid":...}
    {"kind":"test","corpus":"ptb","test_perplexity":...}

JSON has no word for a number that is not finite, so the texts "nan", "inf" and "-inf" stand for it.
"""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm.errors import JaxlmError, RunDirError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from rich.console import Console

_SERIES = ("cost", "grad_norm", "learning_rate")
_NEEDED = {"window": {"step", "epoch", *_SERIES}, "epoch": {"epoch"}}
_COUNT = re.compile("step|epoch")
_NUMBER = re.compile("|".join(_SERIES) + "|.*perplexity|floor.*")


class MetricsLog:
    """Writes a run's metrics; a context manager.

    `offset` (bytes, from `sync`) resumes: the file is cut back to it and written on. Without it the run is new
    and the file must not exist. Raises RunDirError where it does, where it is shorter than `offset`, and where
    the disk refuses; JaxlmError where what would be kept is damaged. No clock is in the file: a resumed run
    ends with the same bytes as an uninterrupted one.
    """

    def __init__(self, run_dir: Path, corpus: str, *, offset: int | None = None, tensorboard: bool = True):
        self._run_dir, self._corpus = Path(run_dir), corpus
        path = self._path = self._run_dir / "metrics.jsonl"
        if offset is None and path.exists():
            raise RunDirError(f"{path} holds another run's metrics: resume that run, or choose a new directory")
        with _disk(path):
            kept = _cut(path, offset) if offset is not None else []
            self._file = open(path, "ab")
            self._timing = open(self._run_dir / "timing.jsonl", "ab", buffering=0)
            _fsync(self._run_dir)  # the new names outlive a power cut
        self._step = max((row["step"] for row in kept if row["kind"] == "window"), default=0)
        self._board = _TensorBoard(self._run_dir / "tensorboard", self._step + 1) if tensorboard else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._board:
            self._board.close()
        self._timing.close()
        try:
            self._file.close()
        except OSError as error:
            if kind is None:  # otherwise the first error is the one to tell
                raise RunDirError(f"cannot write {self._path}: {error}") from None

    def windows(self, first_step: int, epoch: int, costs: "ArrayLike", grad_norms: "ArrayLike",
                learning_rates: "ArrayLike") -> None:
        """A line for each window: step from `first_step` (the first is 1), epoch from 1, three series float32 [n]."""
        columns = [np.asarray(column, np.float32) for column in (costs, grad_norms, learning_rates)]
        rows = [dict(zip(_SERIES, values, strict=True)) for values in zip(*columns, strict=True)]
        self._write(*({"kind": "window", "step": step, "epoch": epoch, **row}
                      for step, row in enumerate(rows, first_step)))
        self._step = first_step + len(rows) - 1
        for step, row in enumerate(rows if self._board else (), first_step):
            self._board.scalars(step, {f"train/{name}": value for name, value in row.items()})

    def result(self, kind: str, **values: Any) -> None:
        """A line for an "epoch" or a "test", with the corpus's name; a value of None is left out.

        `plots.learning_curve` draws epoch, train_perplexity, valid_perplexity, test_perplexity and floor_*, and
        puts `preset` in its title.
        """
        values = {name: value for name, value in values.items() if value is not None}
        self._write({"kind": kind, "corpus": self._corpus, **values})
        if self._board:
            self._board.scalars(self._step, {f"{kind}/{name}": value for name, value in values.items()
                                             if "perplexity" in name})

    def timing(self, **values: Any) -> None:
        """A line of `timing.jsonl`, where seconds and words per second go."""
        with _disk(self._run_dir / "timing.jsonl"):
            self._timing.write(_line(values))

    def epoch_costs(self, epoch: int) -> list[float]:
        """Costs of the epoch's windows that are in the file, in order."""
        return [row["cost"] for row in read_metrics(self._run_dir)
                if row["kind"] == "window" and row["epoch"] == epoch]

    def sync(self) -> int:
        """Makes all lines durable; the file's length in bytes, to resume from."""
        if self._board:
            self._board.flush()
        with _disk(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def _write(self, *rows: Mapping[str, Any]) -> None:
        with _disk(self._path):
            self._file.write(b"".join(map(_line, rows)))
            self._file.flush()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's `metrics.jsonl`; a last one torn by a killed writer is dropped.

    Raises RunDirError where there is no such file, JaxlmError with file and line number where one is damaged.
    """
    path = Path(run_dir) / "metrics.jsonl"
    try:
        return _rows(path.read_bytes(), path)
    except OSError as error:
        raise RunDirError(f"expected a run's metrics in {path}: {error.strerror or error}; "
                          "give the directory of a run that has started") from None


def _rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            rows.append(_row(line))
        except (ValueError, OverflowError, RecursionError):
            raise JaxlmError(f"{path}, line {number}: expected a window or a result as JSON, found {line[:60]!r}; "
                             "the file is damaged, restore it from a copy") from None
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode())
    if not (isinstance(row, dict) and isinstance(row.get("kind"), str)
            and row.keys() >= _NEEDED.get(row["kind"], set())):
        raise ValueError
    for name, value in row.items():
        if _COUNT.fullmatch(name) and not (type(value) is int and 0 < value < 2**53):
            raise ValueError
        if _NUMBER.fullmatch(name):
            if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
                raise ValueError
            row[name] = float(value)
    return row


def _line(row: Mapping[str, Any]) -> bytes:
    values = {name: _json(value) for name, value in row.items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _json(value: Any) -> Any:
    """A scalar as JSON knows it: float32 by its shortest digits, one that is not finite by its name."""
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cut(path: Path, offset: int) -> list[dict[str, Any]]:
    """Cuts the file back to `offset` bytes of whole, sound lines; their rows."""
    kept = path.read_bytes()[:offset] if offset or path.exists() else b""
    if len(kept) < offset or (kept and kept[-1:] != b"\n"):
        raise RunDirError(f"{path} should hold {offset} bytes of whole lines, as when its checkpoint was saved, "
                          f"and does not ({len(kept)} are there): restore it from a copy")
    rows = _rows(kept, path)
    if kept:
        os.truncate(path, offset)
    else:
        path.write_bytes(b"")
    return rows


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}; mend that, then resume the run") from None


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _TensorBoard:
    """Scalars in an event file; its first failure ends it with a warning, and never the training.

    Writes with tensorboardX's EventsWriter, at once. Its SummaryWriter hands on to a thread: that costs seven
    times as much a window, and where the thread dies (a full disk) the next calls wait for it forever.
    """

    def __init__(self, folder: Path, next_step: int):
        self._writer: Any = None
        with self._forgiving():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary

            folder.mkdir(exist_ok=True)
            self._event, self._summary = Event, Summary
            self._writer = EventsWriter(str(folder / "events"), f".{next_step}.{time.time_ns()}")
            session = SessionLog(status=SessionLog.START)  # hides what an earlier process wrote from this step on
            self._writer.write_event(Event(wall_time=time.time(), step=next_step, session_log=session))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer:
            with self._forgiving():
                summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value)
                                               for tag, value in values.items()])
                self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        if self._writer:
            with self._forgiving():
                self._writer.flush()

    def close(self) -> None:
        if self._writer:
            with self._forgiving():
                self._writer.close()
        self._writer = None

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            warnings.warn(f"TensorBoard's log ends here, the training goes on: {error}", RuntimeWarning, stacklevel=4)


class Progress:
    """Tells a person on stdout how the training goes; a context manager.

    On a terminal a bar with epoch, perplexity so far, words per second, learning rate and time left (from the
    speed of the last five minutes); elsewhere a plain line for each epoch. Every result names the corpus.
    `total_windows` is for a run that stops before its last epoch ends.
    """

    def __init__(self, total_epochs: int, windows_per_epoch: int, words_per_window: int, corpus: str,
                 console: "Console | None" = None, *, total_windows: int | None = None):
        from rich import progress
        from rich.console import Console

        self.console = console or Console()
        self._epochs, self._windows, self._words, self._corpus = (
            total_epochs, windows_per_epoch, words_per_window, corpus)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[numbers]}"), progress.TimeRemainingColumn(), progress.TextColumn("left"),
            console=self.console, disable=not self.console.is_terminal, transient=True, expand=True,
            refresh_per_second=4, speed_estimate_period=300)
        self._task = self._bar.add_task("starting", numbers="", total=total_windows or total_epochs * windows_per_epoch)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str, loud: bool = False) -> None:
        """A line above the bar; a loud one is boxed, or begins with `!!`."""
        from rich.panel import Panel
        from rich.text import Text

        if loud and self.console.is_terminal:
            self.console.print(Panel(Text(self._safe(text), "bold"), border_style="yellow", expand=False))
        else:
            text = "!! " + text.replace("\n", "\n!! ") if loud else text
            self.console.print(Text(self._safe(text)), soft_wrap=True)

    def advance(self, epoch: int, windows_done_in_epoch: int, perplexity_so_far: float, learning_rate: float) -> None:
        """Moves the bar to a window of an epoch (from 1)."""
        self._bar.update(self._task, completed=(epoch - 1) * self._windows + windows_done_in_epoch)
        speed = (self._bar.tasks[0].speed or math.nan) * self._words
        self._bar.update(self._task, description=f"epoch {epoch}/{self._epochs}",
                         numbers=f"perplexity {_perplexity(perplexity_so_far)}  {speed:,.0f} words/s  "
                                 f"rate {learning_rate:.3g}")

    def epoch(self, epoch: int, train_perplexity: float, valid_perplexity: float, learning_rate: float,
              words_per_second: float, seconds: float, floor: float | None) -> None:
        """The line of a finished epoch; `floor` is the validation perplexity of the text's true source."""
        known = "" if floor is None else f" (floor {_perplexity(floor)})"
        self.say(f"epoch {epoch}/{self._epochs} on {self._corpus}: train perplexity {_perplexity(train_perplexity)}, "
                 f"valid {_perplexity(valid_perplexity)}{known}, rate {learning_rate:.3g}, "
                 f"{words_per_second:,.0f} words/s, {seconds:.1f} s")

    def summary(self, rows: Sequence[tuple[str, str]], title: str) -> None:
        """A final table, headed by the corpus's name; plain ASCII where there is no terminal."""
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text

        terminal, safe = self.console.is_terminal, self._safe
        table = Table("", Text(safe(self._corpus)), title=Text(safe(title)), title_justify="left",
                      box=box.ROUNDED if terminal else box.ASCII)
        for name, value in rows:
            table.add_row(Text(safe(name)), Text(safe(value), overflow="fold"))
        whole = Measurement.get(self.console, self.console.options.update(max_width=10_000), table).maximum
        self.console.print(table, width=None if terminal else whole, crop=False, no_wrap=not terminal)

    def _safe(self, text: str) -> str:
        """The text with escapes for what stdout's encoding lacks."""
        return text.encode(self.console.encoding, "backslashreplace").decode(self.console.encoding)


def _perplexity(value: float) -> str:
    return f"{value:.2e}" if value >= 1e7 else f"{value:.2f}"
