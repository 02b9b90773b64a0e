"""Runs in their usual place: `runs/PRESET-DATE-TIME`."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.terminal import say_line
from jaxlm.runs.metrics import read_metrics

RUNS = Path("runs")
_DATED = re.compile(r"(.+)-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?")  # as `new_run` names them


@contextmanager
def new_run(label: str) -> Iterator[Path]:
    """A new directory in the usual place, which goes again if it is left empty.

    It is numbered where another began in the same second.

    Args:
        label: How its name begins; letters that a name should not have become hyphens.

    Yields:
        The directory.

    Raises:
        RunDirError: It cannot be made.
    """
    label = re.sub(r"[^\w.-]", "-", label)  # The preset of a stranger's config may be any text.
    first = RUNS / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = first
    number = 1
    remedy = "fix that, or choose another place with --run-dir"
    with (
        explained(RunDirError, f"no run can begin in {RUNS}", remedy),
        Folder.open(RUNS, create=True) as runs,
    ):
        while True:
            with suppress(FileExistsError):
                run_dir.mkdir()
                break
            number += 1
            run_dir = first.with_name(f"{first.name}-{number}")
        runs.sync()
    try:
        yield run_dir
    finally:
        with suppress(OSError):  # A run began in it.
            run_dir.rmdir()


def newest_unfinished(name: str | None) -> Path:
    """Finds the run that `train --resume` resumes without --run-dir, and says so.

    Args:
        name: A preset, whose runs alone count.

    Returns:
        The newest run in the usual place that has not finished.

    Raises:
        JaxlmError: There is none.
    """
    runs = []
    for path in RUNS.glob("*/config.json"):
        dated = _DATED.fullmatch(path.parent.name)
        if dated and name in (None, dated[1]):
            runs.append((dated[2], int(dated[3] or 1), path.parent))
    runs.sort()
    for *_, run in reversed(runs):
        rows = []
        with suppress(JaxlmError):
            rows = read_metrics(run)
        if not any(row["kind"] == "test" for row in rows):
            say_line(f"resuming {run}")
            return run
    kind = f"dated run of {name}" if name else "dated run"
    if runs:
        raise JaxlmError(
            f"every {kind} in {RUNS}/ has finished, the newest is {runs[-1][-1]}: "
            "name it with --run-dir to resume it with more --epochs or --steps"
        )
    raise JaxlmError(
        f"there is no {kind} in {RUNS}/ to resume: "
        "name one with --run-dir, or start one without --resume"
    )
