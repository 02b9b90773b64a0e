"""The terminal output of a sweep: a live table or a line for each epoch, and at the end the best trials."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxlm.report.progress import is_live
from jaxlm.report.units import perplexity_text, spread
from jaxlm.sweeps.results import MemberResult, Sweep, shown
from jaxlm.terminal import printable


class View:
    """Shows a sweep while it runs: a live table on a terminal, elsewhere a line for each epoch and each end."""

    def __init__(self, console: Console):
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live(console) else None
        self._seen: dict[tuple[int, int], tuple[int, str]] = {}
        self._shown = 0.0

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def due(self) -> bool:
        """Whether half a second has passed since the last `show`."""
        return time.monotonic() > self._shown + 0.5

    def say(self, text: str) -> None:
        """Prints text, which may quote files, above the table."""
        self.console.print(printable(text, keep_newlines=True), markup=False, highlight=False, soft_wrap=True)

    def show(self, sweep: Sweep, total: int) -> None:
        """Shows the members of `total` trials."""
        self._shown = time.monotonic()
        if self._live:
            self._live.update(_running(sweep, total), refresh=True)
            return
        for member in sweep.members:
            now = len(member.valid_perplexities), member.status
            if now != self._seen.get((member.number, member.seed), (0, "running")):
                self.say(_line(sweep, member))
            self._seen[member.number, member.seed] = now

    def summary(self, sweep: Sweep, written: Sequence[Path] = (), most: int = 20) -> None:
        """The best trials, what was written, and how to train the winner alone."""
        self.__exit__()
        trials, best = sweep.trials, sweep.best
        table = Table(
            *["trial", *(trials[0].values if trials else ()), "status", "valid perplexity", "test perplexity"],
            title=f"{len(trials)} trials, best first",
            title_justify="left",
            box=None,
        )
        for trial in trials[:most]:
            results = trial.status, spread(*trial.valid), spread(*trial.test)
            table.add_row(str(trial.number), *map(_text, trial.values.values()), *results)
        self.console.print(table, width=None if is_live(self.console) else 160)
        if len(trials) > most:
            self.say(f"... and {len(trials) - most} more")
        for member in sweep.members:
            if member.note:
                self.say(f"trial {member.number} seed {member.seed} {member.status}: {member.note}")
        if written:
            self.say(f"written: {', '.join(map(str, written))}")
        if sweep.damaged:
            self.say(
                f"{len(sweep.damaged)} damaged, to be tried again with --resume once their checkpoints are "
                f"replaced by intact ones, or their run directories are removed"
            )
        if best is None:
            self.say("no trial is done")
            return
        found = f"trial {best.number}, seed {best.seed}, valid perplexity {perplexity_text(best.valid_perplexity)}"
        self.say(f"best: {found}; train it alone:\n{sweep.command(best)}")


def _running(sweep: Sweep, total: int) -> Group:
    best = sweep.best
    ended = sum(all(member.status != "running" for member in trial.members) for trial in sweep.trials)
    title = f"{ended} of {total} trials ended"
    if best is not None:
        title += f"; best so far {perplexity_text(best.valid_perplexity)} ({_values(best.values)})"
    running = [member for member in sweep.members if member.status == "running"][:30]
    return Group(Text(title, style="bold"), *(Text(printable(_line(sweep, member))) for member in running))


def _line(sweep: Sweep, member: MemberResult) -> str:
    epochs = member.values.get("epochs", sweep.config.train.epochs)
    parts = [] if member.status == "running" else [member.status]
    parts.append(f"epoch {len(member.valid_perplexities)}/{epochs}")
    if member.valid_perplexities:
        parts.append(f"valid perplexity {perplexity_text(member.valid_perplexity)}")
    if member.test_perplexity is not None:
        parts.append(f"test {perplexity_text(member.test_perplexity)}")
    note = f"; {member.note}" if member.note else ""
    return f"trial {member.number} ({_values(member.values)}) seed {member.seed}: {', '.join(parts)}{note}"


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def _text(value: Any) -> Text:
    """A table cell without markup."""
    return Text(printable(shown(value)))
