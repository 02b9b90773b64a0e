"""The sweep itself: it writes the plan down, starts workers or works alone, and shows what comes of it."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxlm.config.config import Config
from jaxlm.config.settings import DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, reason
from jaxlm.report.progress import lasting_console
from jaxlm.runs import directory as rundir
from jaxlm.runs import ram, signals
from jaxlm.runs.trainer import with_corpus
from jaxlm.sweeps.cores import useful_workers
from jaxlm.sweeps.plan import MOST_GROUP, MOST_WORKERS, Plan, Saved, check_count, kept_storage, make_plan
from jaxlm.sweeps.processes import supervise
from jaxlm.sweeps.results import Sweep, write
from jaxlm.sweeps.space import with_first_values
from jaxlm.sweeps.study import Study
from jaxlm.sweeps.view import View
from jaxlm.sweeps.worker import POLL, Corpora, Worker
from jaxlm.terminal import flag, say

JOURNAL, STORAGE = "study.journal", "JAXLM_STORAGE"  # the study's usual place; the environment's name for another


def sweep(
    config: Config,
    space: Mapping[str, Any],
    *,
    strategy: str = "grid",
    trials: int | None = None,
    seeds: int = 1,
    prune: bool | None = None,
    corpus: str | Path | Corpus | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    storage: str | Path | None = None,
    group: int | None = None,
    vmap: bool | None = None,
    data_dir: str | Path | None = None,
    quiet: bool = False,
) -> Sweep:
    """Trains the points of a space and returns which has the lowest validation perplexity.

    Members of equal shapes train together: on CPUs each as `train` would train it alone; on accelerators they share
    each operation, equal up to float32 rounding. Signals stop a sweep as they stop `train`. Needs Optuna: `pip install
    'jaxlm[sweep]'`.

    Args:
        config: The recipe; what the space leaves out is its.
        space: Fields of the config -> values, ranges or distributions, as `sweeps.space.read_space` takes them.
        strategy: grid (every point), random, or tpe (Optuna's choice).
        trials: How many points to try; a grid needs none.
        seeds: How many members a trial has, from the config's seed on.
        prune: Give up trials that are worse than the median of the others (None: with tpe only).
        corpus: Instead of the config's: a name, a path, or a corpus in memory.
        run_dir: Where all is kept, each member in a run directory of its own; None: nothing is kept.
        resume: Resume the sweep in `run_dir`, beside whoever works on it already.
        workers: Processes that share the work, each pinned to its share of the cores (None: one a core on CPUs where
            the sweep is long enough and its corpus is named; else this process alone).
        storage: Another journal's path or a database's URL for Optuna's study (None: $JAXLM_STORAGE, else the journal
            in `run_dir`). A URL's password is kept nowhere: resume with the URL again.
        group: Members that train in one program (None: as many as fit).
        vmap: Members share each operation (the default on accelerators), or take turns within the program (on CPUs,
            where that is faster).
        data_dir: Where Penn Treebank's files are.
        quiet: Print nothing.

    Returns:
        The trials and their members.

    Raises:
        JaxlmError: Something is out of its limits, or the study cannot be used.
        RunDirError: The directory is in use, holds something else, or cannot be written.
    """
    for name, number, most in (("workers", workers, MOST_WORKERS), ("group", group, MOST_GROUP)):
        if number is not None:
            check_count(name, number, most)
    if isinstance(corpus, Corpus) and (workers or 1) > 1:
        raise JaxlmError("workers load the corpus themselves: name it, instead of giving it as an object")
    other = sorted(space.keys() & {*DataConfig.__dataclass_fields__, "vocab_size"})
    if isinstance(corpus, Corpus) and other:
        raise JaxlmError(f"{other[0]} is in the space, and the corpus is given as an object: name it instead")
    draft = make_plan(config, space, strategy, trials, seeds, prune, {})  # errors come before a corpus is loaded
    loaded, found = with_corpus(with_first_values(config, draft.space), corpus, data_dir)
    config = config.replace(corpus=found.spec, compute_dtype=loaded.model.compute_dtype, **found.options)
    plan = make_plan(config, space, strategy, trials, seeds, prune, rundir.named(found))
    chosen = workers or (
        1 if isinstance(corpus, Corpus) else useful_workers(loaded, plan, len(found.train), ram.available())
    )
    kept = run_dir is not None or chosen > 1
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(TemporaryDirectory(prefix="jaxlm-sweep-")))
        view = stack.enter_context(View(lasting_console(quiet)))
        saved, where = _begin(folder, plan, storage, group, vmap, resume)
        study = _study(saved, folder, where, kept, view.say)
        saved.write(folder)
        if resume:
            study.retry_damaged()
        for note in found.notes:
            view.say(f"!! {note}")
        view.say(
            f"{found.name}: {plan.trials} trials"
            + (f" of {seeds} seeds" if seeds > 1 else "")
            + f" ({strategy}) in {run_dir or 'a temporary directory'}"
        )
        if workers is None and chosen > 1:
            view.say(f"{chosen} processes, one a core: small models train faster so (--workers 1: all in this process)")

        def result() -> Sweep:
            return Sweep(config, study.records(), folder)

        def show() -> None:
            if view.due():
                view.show(result(), plan.trials)

        with signals.noted() as stop:
            if chosen > 1:
                _supervise(folder, chosen, data_dir, where, study, stop, show, view.say)
            else:
                Worker(
                    study,
                    Corpora(found, isinstance(corpus, Corpus), data_dir),
                    saved.group,
                    1,
                    kept,
                    lambda: stop.signal,
                    show,
                    saved.vmap,
                ).run()
        view.show(result(), plan.trials)
        if stop.signal is not None:
            view.say(
                f"stopped by {signal.Signals(stop.signal).name}: "
                + (f"saved; resume with {flag('--run-dir', folder)} --resume" if run_dir else "nothing is kept")
            )
        else:
            view.summary(result(), write(result(), folder) if run_dir else [])
        members = [member if run_dir else replace(member, run_dir=None) for member in study.records()]
        return Sweep(config, members, folder if run_dir else None, stop.signal)


def join(run_dir: Path, workers: int, data_dir: str | Path | None = None) -> int | None:
    """Works on the sweep in a directory, which `sweep` began, as one of `workers` processes.

    Returns:
        The signal that stopped it, if one did.

    Raises:
        JaxlmError: As `sweep`.
    """
    saved, parent = Saved.read(run_dir), os.getppid()
    where = saved.resolve(run_dir, None, os.environ.get(STORAGE))
    _, found = with_corpus(saved.plan.config, None, data_dir)
    if changed := rundir.different(saved.plan.corpus, rundir.named(found)):
        raise JaxlmError(
            f"the sweep in {run_dir} has another corpus ({'; '.join(changed)}): name its folder with --data-dir"
        )
    study = _study(saved, run_dir, where, True, say)

    def stopped() -> int | None:
        return stop.signal or (None if os.getppid() == parent else signal.SIGTERM)  # or its parent is dead

    with signals.noted() as stop:
        Worker(
            study, Corpora(found, False, data_dir), saved.group, workers, True, stopped, lambda: None, saved.vmap
        ).run()
        return stopped()


def saved_options(
    run_dir: Path, space: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Config, Mapping[str, Any], dict[str, Any]]:
    """The config, space and options that resume the sweep in a directory; those given stand, to be compared.

    Raises:
        RunDirError: There is none.
    """
    plan = Saved.read(run_dir).plan
    trials = {} if plan.strategy == "grid" else {"trials": plan.trials}
    return (
        plan.config,
        space or plan.space,
        {"strategy": plan.strategy, **trials, "seeds": plan.seeds, "prune": plan.prune, **options},
    )


def _begin(
    folder: Path, plan: Plan, storage: str | Path | None, group: int | None, vmap: bool | None, resume: bool
) -> tuple[Saved, str | None]:
    """What `plan.json` is to keep, compared with what it keeps, and the storage that is used instead of the journal."""
    given = None if storage is None else str(storage)
    if resume:
        saved = Saved.read(folder)
        if changed := saved.plan.differences(plan):
            raise RunDirError(
                f"{folder} holds another sweep ({'; '.join(changed)}): resume it with its own, or choose "
                f"another --run-dir"
            )
        where = saved.resolve(folder, given, os.environ.get(STORAGE))
        return replace(saved, plan=plan, group=group or saved.group, vmap=saved.vmap if vmap is None else vmap), where
    given = given or os.environ.get(STORAGE)
    try:
        with Folder.open(folder, create=True) as held:
            # What a process leaves that was killed before there was a sweep is no other thing.
            names = [name for name in held.names() if name[0] != "." and not name.startswith(JOURNAL)]
    except OSError as error:
        raise RunDirError(f"no sweep can begin in {folder}: {reason(error)}; choose another --run-dir") from None
    if names:
        raise RunDirError(
            f"{folder} is not empty (it holds {', '.join(names[:4])}): resume the sweep in it with "
            f"--resume, or choose another --run-dir"
        )
    return Saved(plan, kept_storage(folder, given), group, vmap), given


def _study(saved: Saved, folder: Path, where: str | None, kept: bool, say: Callable[[str], None]) -> Study:
    """The study, in `where` if that is given, else in the directory's journal, or in memory."""
    return Study(
        saved.plan,
        folder,
        where or (str(folder / JOURNAL) if kept else None),
        saved.place,
        saved.storage is not None,
        say,
    )


def _supervise(
    folder: Path,
    workers: int,
    data_dir: str | Path | None,
    where: str | None,
    study: Study,
    stop: signals.Stop,
    show: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Has other processes do the work, and shows what they do."""
    arguments = ["sweep", f"--run-dir={folder}", "--workers", str(workers), "--worker"]
    arguments += [] if data_dir is None else [f"--data-dir={data_dir}"]
    command = [sys.executable, "-c", "import sys; from jaxlm.cli import main; sys.exit(main())", *arguments]
    environment = os.environ if where is None else {**os.environ, STORAGE: where}  # arguments are for all to see
    failure = supervise(command, environment, workers, folder, stop, show, say, POLL / 2)
    if stop.signal is None and not study.ended:
        raise JaxlmError(
            f"every worker ended before the sweep did: what was saved is whole; resume with "
            f"{flag('--run-dir', folder)} --resume" + (f" (the last one: {failure})" if failure else "")
        )
