"""What the terminal shows of a run: a bar, a line for each epoch, a final table."""

import errno
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from jaxlm.terminal import printable
from jaxlm.units import perplexity_text

if TYPE_CHECKING:
    from rich.console import Console

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

    @property
    def train_text(self) -> str:
        """The training perplexity, and whether it is an estimate."""
        return perplexity_text(self.train_perplexity) + " (an estimate)" * self.train_estimated


def lasting_console(quiet: bool = False) -> "Console":
    """A console on standard output whose reader may leave (`jaxlm train | head`): the printing ends, not the run."""
    from rich.console import Console

    class Lasting(Console):
        def _check_buffer(self) -> None:
            try:
                super()._check_buffer()
            except OSError as error:
                if error.errno != errno.EIO:  # the terminal was closed
                    raise
                self.on_broken_pipe()

        def on_broken_pipe(self) -> None:
            with suppress(
                SystemExit, OSError
            ):  # Rich's own sends what follows nowhere, and then exits
                super().on_broken_pipe()

    return Lasting(quiet=quiet)


class Progress:
    """The progress of a run; a context manager.

    A terminal has a bar with epoch, perplexity so far, words per second, learning rate and time left (from the speed of
    the last five minutes), or with the task between epochs; elsewhere there is a plain line with these numbers every 30
    seconds. Each finished epoch has a line. The words of a window are counted over all rows.
    """

    def __init__(
        self,
        epochs: int,
        windows: int,
        words_per_window: int,
        corpus: str,
        console: "Console | None" = None,
    ):
        from rich import progress

        self._epochs = epochs
        self._words = words_per_window
        self._corpus = printable(corpus)
        self.console = console or lasting_console()
        self._live = (
            self.console.is_terminal and not self.console.is_dumb_terminal
        )  # so it can move its cursor
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
        self._said = monotonic()
        self._task = self._bar.add_task("starting", numbers="", total=windows)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str, *, loud: bool = False, wrap: bool = True) -> None:
        """Prints a text above the bar, each line of a `loud` one after `!!`; without `wrap` no line is broken."""
        from rich.text import Text

        self._said = monotonic()
        text = "!! " + text.replace("\n", "\n!! ") if loud else text
        shown = Text(
            printable(text, keep_newlines=True, encoding=self.console.encoding), overflow="fold"
        )
        self.console.print(shown, style="bold yellow" * loud, soft_wrap=not (self._live and wrap))

    def advance(self, so_far: EpochResult, windows: int, of: int, in_all: int) -> None:
        """Moves the bar: so many windows of an epoch are trained, `of` how many, and `in_all`."""
        self._bar.update(self._task, completed=in_all)
        task = self._bar.tasks[0]
        speed = task.speed
        left = task.time_remaining
        self._place = f"epoch {so_far.epoch}/{self._epochs}"
        numbers = [
            f"perplexity {so_far.train_text}",
            None if left is None else f"{timedelta(seconds=math.ceil(left))} left",
            None if speed is None else f"{speed * self._words:,.0f} words/s",
            f"rate {so_far.learning_rate:.3g}",
        ]
        self._line(f"{self._place}, window {windows:,}/{of:,}", *numbers)
        room = self.console.width - len(self._place) - LEAST_BAR - 2
        while len(text := "  ".join(filter(None, numbers))) > room and len(numbers) > 1:
            numbers.pop()
        self._bar.update(self._task, description=self._place, numbers=text)

    def doing(self, task: str) -> None:
        """Names on the bar, at once, the task between windows, such as "validating"."""
        self._line(self._place, task)
        self._bar.update(
            self._task, description=f"{self._place} {task}".strip(), numbers="", refresh=True
        )

    def epoch(
        self,
        ended: EpochResult,
        words_per_second: float,
        seconds: float,
        floor: float | None = None,
    ) -> None:
        """Prints the line of a finished epoch; `floor` is the validation perplexity of the text's true source."""
        known = "" if floor is None else f" (floor {perplexity_text(floor)})"
        found = f"train perplexity {ended.train_text}, valid {perplexity_text(ended.valid_perplexity)}{known}"
        speed = f"rate {ended.learning_rate:.3g}, {words_per_second:,.0f} words/s, {seconds:.1f} s"
        self.say(f"epoch {ended.epoch}/{self._epochs} on {self._corpus}: {found}, {speed}")

    def summary(self, rows: Sequence[tuple[str, str]], title: str) -> None:
        """Prints (name, value) of each result as a table under a title."""
        rows = [(printable(name), printable(value)) for name, value in rows]
        width = max((len(name) for name, _ in rows), default=0)
        self.say(
            "\n".join(
                [title, *(f"  {self._corpus}  {name:<{width}}  {value}" for name, value in rows)]
            )
        )

    def _line(self, *parts: str | None) -> None:
        """Without a terminal, prints a line of these parts if there was none for `LINE_SECONDS`."""
        if not self._live and monotonic() - self._said >= LINE_SECONDS:
            self.say(", ".join(filter(None, parts)))
