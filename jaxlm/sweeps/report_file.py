"""`write_report`: a page about runs and sweeps, in one HTML file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config.config import Config, spec_of_field
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, reason, strict_json, write_bytes
from jaxlm.report.page.contents import SweepRecord, TrialRecord, by_corpus
from jaxlm.report.page.page import render
from jaxlm.runs.report_data import best_run, model_view, run_record
from jaxlm.sweeps.results import RESULTS, MemberResult, Sweep
from jaxlm.sweeps.study import member_dir
from jaxlm.terminal import flag

MOST_BYTES = 256 << 20  # of sweep.json


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
        data_dir: Where Penn Treebank's files are.

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
    runs, sweeps, where = [], [], {}
    for path, name in zip(directories, names := _names(directories), strict=True):
        if (path / "trials").exists() and not (path / "config.json").exists():
            sweeps.append(_sweep_record(path, name, which, texts, data_dir))
        else:
            runs.append(run_record(path, name))
            where[name] = path
    chosen = [best_run(together) for together in by_corpus(runs)]
    models = [model_view(where[run.name], run.name, which, texts, data_dir) for run in chosen]
    counts = [f"{len(some)} {what}{'s' * (len(some) > 1)}" for some, what in ((runs, "run"), (sweeps, "sweep")) if some]
    title = names[0] if len(names) == 1 else " and ".join(counts)
    page = render(f"Report: {title}", runs, models, sweeps)
    try:
        write_bytes(target, page.encode())
    except OSError as error:
        raise RunDirError(f"cannot write {target}: {reason(error)}; name another file with -o") from None
    return target


def _sweep_record(path: Path, name: str, which: str, texts: Sequence[str], data_dir: str | Path | None) -> SweepRecord:
    """A sweep, with a view of the model of its best member."""
    sweep, corpus = _read(path)
    trials = [
        TrialRecord(
            trial.number,
            trial.values,
            trial.status,
            len(trial.members),
            trial.valid,
            trial.test,
            trial.members[0].valid_perplexities,
        )
        for trial in sweep.trials
    ]
    if not any(math.isfinite(trial.valid[0]) for trial in trials):
        raise _no_results(path, f"a trial with a finished epoch, found {len(trials):,} without")
    best = sweep.best
    model = None
    if best:
        own = member_dir(path, best.number, best.seed)  # the sweep may have been moved
        own = own if own.exists() else member_dir(path, best.number, None)
        model = model_view(own, f"trial {best.number}, seed {best.seed}", which, texts, data_dir)
    return SweepRecord(name, str(path), corpus, trials, sweep.command(best) if best else None, model=model)


def _read(path: Path) -> tuple[Sweep, dict[str, str]]:
    """A sweep and its corpus, from sweep.json. Raises RunDirError if the file is missing or damaged."""
    try:
        with Folder.open(path) as folder:
            tree = strict_json(folder.read(RESULTS, MOST_BYTES))
        config, members = Config.from_json(json.dumps(tree["config"])), [_member(one) for one in tree["members"]]
        if not members or any(member.values.keys() != members[0].values.keys() for member in members):
            raise ValueError("it holds no members, or members of several spaces")
        for name in members[0].values:
            spec_of_field(name)  # refuses an unknown field
        return Sweep(config, members, path), {str(name): str(value) for name, value in tree["corpus"].items()}
    except FileNotFoundError:
        raise _no_results(path, f"{RESULTS}, which a sweep writes at its end") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise RunDirError(f"{path / RESULTS} is damaged: {problem}; resume the sweep, which writes it again") from None


def _member(tree: Mapping[str, Any]) -> MemberResult:
    """A member of sweep.json, where a perplexity that is not finite is null and a tuple is a list."""
    if not (type(tree["number"]) is int and type(tree["seed"]) is int):
        raise ValueError("a member is not what a sweep writes")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in tree["values"].items()}
    kept = {name: tree[name] for name in MemberResult(0, {}, 0).to_json()}
    kept["valid_perplexities"] = [math.nan if value is None else value for value in kept["valid_perplexities"]]
    return MemberResult.from_json(tree["number"], values, tree["seed"], None, kept)


def _no_results(path: Path, expected: str) -> RunDirError:
    return RunDirError(
        f"the sweep in {path} has no results: expected {expected}; resume it with "
        f"`jaxlm sweep {flag('--run-dir', path)} --resume`"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
