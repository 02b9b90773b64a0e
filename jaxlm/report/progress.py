"""What the terminal shows of a run: a bar, a line for each epoch, a final table."""

import errno
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from rich import progress
from rich.console import Console
from rich.text import Text

from jaxlm.base.terminal import printable
from jaxlm.base.units import measure_name, measure_text

LEAST_BAR = 4  # cells; a narrow terminal shows fewer numbers
LINE_SECONDS = 30  # between the lines that stand for the bar without a terminal


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1: its learning rate and its perplexities."""

    epoch: int
    learning_rate: float = math.nan
    train_perplexity: float = math.nan
    valid_perplexity: float = math.nan
    train_estimated: bool = False  # from the words drawn for a sampled softmax: too low

    def train_measure(self, tokens: str) -> str:
        """The training perplexity in the measure of these tokens, and whether it is an estimate."""
        text = measure_text(self.train_perplexity, tokens)
        if self.train_estimated:
            text += " (an estimate)"
        return text


class LastingConsole(Console):
    """A console whose reader may leave (`jaxlm train | head`): the printing ends, not the run.

    By default it is on standard output; a quiet one prints nothing.
    """

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Discards what follows. Rich's own method then ends the process; this one does not."""
        with suppress(SystemExit, OSError):
            super().on_broken_pipe()


class Progress:
    """The progress of a run; a context manager.

    A terminal has a bar with the epoch, the perplexity so far, tokens per second, the learning rate
    and the time left (from the speed of the last five minutes), or with the task between epochs.
    Elsewhere there is a plain line with these numbers every 30 seconds. Each finished epoch has a
    line. A run of characters or bytes shows bits per character or byte in place of perplexity.
    """

    def __init__(
        self,
        epochs: int,
        windows: int,
        tokens_per_window: int,
        corpus: str,
        console: Console | None = None,
        tokens: str = "words",
    ):
        """Shows nothing before it is entered.

        Args:
            epochs: Epochs of the whole run.
            windows: Windows of the whole run.
            tokens_per_window: Tokens of a window, over all rows.
            corpus: The corpus's name.
            console: Where to print (None: standard output).
            tokens: The kind of token: words, characters, bytes or subwords.
        """
        self._epochs = epochs
        self._tokens_per_window = tokens_per_window
        self._corpus = printable(corpus)
        self._tokens = tokens
        self.console = console or LastingConsole()
        # A live display moves the cursor, which a dumb terminal cannot.
        self._live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._bar = progress.Progress(
            "{task.description}",
            progress.BarColumn(bar_width=None),
            "{task.fields[numbers]}",
            console=self.console,
            disable=not self._live,
            transient=True,
            expand=True,
            refresh_per_second=4,
            speed_estimate_period=300,
        )
        self._place = ""
        self._last_line = monotonic()
        self._task = self._bar.add_task("starting", numbers="", total=windows)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(
        self,
        text: str,
        *,
        loud: bool = False,
        wrap: bool = True,
    ) -> None:
        """Prints a text above the bar.

        Args:
            text: One or several lines.
            loud: Put `!!` before each line, in bold.
            wrap: Break lines that are wider than the terminal.
        """
        self._last_line = monotonic()
        if loud:
            text = "!! " + text.replace("\n", "\n!! ")
        text = printable(text, keep_newlines=True, encoding=self.console.encoding)
        style = "bold yellow" if loud else ""
        self.console.print(
            Text(text, overflow="fold"), style=style, soft_wrap=not (self._live and wrap)
        )

    def advance(
        self,
        so_far: EpochResult,
        windows: int,
        of: int,
        in_all: int,
    ) -> None:
        """Moves the bar.

        Args:
            so_far: The epoch, and its training perplexity so far.
            windows: How many windows of the epoch are trained.
            of: How many windows the epoch has.
            in_all: How many windows of the run are trained.
        """
        self._bar.update(self._task, completed=in_all)
        task = self._bar.tasks[0]
        self._place = f"epoch {so_far.epoch}/{self._epochs}"
        numbers = [f"{measure_name(self._tokens)} {so_far.train_measure(self._tokens)}"]
        if task.time_remaining is not None:
            remaining = timedelta(seconds=math.ceil(task.time_remaining))
            numbers.append(f"{remaining} left")
        if task.speed is not None:
            numbers.append(f"{task.speed * self._tokens_per_window:,.0f} {self._tokens}/s")
        numbers.append(f"rate {so_far.learning_rate:.3g}")
        self._line(f"{self._place}, window {windows:,}/{of:,}", *numbers)
        room = self.console.width - len(self._place) - LEAST_BAR - 2
        while len("  ".join(numbers)) > room and len(numbers) > 1:
            numbers.pop()
        self._bar.update(self._task, description=self._place, numbers="  ".join(numbers))

    def doing(self, task: str) -> None:
        """Names on the bar, at once, the task between windows, such as "validating"."""
        self._line(self._place, task)
        description = f"{self._place} {task}".strip()
        self._bar.update(self._task, description=description, numbers="", refresh=True)

    def epoch(
        self,
        ended: EpochResult,
        tokens_per_second: float,
        seconds: float,
        floor: float | None = None,
    ) -> None:
        """Prints the line of a finished epoch.

        Args:
            ended: The epoch's results.
            tokens_per_second: The speed of its training.
            seconds: The time of its training.
            floor: The validation perplexity of the source that generated the text, if it is known.
        """
        measure = measure_name(self._tokens)
        valid = measure_text(ended.valid_perplexity, self._tokens)
        if floor is not None:
            valid += f" (floor {measure_text(floor, self._tokens)})"
        self.say(
            f"epoch {ended.epoch}/{self._epochs} on {self._corpus}: "
            f"train {measure} {ended.train_measure(self._tokens)}, valid {valid}, "
            f"rate {ended.learning_rate:.3g}, {tokens_per_second:,.0f} {self._tokens}/s, "
            f"{seconds:.1f} s"
        )

    def summary(self, rows: Sequence[tuple[str, str]], title: str) -> None:
        """Prints a table of results.

        Args:
            rows: (name, value) of each result.
            title: The line above the table.
        """
        width = max((len(printable(name)) for name, _ in rows), default=0)
        lines = [title]
        for name, value in rows:
            lines.append(f"  {self._corpus}  {printable(name):<{width}}  {printable(value)}")
        self.say("\n".join(lines))

    def _line(self, *texts: str) -> None:
        """Without a terminal, prints a line of these texts if there was none for `LINE_SECONDS`."""
        if not self._live and monotonic() - self._last_line >= LINE_SECONDS:
            self.say(", ".join(filter(None, texts)))
