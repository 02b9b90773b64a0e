"""`write_report`: a page about runs and sweeps, in one HTML file."""

import math
from collections.abc import Sequence
from pathlib import Path

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import explained, write_bytes
from jaxlm.report.page import SweepRecord, by_corpus, render
from jaxlm.runs.report_data import best_run, model_view, run_record
from jaxlm.sweeps.results import RESULTS, read
from jaxlm.sweeps.study import member_dir
from jaxlm.terminal import flag


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    which: str = "last",
    texts: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> Path:
    """Writes one self-contained HTML page about runs and sweeps.

    Args:
        paths: Directories of runs and of sweeps; one that is named twice counts once.
        out: The file to write (default: report.html in the directory, if there is only one).
        which: The checkpoint whose words, surprisals and samples are shown: `last`, `best`, or a step. The run is the
            one with the lowest validation perplexity on each corpus.
        texts: Scored by these models.
        data_dir: The folder of Penn Treebank's files.

    Returns:
        The file's path.

    Raises:
        JaxlmError: A directory holds no results, or one is damaged, or the page cannot be written. Nothing is then
            written.
    """
    directories = list({Path(path).resolve(): Path(path) for path in paths}.values())
    if not directories:
        raise JaxlmError("there is no run and no sweep to report: name at least one")
    if out is None and len(directories) > 1:
        raise JaxlmError(f"a report of {len(directories)} directories needs a place: name it with -o FILE")
    target = Path(out) if out is not None else directories[0] / "report.html"
    if target.is_dir():
        raise JaxlmError(f"{target} is a directory: name the file to write, as in -o {target / 'report.html'}")
    names = [path.resolve().name for path in directories]
    if len(set(names)) < len(names):
        names = [str(path) for path in directories]
    runs, sweeps = [], []
    for path, name in zip(directories, names, strict=True):
        if (path / "trials").exists() and not (path / "config.json").exists():
            sweeps.append(_sweep_record(path, name, which, texts, data_dir))
        else:
            runs.append(run_record(path, name))
    chosen = [best_run(together) for together in by_corpus(runs)]
    models = [model_view(Path(run.path), run.name, which, texts, data_dir) for run in chosen]
    counts = [f"{len(some)} {what}{'s' * (len(some) > 1)}" for some, what in ((runs, "run"), (sweeps, "sweep")) if some]
    title = names[0] if len(names) == 1 else " and ".join(counts)
    page = render(f"Report: {title}", runs, models, sweeps)
    with explained(RunDirError, f"cannot write {target}"):
        write_bytes(target, page.encode())
    return target


def _sweep_record(path: Path, name: str, which: str, texts: Sequence[str], data_dir: str | Path | None) -> SweepRecord:
    """A sweep, with a view of the model of its best member."""
    try:
        sweep, corpus = read(path)
        if not any(math.isfinite(member.valid_perplexity) for member in sweep.members):
            raise FileNotFoundError
    except FileNotFoundError:
        raise RunDirError(
            f"the sweep in {path} has no results: expected {RESULTS}, which a sweep writes at its end, and a finished "
            f"epoch; resume it with `jaxlm sweep {flag('--run-dir', path)} --resume`"
        ) from None
    if (best := sweep.best) is None:
        return SweepRecord(name, corpus, sweep.trials)
    own = member_dir(path, best.number, best.seed)  # the sweep may have been moved
    own = own if own.exists() else member_dir(path, best.number, None)
    model = model_view(own, f"trial {best.number}, seed {best.seed}", which, texts, data_dir)
    return SweepRecord(name, corpus, sweep.trials, sweep.command(best), model)
