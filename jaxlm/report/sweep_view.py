"""The terminal output of a sweep: a line for each epoch and end of a member; the best trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.base.terminal import printable
from jaxlm.base.units import measure_name, measure_text, number_text
from jaxlm.report.sweep_results import MemberResult, Sweep, value_text

MOST_SHOWN = 20  # trials in the summary


class SweepView:
    """Prints a sweep."""

    def __init__(self, console: Console):
        """Prints on a console."""
        self.quiet = console.quiet
        self._console = console
        # The epochs and the status of each member (trial, seed) that are shown already.
        self._shown: dict[tuple[int, int], tuple[int, str]] = {}

    def say(self, text: str) -> None:
        """Prints text, which may quote files."""
        text = printable(text, keep_newlines=True, encoding=self._console.encoding)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, sweep: Sweep) -> None:
        """Shows the epochs and ends that are new since the last look."""
        for member in sweep.members:
            key = (member.number, member.seed)
            news = (len(member.valid_perplexities), member.status)
            if news != self._shown.get(key, (0, "running")):
                self.say(_line(sweep, member))
            self._shown[key] = news

    def summary(self, sweep: Sweep, written: Sequence[Path] = ()) -> None:
        """Shows the best trials, and how to train the winner alone.

        Args:
            sweep: The results.
            written: The files that hold them.
        """
        trials = sweep.trials
        self.say(f"{len(trials)} trials, best first:")
        measure = measure_name(sweep.tokens)
        for trial in trials[:MOST_SHOWN]:
            line = f"trial {trial.number} ({_values(trial.values)}): {trial.status}"
            for name, value in ((f"valid {measure}", trial.valid), ("test", trial.test)):
                text = number_text(measure, *value)
                if text:
                    line += f", {name} {text}"
            self.say(line)
        if len(trials) > MOST_SHOWN:
            self.say(f"... and {len(trials) - MOST_SHOWN} more")
        if sweep.importances:
            shares = [f"{name} {share:.0%}" for name, share in sweep.importances.items()]
            self.say(f"importance for the {measure}: {', '.join(shares)}")
        if written:
            self.say(f"written: {', '.join(map(str, written))}")
        if sweep.damaged:
            self.say(
                f"{len(sweep.damaged)} damaged, to be tried again with --resume once checkpoints "
                f"are replaced by intact ones, run directories are removed, or memory is free"
            )
        best = sweep.best
        if best is None:
            self.say("no trial is done")
            return
        self.say(
            f"best: trial {best.number}, seed {best.seed}, valid {measure} "
            f"{measure_text(best.valid_perplexity, sweep.tokens)}; train it alone:\n"
            f"{sweep.command(best)}"
        )


def _line(sweep: Sweep, member: MemberResult) -> str:
    epochs = member.values.get("epochs", sweep.config.train.epochs)
    results = [f"epoch {len(member.valid_perplexities)}/{epochs}"]
    if member.status != "running":
        results.insert(0, member.status)
    if member.valid_perplexities:
        value = measure_text(member.valid_perplexity, sweep.tokens)
        results.append(f"valid {measure_name(sweep.tokens)} {value}")
    if member.test_perplexity is not None:
        results.append(f"test {measure_text(member.test_perplexity, sweep.tokens)}")
    name = f"trial {member.number} ({_values(member.values)}) seed {member.seed}"
    line = f"{name}: {', '.join(results)}"
    if member.note:
        line += f"; {member.note}"
    return line


def _values(values: Mapping[str, Any]) -> str:
    texts = []
    for name, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else value_text(value)
        texts.append(f"{name}={text}")
    return " ".join(texts)
