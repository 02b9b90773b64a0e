"""The terminal output of a sweep: a line for each epoch and each end of a member, and then the best trials."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.report.units import perplexity_text, spread
from jaxlm.sweeps.results import MemberResult, Sweep, shown
from jaxlm.terminal import printable


class View:
    """Shows a sweep on a console."""

    def __init__(self, console: Console):
        self.console = console
        self._seen: dict[tuple[int, int], tuple[int, str]] = {}
        self._shown = 0.0

    def say(self, text: str) -> None:
        """Prints text, which may quote files."""
        self.console.print(printable(text, keep_newlines=True), markup=False, highlight=False, soft_wrap=True)

    def show(self, result: Callable[[], Sweep], every: float = 0.5) -> None:
        """Shows the epochs and ends that are new since the last look, at most every so many seconds."""
        if time.monotonic() < self._shown + every:
            return
        self._shown, sweep = time.monotonic(), result()
        for member in sweep.members:
            now = len(member.valid_perplexities), member.status
            if now != self._seen.get((member.number, member.seed), (0, "running")):
                self.say(_line(sweep, member))
            self._seen[member.number, member.seed] = now

    def summary(self, sweep: Sweep, written: Sequence[Path] = (), most: int = 20) -> None:
        """The best trials, what was written, and how to train the winner alone."""
        trials, best = sweep.trials, sweep.best
        self.say(f"{len(trials)} trials, best first:")
        for trial in trials[:most]:
            results = f"valid perplexity {spread(*trial.valid)}, test {spread(*trial.test)}"
            self.say(f"trial {trial.number} ({_values(trial.values)}): {trial.status}, {results}")
        if len(trials) > most:
            self.say(f"... and {len(trials) - most} more")
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
