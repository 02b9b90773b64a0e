"""`sweep`: writes the plan, starts worker processes or works alone, and shows the results."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import jax
from rich.console import Console

from jaxlm.config.config import Config
from jaxlm.config.settings import TOKEN_FIELDS, DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.data.prepared import is_prepared
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.fields import checked_value
from jaxlm.files import Folder, explained
from jaxlm.report.progress import lasting_console
from jaxlm.report.sweep_plots import value_text
from jaxlm.runs import directory, precision, ram, signals
from jaxlm.runs.lock import ELSEWHERE
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.runs.trainer import with_corpus
from jaxlm.sweeps.results import MemberResult, Sweep, write
from jaxlm.sweeps.space import MOST_POINTS, Plan, first_values, make_plan
from jaxlm.sweeps.study import JOURNAL, Study, read_plan
from jaxlm.sweeps.worker import Worker
from jaxlm.terminal import flag_text, printable
from jaxlm.units import perplexity_text, spread

STORAGE = "JAXLM_STORAGE"  # the environment's name for a storage
MOST_SHOWN = 20  # trials in the summary
WORTH = 2e13  # multiplications and additions of a process's members, about a minute: from there on it pays
MOST_WORKERS = 16
MEMORY = 2 << 30  # bytes that a process needs at least
MOST_SAID = 1 << 20  # bytes of standard error that are read
POLL = 0.5  # seconds between two looks at the workers


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
    storage: str | None = None,
    group: int | None = None,
    vmap: bool | None = None,
    data_dir: str | Path | None = None,
    quiet: bool = False,
) -> Sweep:
    """Trains the points of a space and finds the lowest validation perplexity.

    Members of equal shapes train in one program, each equal to `train` alone. Signals stop a sweep as they stop
    `train`. Needs Optuna: `pip install 'jaxlm[sweep]'`.

    Args:
        config: The config, with the fields that the space leaves out.
        space: Fields of the config -> values, ranges or distributions, as `sweeps.space.read_space` takes them.
        strategy: grid (every point), random, or tpe (Optuna's choice).
        trials: How many points to try; a grid needs none.
        seeds: How many members a trial has, from the config's seed on.
        prune: Stop trials that are worse than the median of the others (None: with tpe only).
        corpus: Instead of the config's: a name, a path, or a corpus in memory.
        run_dir: The sweep's directory, with a run directory for each member; None: nothing is kept.
        resume: Resume the sweep in `run_dir`, or join the processes that work on it.
        workers: Processes that share the work, each pinned to its share of the cores (None: one a core on CPUs if the
            sweep is long and its corpus is named; else this process alone).
        storage: A database's URL for Optuna's study, given again to resume (None: $JAXLM_STORAGE, else a journal).
        group: Members that train in one program (None: as many as fit).
        vmap: Members share each operation, equal up to float32 rounding (None: on accelerators), or take turns.
        data_dir: The folder of Penn Treebank's files.
        quiet: Print nothing.

    Returns:
        The trials and their members.

    Raises:
        JaxlmError: A value is outside its limits, or the study cannot be used.
        RunDirError: The directory is in use, holds something else, or cannot be written.
    """
    run_dir = checked_value("run_dir", run_dir, Path, optional=True)
    workers = checked_value("workers", workers, int, low=1, high=MOST_POINTS, optional=True)
    group = checked_value("group", group, int, low=1, high=MOST_POINTS, optional=True)
    draft = make_plan(
        config, space, strategy, trials, seeds, prune, {}
    )  # errors come before a corpus is loaded
    in_memory = isinstance(corpus, Corpus)
    if in_memory:
        if (workers or 1) > 1:
            raise JaxlmError(
                "workers load the corpus themselves: name it, instead of giving it as an object"
            )
        other = sorted(space.keys() & {*DataConfig.__dataclass_fields__, "vocab_size"})
        if other:
            raise JaxlmError(
                f"{other[0]} is in the space, and the corpus is given as an object: name it instead"
            )
    fitting = config
    with suppress(
        JaxlmError
    ):  # (the recipe's own value of a field of the space is never trained, and need not fit)
        fitting = config.replace(**first_values(draft.space))
    loaded, found = with_corpus(fitting, corpus, data_dir)
    loaded, _, _ = precision.resolved(loaded)
    read = (
        {} if "corpus" in draft.space else {"corpus": found.spec, **found.options}
    )  # (else of one text alone)
    config = config.replace(compute_dtype=loaded.model.compute_dtype, **read)
    # The sweep may be resumed from another directory. (What is prepared needs the file no more.)
    if config.data.tokenizer_file and not is_prepared(config.data.corpus):
        config = config.replace(tokenizer_file=os.path.abspath(config.data.tokenizer_file))
    plan = replace(draft, config=config, corpus=directory.named(found))
    chosen = workers or (
        1 if in_memory else useful_workers(loaded, plan, len(found.train), ram.available())
    )
    view = View(lasting_console(quiet))
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(TemporaryDirectory(prefix="jaxlm-sweep-")))
        where = _where(folder, storage, resume)
        if draft.config.model.compute_dtype == "auto":
            with suppress(JaxlmError):  # begun on another machine, it has that one's
                config = config.replace(compute_dtype=read_plan(where).config.model.compute_dtype)
                plan = replace(plan, config=config)
        study = Study(plan, folder, where)
        for note in found.notes:
            view.say(f"!! {note}")
        if plan.space.keys() & TOKEN_FIELDS:
            view.say(
                "the trials' tokens differ: perplexities are per character (2 to the bits per character)"
            )
        if plan.space.keys() & ({"corpus", "vocab_size", *config.data.options} - TOKEN_FIELDS):
            view.say(
                "!! the trials' texts or vocabularies differ: their perplexities do not compare"
            )
        of_seeds = f" of {seeds} seeds" if seeds > 1 else ""
        view.say(
            f"{found.name}: {plan.trials} trials{of_seeds} ({strategy}) in {run_dir or 'a temporary directory'}"
        )
        if workers is None and chosen > 1:
            view.say(
                f"{chosen} processes, one a core: small models train faster so (--workers 1: all in this process)"
            )

        def show() -> Sweep:
            members = study.records()
            if run_dir is None:
                members = [replace(member, run_dir=None) for member in members]
            text = data_dir and os.path.abspath(data_dir)
            sweep = Sweep(config, members, folder if run_dir else None, stop.signal, text)
            view.show(sweep)
            return sweep

        with signals.noted() as stop:
            if chosen > 1:
                how = {
                    "workers": chosen,
                    "size": group,
                    "vmap": vmap,
                    "quiet": quiet,
                    "parent": os.getpid(),
                }
                main = "import sys; from jaxlm.cli import main; sys.exit(main())"
                command = [
                    sys.executable,
                    "-P",
                    "-c",
                    main,
                    "sweep",
                ]  # (-P: no code of the current folder)
                command += [f"--run-dir={folder}", f"--as-worker={json.dumps(how)}"]
                command += [f"--data-dir={data_dir}"] * (data_dir is not None)
                # (A database's URL may have a password, and command lines are for all to see.)
                environment = {**os.environ, **({STORAGE: where} if "://" in where else {})}
                failure = supervise(command, environment, chosen, folder, stop, show, view.say)
                ended = sum(
                    one.status != "running" for one in study.records()
                )  # (others' damaged ones too)
                if stop.signal is None and failure and ended < plan.trials * seeds:
                    remedy = f"resume with {flag_text('--run-dir', folder)} --resume (the last one: {failure})"
                    raise JaxlmError(
                        f"every worker ended before the sweep did: what was saved is whole; {remedy}"
                    )
            else:
                given = found if in_memory else None
                kept = run_dir is not None
                Worker(
                    study,
                    given,
                    data_dir,
                    group,
                    vmap,
                    1,
                    kept,
                    lambda: stop.signal,
                    show,
                    view.say,
                ).run()
        sweep = show()
        if stop.signal is None:
            view.summary(sweep, write(sweep, folder, plan.corpus) if run_dir else [])
        else:
            saved_as = (
                f"saved; resume with {flag_text('--run-dir', folder)} --resume"
                if run_dir
                else "nothing is kept"
            )
            view.say(f"stopped by {signal.Signals(stop.signal).name}: {saved_as}")
        return sweep


def join(
    run_dir: Path, data_dir: str | Path | None, parent: int, quiet: bool, **how: Any
) -> int | None:
    """Works on a sweep that the process `parent` began. Returns the signal that stopped it, if one did."""
    where = _where(run_dir, None, resume=True)
    study = Study(read_plan(where), run_dir, where)
    view = View(lasting_console(quiet))

    def stopped() -> int | None:
        return stop.signal or (
            None if os.getppid() == parent else signal.SIGTERM
        )  # or its parent is dead

    with signals.noted(
        together=2.0
    ) as stop:  # (a batch system sends it to all, and the parent passes it on)
        Worker(study, None, data_dir, **how, stopped=stopped, say=view.say).run()
        return stopped()


def saved_options(
    run_dir: Path, space: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Config, Mapping[str, Any], dict[str, Any]]:
    """The config, space and options that resume the sweep in a directory; `sweep` compares given ones with the plan."""
    plan = read_plan(_where(run_dir, options.get("storage"), resume=True))
    trials = {} if plan.strategy == "grid" else {"trials": plan.trials}
    kept = {"strategy": plan.strategy, **trials, "seeds": plan.seeds, "prune": plan.prune}
    return plan.config, space or plan.space, {**kept, **options}


def _where(folder: Path, storage: str | None, resume: bool) -> str:
    """The URL or path of the study. Raises RunDirError if no sweep can begin or be resumed in the directory."""
    if resume and os.path.lexists(folder / JOURNAL):
        if storage is not None:
            raise RunDirError(
                f"the sweep in {folder} has its study in its journal: leave --storage out"
            )
        return str(folder / JOURNAL)
    found = storage or os.environ.get(STORAGE)
    if found is not None and "://" not in found:
        raise JaxlmError(
            f"a storage is a database's URL, as in sqlite:///study.db; it is {found!r}"
        )
    if resume:
        if found is None or not folder.is_dir():
            raise RunDirError(
                f"{folder} holds no sweep that can be resumed (there is no {JOURNAL}): check the path, begin one "
                f"without --resume, or name its database, with the password, by --storage or $JAXLM_STORAGE"
            )
        return found
    with (
        explained(RunDirError, f"no sweep can begin in {folder}", ELSEWHERE),
        Folder.open(folder, create=True) as held,
    ):
        # (A process that was killed before the first trial may have left a journal.)
        names = [
            name
            for name in held.names()
            if name[0] != "." and (found or not name.startswith(JOURNAL))
        ]
    if names:
        remedy = "resume the sweep in it with --resume, or choose another --run-dir"
        raise RunDirError(f"{folder} is not empty (it holds {', '.join(names[:4])}): {remedy}")
    return found or str(folder / JOURNAL)


def useful_workers(config: Config, plan: Plan, tokens: int, free: int) -> int:
    """How many processes train a sweep's members fastest; 1 for a short sweep, or on accelerators.

    Small matrix products do not fill many cores (docs/performance.md), but a process must first start and compile.
    `tokens` counts the training split's, and `free` bytes of memory.
    """
    if jax.default_backend() != "cpu":
        return 1
    members = plan.trials * plan.seeds
    params = dict(shapes_of_state(config).params)
    if not config.model.tied:
        del params["embedding"]  # which is looked up, not multiplied
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params))
    work = 6 * matrices * tokens * config.train.epochs * members
    return max(1, min(len(cores()), members, int(work / WORTH), free // MEMORY, MOST_WORKERS))


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(process: int, number: int, workers: int) -> None:
    """Pins a process that has just started to its share of the cores, if there is one for each of the workers."""
    own = cores()
    share = len(own) // workers
    if share and jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or the system forbids it: then it runs unpinned
            os.sched_setaffinity(process, own[number * share : (number + 1) * share])


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    workers: int,
    folder: Path,
    stop: signals.Stop,
    show: Callable[[], object],
    say: Callable[[str], object],
) -> str | None:
    """Runs workers until each has ended, and passes a signal on to them; calls `show` every `POLL` seconds.

    Their standard error, where C++ writes stacks, is kept from the terminal. Returns why the last failed worker failed,
    which is printed too; None if none did, or a signal came.
    """
    told = False
    failure = None
    with ExitStack() as stack:
        said = [stack.enter_context(TemporaryFile()) for _ in range(workers)]
        running: dict[int, subprocess.Popen] = {}
        stack.callback(lambda: [process.terminate() for process in running.values()])
        for number in range(workers):
            running[number] = subprocess.Popen(
                command, start_new_session=True, env=environment, stderr=said[number]
            )
            pin(running[number].pid, number, workers)
        while running:
            if stop.signal is not None and not told:
                told = True
                for process in running.values():
                    process.send_signal(stop.signal)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    if process.returncode and stop.signal is None:
                        failure = _reason(
                            process.returncode, said[number], folder / f"worker-{number}.log"
                        )
                        others = "; the others take its trials over" if running else ""
                        say(f"!! worker {number} failed: {failure}{others}")
            show()
            time.sleep(POLL)
    return failure


def _reason(code: int, file: IO[bytes], log: Path) -> str:
    """Why a worker failed: its own sentence, or how it ended and the file that keeps its standard error."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_SAID))
    said = file.read()
    own = re.findall("^error: (.*)$", said.decode(errors="replace"), re.MULTILINE)
    if own:
        return printable(own[-1])
    why = (
        f"{signal.Signals(-code).name} ended it" if code < 0 else f"it ended with exit code {code}"
    )
    if said:
        with suppress(OSError), Folder.open(log.parent) as folder:
            folder.write(log.name, said)
            why += f"; what it wrote is in {log}"
    return why


class View:
    """The terminal output of a sweep: a line for each epoch and each end of a member, and then the best trials."""

    def __init__(self, console: Console):
        self._console = console
        self._seen: dict[
            tuple[int, int], tuple[int, str]
        ] = {}  # epochs and status of each (trial, seed)

    def say(self, text: str) -> None:
        """Prints text, which may quote files."""
        text = printable(text, keep_newlines=True, encoding=self._console.encoding)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, sweep: Sweep) -> None:
        """Shows the epochs and ends that are new since the last look."""
        for member in sweep.members:
            now = len(member.valid_perplexities), member.status
            if now != self._seen.get((member.number, member.seed), (0, "running")):
                self.say(_line(sweep, member))
            self._seen[member.number, member.seed] = now

    def summary(self, sweep: Sweep, written: Sequence[Path] = ()) -> None:
        """The best trials, what was written, and how to train the winner alone."""
        trials = sweep.trials
        best = sweep.best
        self.say(f"{len(trials)} trials, best first:")
        for trial in trials[:MOST_SHOWN]:
            known = {"valid perplexity": spread(*trial.valid), "test": spread(*trial.test)}
            results = "".join(f", {name} {text}" for name, text in known.items() if text)
            self.say(f"trial {trial.number} ({_values(trial.values)}): {trial.status}{results}")
        if len(trials) > MOST_SHOWN:
            self.say(f"... and {len(trials) - MOST_SHOWN} more")
        if written:
            self.say(f"written: {', '.join(map(str, written))}")
        if sweep.damaged:
            when = "once checkpoints are replaced by intact ones, run directories are removed, or memory is free"
            self.say(f"{len(sweep.damaged)} damaged, to be tried again with --resume {when}")
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
    texts = {
        name: f"{one:.4g}" if isinstance(one, float) else value_text(one)
        for name, one in values.items()
    }
    return " ".join(f"{name}={text}" for name, text in texts.items())
