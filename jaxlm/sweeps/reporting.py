"""`write_report`: the page of runs and sweeps, whole or not at all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, reason, strict_json, write_bytes
from jaxlm.report.page.contents import SweepRecord, TrialRecord, by_corpus
from jaxlm.report.page.page import render
from jaxlm.runs.report_data import best_run, model_view, run_record
from jaxlm.sweeps.distributions import Space
from jaxlm.sweeps.plan import Saved, member_dir
from jaxlm.sweeps.results import MemberResult, Sweep
from jaxlm.terminal import flag

MOST_BYTES = 256 << 20  # of sweep.json
_SWEEP = "sweep.json"


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    which: str = "last",
    texts: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> Path:
    """Writes one page about runs and sweeps: a file of HTML that needs nothing else.

    Args:
        paths: directories of runs and of sweeps; one that is named twice counts once.
        out: the file to write (default: report.html in the directory, where there is one alone).
        which: the checkpoint whose words, surprisals and samples are shown: `last`, `best`, or a step. It is that of
            the run with the lowest validation perplexity on each corpus.
        texts: to be scored by those models.
        data_dir: where Penn Treebank's files lie.

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
    names = _names(directories)
    runs, sweeps, where = [], [], {}
    for path, name in zip(directories, names, strict=True):
        if _is_sweep(path):
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


def _is_sweep(path: Path) -> bool:
    return (path / "plan.json").exists() and not (path / "config.json").exists()


def _sweep_record(path: Path, name: str, which: str, texts: Sequence[str], data_dir: str | Path | None) -> SweepRecord:
    """A sweep, with what the model of its best member says."""
    plan = Saved.read(path).plan
    sweep = Sweep(plan.config, _members(path, plan.space), path)
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
        raise JaxlmError(
            f"the sweep in {path} has no results: expected a trial with a finished epoch, found "
            f"{len(trials):,} without; resume it with `jaxlm sweep {flag('--run-dir', path)} --resume`"
        )
    best = sweep.best
    model = None
    if best:
        own = member_dir(path, plan, best.number, best.seed)  # wherever the sweep lies now
        model = model_view(own, f"trial {best.number}, seed {best.seed}", which, texts, data_dir)
    return SweepRecord(name, str(path), plan.corpus, trials, sweep.command(best) if best else None, model=model)


def _members(path: Path, space: Space) -> list[MemberResult]:
    """The members in sweep.json, which a sweep writes at its end. Raises RunDirError where it is missing or damaged."""
    try:
        with Folder.open(path) as folder:
            members = strict_json(folder.read(_SWEEP, MOST_BYTES))["members"]
        found = [_member(member) for member in members]
        if not found or any(member.values.keys() != space.keys() for member in found):
            raise ValueError("it holds no members, or members of another space than plan.json has")
        return found
    except FileNotFoundError:
        raise RunDirError(
            f"the sweep in {path} has no results: expected {_SWEEP}, which a sweep writes at its end; "
            f"resume it with `jaxlm sweep {flag('--run-dir', path)} --resume`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise RunDirError(f"{path / _SWEEP} is damaged: {what}; resume the sweep, which writes it again") from None


def _member(tree: Mapping[str, Any]) -> MemberResult:
    if not (type(tree["number"]) is int and type(tree["seed"]) is int and isinstance(tree["values"], dict)):
        raise ValueError("a member is not what a sweep writes")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in tree["values"].items()}
    record = {name: tree[name] for name in ("status", "valid_perplexities", "test_perplexity", "seconds", "note")}
    # (JSON has null for a perplexity that is not finite.)
    record["valid_perplexities"] = [math.nan if value is None else value for value in record["valid_perplexities"]]
    return MemberResult.from_json(tree["number"], values, tree["seed"], None, record)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    most = max(map(len, parts))
    for count in range(1, most + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
