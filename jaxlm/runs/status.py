"""How far a run has come: finished, stopped, diverged, or imported."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxlm.base.errors import RunDirError
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.run import window_plan


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    >>> print(Status("stopped", 16, 33))
    stopped at window 16 of 33
    """

    state: Literal["finished", "stopped", "diverged", "imported", "n-gram"]
    step: int  # windows trained, in the last checkpoint
    windows: int | None = None  # of all epochs; None: it is not known

    def __str__(self) -> str:
        """As it stands after a run's name."""
        if self.state in ("finished", "imported", "n-gram"):
            return self.state
        total = "" if self.windows is None else f" of {self.windows:,}"
        return f"{self.state} at window {self.step:,}{total}"


def status(run_dir: str | Path) -> Status:
    """How far the run in a directory has come. No arrays are read.

    A run has finished once no window of its epochs is left to train, or once its patience has ended
    it. One that was ended by `--steps` has not.

    Args:
        run_dir: The run's directory.

    Raises:
        JaxlmError: There is no run, or its config or metrics are damaged.
    """
    if is_ngram_folder(run_dir):
        return Status("n-gram", 0)
    config = directory.saved_config(run_dir)
    step = max(checkpoint.manifests(run_dir), default=0)
    rows = read_metrics(run_dir)
    tokens = _train_tokens(run_dir)
    if tokens == 0:  # the text of a model that was not trained here is not read
        return Status("imported", step)
    windows = None
    if tokens is not None:
        windows = window_plan(config, tokens // config.train.batch_size).total
    valid = [row.get("valid_perplexity", math.inf) for row in rows if row["kind"] == "epoch"]
    kinds = [row["kind"] for row in rows]
    if kinds[-1:] == ["diverged"] or not all(map(math.isfinite, valid[-1:])):
        return Status("diverged", step, windows)
    unfinished = step < windows if windows is not None else "test" not in kinds
    patience = config.train.patience
    ended_early = False
    if 0 < patience < len(valid):
        ended_early = min(valid[-patience:]) >= min(valid[:-patience])
    if unfinished and not ended_early:
        return Status("stopped", step, windows)
    return Status("finished", step, windows)


def _train_tokens(run_dir: str | Path) -> int | None:
    """The tokens of train, from run.json; None where it is damaged."""
    try:
        count = directory.saved_record(run_dir)["corpus"]["tokens"]["train"]
    except (RunDirError, KeyError, TypeError):
        return None
    return count if type(count) is int else None
