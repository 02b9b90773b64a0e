"""The files of a sweep's results: a table, a JSON file that `read_sweep` reads, and pictures."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxlm.base.errors import RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.hashed_json import finite, from_hashed_json, to_hashed_json
from jaxlm.base.terminal import flag_text
from jaxlm.config.config import Config
from jaxlm.report.sweep_plots import parallel_plot, slice_plot
from jaxlm.report.sweep_results import MemberResult, Sweep

RESULTS = "sweep.json"
TABLE = "sweep.csv"
MOST_BYTES = 256 << 20  # of sweep.json


def write_sweep(
    sweep: Sweep,
    path: Path,
    corpus: Mapping[str, str],
) -> list[Path]:
    """Writes sweep.csv, sweep.json and, once two trials are done, the pictures.

    Args:
        sweep: The results.
        path: The sweep's directory.
        corpus: The corpus's name and hashes.

    Returns:
        The paths of what was written.

    Raises:
        RunDirError: A file cannot be written.
    """
    rows = sweep.rows()
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    best = sweep.best
    tree = {
        "config": json.loads(sweep.config.to_json()),
        "corpus": corpus,
        "data_dir": sweep.data_dir,
        "importances": sweep.importances,
        "best": None if best is None else best.number,
        "command": None if best is None else sweep.command(best),
        "members": [{**asdict(member), "run_dir": str(member.run_dir)} for member in sweep.members],
    }
    written = [path / TABLE, path / RESULTS]
    done = [trial for trial in sweep.trials if trial.done]
    writing = explained(RunDirError, f"{path} cannot be written", "the runs under it are whole")
    with writing, Folder.open(path) as folder:  # of many processes that end, each writes the same
        folder.clean()
        folder.write(TABLE, text.getvalue().encode(errors="surrogateescape"))
        folder.write(RESULTS, to_hashed_json(finite(tree)).encode())
        if len(done) > 1:
            written.append(slice_plot(done, path / "slices.png"))
            written.append(parallel_plot(done, path / "parallel.png"))
    return written


def read_sweep(path: Path) -> tuple[Sweep, dict[str, str]]:
    """Reads a sweep's results.

    Args:
        path: The sweep's directory.

    Returns:
        The sweep, whose members name no run directory, since it may have been moved; and its
        corpus's name and hashes.

    Raises:
        RunDirError: sweep.json is missing or damaged.
    """
    resume = f"`jaxlm sweep {flag_text('--run-dir', path)} --resume`"
    with (
        explained(
            RunDirError,
            f"{path / RESULTS} cannot be read",
            f"{resume} writes it at the end of the sweep",
        ),
        Folder.open(path) as folder,
    ):
        tree = from_hashed_json(folder.read(RESULTS, MOST_BYTES))
        try:
            return (
                Sweep(
                    Config.from_json(json.dumps(tree["config"])),
                    [_member(member) for member in tree["members"]],
                    path,
                    data_dir=tree.get("data_dir"),
                    importances=tree.get("importances", {}),
                ),
                tree["corpus"],
            )
        except (KeyError, TypeError, AttributeError):
            raise ValueError("it is not what this version of jaxlm writes") from None


def _member(tree: dict[str, Any]) -> MemberResult:
    """A member from JSON, which has lists in place of tuples and null in place of nan."""
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in tree["values"].items()
    }
    perplexities = tuple(
        math.nan if value is None else value for value in tree["valid_perplexities"]
    )
    return MemberResult(
        **{**tree, "values": values, "valid_perplexities": perplexities, "run_dir": None}
    )
