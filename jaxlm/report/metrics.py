"""The format of a run's `metrics.jsonl`, and its reader; `metrics_log.py` writes it.

The file depends on nothing but the training: it holds no time, so a resumed run ends with the same bytes as an
uninterrupted one. Seconds go to `timing.jsonl`. Lines:

    {"kind":"window","step":1,"epoch":1,"cost":184.2,"grad_norm":3.1,"learning_rate":1.0}
    {"kind":"epoch","corpus":"ptb","epoch":1,"train_perplexity":...,"valid_perplexity":...,"floor_valid":...}
    {"kind":"test","corpus":"ptb","test_perplexity":...}

A window's cost is the sum over its steps of the batch's mean nats; the line of a window whose length is not
bptt_length ends with `"steps":T`. JSON has only finite numbers: the texts "nan", "inf" and "-inf" stand for the others.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, held, reason

MOST_BYTES = 1 << 32  # of a metrics.jsonl: thirty million windows
NAME = "metrics.jsonl"
SERIES = ("cost", "grad_norm", "learning_rate")
_NEEDED = {"window": {"step", "epoch", *SERIES}, "epoch": {"epoch"}}
_COUNT = re.compile("step|steps|epoch")
_NUMBER = re.compile("|".join(SERIES) + "|.*perplexity|floor.*")


def read_metrics(run: str | Path | Folder) -> list[dict[str, Any]]:
    """All whole lines of a run's `metrics.jsonl`; a last one that a killed writer left unfinished is dropped.

    Args:
        run: the run directory.

    Returns:
        A dict for each line; perplexities, costs, norms and rates as floats.

    Raises:
        RunDirError: There is no such file, or no regular file of at most `MOST_BYTES`.
        JaxlmError: A line is damaged; names the file and the line's number.
    """
    path = (run.path if isinstance(run, Folder) else Path(run)) / NAME
    try:
        with held(run) as folder:
            return rows_of(read_bytes(folder), path)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_bytes(folder: Folder) -> bytes:
    """All of a run's `metrics.jsonl`. Raises RunDirError."""
    try:
        return folder.read(NAME, MOST_BYTES)
    except OSError as error:
        raise _unreadable(folder.path / NAME, error) from None


def _unreadable(path: Path, error: OSError) -> RunDirError:
    return RunDirError(
        f"expected a run's metrics in {path}: {reason(error)}; give the directory of a run that has started"
    )


def rows_of(data: bytes, path: Path) -> list[dict[str, Any]]:
    """A dict for each whole line; `path` names the file where JaxlmError is raised for one that is damaged."""
    rows = []
    for number, line in enumerate(io.BytesIO(data), 1):
        try:
            if line.endswith(b"\n"):
                rows.append(_row(line))
        except (ValueError, OverflowError, RecursionError):
            raise JaxlmError(
                f"{path}, line {number}: expected a window or a result as JSON, found {line[:60]!r}; "
                "the file is damaged, restore it from a copy"
            ) from None
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode())
    if not (
        isinstance(row, dict) and isinstance(row.get("kind"), str) and row.keys() >= _NEEDED.get(row["kind"], set())
    ):
        raise ValueError
    for name, value in row.items():
        if _COUNT.fullmatch(name) and not (type(value) is int and 0 <= value < 2**53):
            raise ValueError
        if _NUMBER.fullmatch(name):
            if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
                raise ValueError
            row[name] = float(value)
    return row
