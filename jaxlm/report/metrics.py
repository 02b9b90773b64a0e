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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, held

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from rich.console import Console
    from rich.text import Text

MOST_BYTES = 4 << 30  # of metrics.jsonl
_SERIES = ("cost", "grad_norm", "learning_rate")
_NEEDED = {"window": {"step", "epoch", *_SERIES}, "epoch": {"epoch"}}
_COUNT = re.compile("step|epoch")
_NUMBER = re.compile("|".join(_SERIES) + "|.*perplexity|floor.*")


class MetricsLog:
    """Writes a run's metrics, and counts the windows `skipped`; a context manager.

    `offset` (bytes, from `sync`) resumes: the file is cut back to it and written on. Without it the run is new
    and the file must not exist. No clock is in the file: a resumed run ends with the same bytes as an
    uninterrupted one. Raises RunDirError where the file exists, is shorter than `offset` or cannot be written,
    and JaxlmError where what would be kept is damaged.
    """

    def __init__(self, run: str | Path | Folder, corpus: str, *, offset: int | None = None, tensorboard: bool = True):
        self._open = ExitStack()
        with _disk(Path(run.path if isinstance(run, Folder) else run) / "metrics.jsonl"):
            run = self._open.enter_context(held(run))
        self._run, self._corpus = run, corpus
        self._path = run.path / "metrics.jsonl"
        if offset is None and run.exists("metrics.jsonl"):
            raise RunDirError(f"{self._path} exists: resume its run, or choose a new directory")
        with _disk(self._path):
            kept = run.read("metrics.jsonl", MOST_BYTES)[:offset] if offset else b""
            if offset and not (len(kept) == offset and kept.endswith(b"\n")):
                raise RunDirError(f"{self._path} held {offset} bytes of whole lines when its checkpoint was saved, "
                                  f"and no longer does: restore it from a copy")
            windows = [row for row in _rows(kept, self._path) if row["kind"] == "window"]
            self._file = run.append("metrics.jsonl")
            self._file.truncate(len(kept))
            self._timing = run.append("timing.jsonl")
        self._step = max((row["step"] for row in windows), default=0)
        self.skipped = Counter(row["epoch"] for row in windows if _is_bad(row))  # in each epoch
        self._board = _TensorBoard(run.path / "tensorboard" if tensorboard else None, self._step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.do("close")
        try:
            with _disk(self._run.path / "timing.jsonl"):
                self._timing.close()
        finally:
            with self._open, _disk(self._path):
                self._file.close()

    def windows(self, first_step: int, epoch: int, costs: "ArrayLike", grad_norms: "ArrayLike",
                learning_rates: "ArrayLike") -> None:
        """A line for each window, of three series float32 [n]; the run's first step and epoch are 1."""
        series = [np.asarray(column, np.float32) for column in (costs, grad_norms, learning_rates)]
        rows = [dict(zip(_SERIES, values, strict=True)) for values in zip(*series, strict=True)]
        self._write(*({"kind": "window", "step": step, "epoch": epoch, **row}
                      for step, row in enumerate(rows, first_step)))
        for step, row in enumerate(rows, first_step):
            self._board.scalars(step, {f"train/{name}": value for name, value in row.items()})
            self._step = step
            self.skipped[epoch] += _is_bad(row)

    def result(self, kind: str, **values: Any) -> None:
        """A line for an "epoch" or a "test", with the corpus's name; a value of None is left out.

        `plots.learning_curve` draws epoch, train_perplexity, valid_perplexity, test_perplexity and floor_*, and
        puts `preset` in its title.
        """
        values = {name: value for name, value in values.items() if value is not None}
        self._write({"kind": kind, "corpus": self._corpus, **values})
        self._board.scalars(self._step, {f"{kind}/{name}": value for name, value in values.items()
                                         if "perplexity" in name})

    def timing(self, **values: Any) -> None:
        """A line of `timing.jsonl`, where seconds and words per second go."""
        with _disk(self._run.path / "timing.jsonl"):
            self._timing.write(_line(values))
            self._timing.flush()

    def epoch_costs(self, epoch: int) -> list[float]:
        """Costs of the epoch's windows that are in the file, in order: each the very float32 that was written."""
        return [float(np.float32(row["cost"])) for row in read_metrics(self._run)
                if row["kind"] == "window" and row["epoch"] == epoch]

    def sync(self) -> int:
        """Makes all lines durable; the file's length in bytes, to resume from."""
        self._board.do("flush")
        with _disk(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def _write(self, *rows: Mapping[str, Any]) -> None:
        with _disk(self._path):
            self._file.write(b"".join(map(_line, rows)))
            self._file.flush()


def _is_bad(row: dict[Any, Any]) -> bool:
    """Whether a window has a cost or a gradient that is not finite, so that no update was made of it."""
    return not (math.isfinite(row["cost"]) and math.isfinite(row["grad_norm"]))


def read_metrics(run: str | Path | Folder) -> list[dict[str, Any]]:
    """All whole lines of a run's `metrics.jsonl`; a last one torn by a killed writer is dropped.

    Raises RunDirError where there is no such file, JaxlmError with file and line number where one is damaged.
    """
    path = (run.path if isinstance(run, Folder) else Path(run)) / "metrics.jsonl"
    try:
        with held(run) as folder:
            return _rows(folder.read("metrics.jsonl", MOST_BYTES), path)
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
        if _COUNT.fullmatch(name) and not (type(value) is int and 0 <= value < 2**53):
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


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}; mend that, then resume") from None


class _TensorBoard:
    """Scalars in an event file (None: nowhere); a failure ends it with a warning, never the training.

    Writes with tensorboardX's EventsWriter, at once. Its SummaryWriter hands on to a thread: that costs seven
    times as much a window, and once the thread is dead (a full disk) the next calls wait for it forever.
    """

    def __init__(self, folder: Path | None, next_step: int):
        self._writer: Any = None
        if folder:
            self._try(self._open, folder, next_step)

    def _open(self, folder: Path, next_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(exist_ok=True)
        self._event = Event
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._add(next_step, session_log={"status": 1})  # START: hides what an earlier process wrote from here on

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer:
            self._try(self._add, step, {"value": [{"tag": tag, "simple_value": value}
                                                  for tag, value in values.items()]})

    def _add(self, step: int, summary: Any = None, session_log: Any = None) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary,
                                             session_log=session_log))

    def do(self, method: str, *args: Any) -> None:
        """Calls a method of the writer while there is one."""
        if self._writer:
            self._try(getattr(self._writer, method), *args)

    def _try(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            self._writer = None
            warnings.warn(f"TensorBoard's log ends here, training goes on: {error}", RuntimeWarning, stacklevel=2)


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

        self._epochs, self._windows, self._words = total_epochs, windows_per_epoch, words_per_window
        self._corpus, self.console = corpus, console or Console()
        self._bar = progress.Progress(
            "{task.description}", progress.BarColumn(bar_width=None), "{task.fields[numbers]}",
            progress.TimeRemainingColumn(), "left", console=self.console, disable=not self.console.is_terminal,
            transient=True, expand=True, refresh_per_second=4, speed_estimate_period=300)
        self._task = self._bar.add_task("starting", numbers="",
                                        total=total_windows or total_epochs * windows_per_epoch)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str, loud: bool = False) -> None:
        """A line above the bar; a loud one is boxed, or begins with `!!`."""
        from rich.panel import Panel

        if loud and self.console.is_terminal:
            self.console.print(Panel(self._text(text), border_style="bold yellow", expand=False))
        else:
            self.console.print(self._text("!! " + text.replace("\n", "\n!! ") if loud else text), soft_wrap=True)

    def advance(self, epoch: int, windows_done_in_epoch: int, perplexity_so_far: float,
                learning_rate: float) -> None:
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
        self.say(f"epoch {epoch}/{self._epochs} on {self._corpus}: "
                 f"train perplexity {_perplexity(train_perplexity)}, "
                 f"valid {_perplexity(valid_perplexity)}{known}, rate {learning_rate:.3g}, "
                 f"{words_per_second:,.0f} words/s, {seconds:.1f} s")

    def summary(self, rows: Sequence[tuple[str, str]], title: str) -> None:
        """A final table, the corpus's name in each of its lines; plain text where there is no terminal."""
        from rich.table import Table

        if not self.console.is_terminal:
            width = max((len(name) for name, _ in rows), default=0)
            return self.say("\n".join([title, *(f"  {self._corpus}  {name:<{width}}  {value}"
                                                for name, value in rows)]))
        table = Table("corpus", "result", "", title=self._text(title), title_style="bold", title_justify="left")
        for row in rows:
            table.add_row(*map(self._text, (self._corpus, *row)))
        self.console.print(table)

    def _text(self, text: str) -> "Text":
        """The text as it is, no markup, with escapes for what stdout's encoding lacks."""
        from rich.text import Text

        encoding = self.console.encoding
        return Text(text.encode(encoding, "backslashreplace").decode(encoding), overflow="fold")


def _perplexity(value: float) -> str:
    return f"{value:.2e}" if value >= 1e7 else f"{value:.2f}"
