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
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import jax

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.fields import checked_value
from jaxlm.base.files import Folder, explained
from jaxlm.base.terminal import flag_text, printable
from jaxlm.config.config import Config
from jaxlm.config.settings import TOKEN_FIELDS, DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.data.prepared import is_prepared
from jaxlm.report.progress import LastingConsole
from jaxlm.report.sweep_files import write_sweep
from jaxlm.report.sweep_results import Sweep
from jaxlm.report.sweep_view import SweepView
from jaxlm.runs import precision, ram, signals
from jaxlm.runs.lock import ELSEWHERE, no_locks_warning
from jaxlm.runs.ngram_models import baseline_text
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.runs.training_corpus import with_corpus
from jaxlm.sweeps.plan import Plan, make_plan
from jaxlm.sweeps.space import MOST_POINTS, first_values
from jaxlm.sweeps.storage import is_database
from jaxlm.sweeps.study import JOURNAL, Study
from jaxlm.sweeps.worker import LONGEST_POLL, Worker

STORAGE = "JAXLM_STORAGE"  # the environment's name for a storage
# Multiplications and additions of a process's members, about a minute: from there on it pays.
WORTH = 2e13
MOST_WORKERS = 16
MEMORY = 2 << 30  # bytes that a process needs at least
MOST_READ = 1 << 20  # bytes of a worker's standard error
POLL = 0.5  # seconds between two looks at the workers
# What a worker process runs: the command, whatever is on its path.
MAIN = "import sys; from jaxlm.cli import main; sys.exit(main())"


def sweep(
    config: Config,
    space: Mapping[str, Any],
    *,
    strategy: str = "grid",
    trials: int | None = None,
    seeds: int = 1,
    prune: bool | str | None = None,
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

    Members of equal shapes train in one program, each equal to `train` alone. Signals stop a sweep
    as they stop `train`. Needs Optuna: `pip install 'jaxlm[sweep]'`.

    Args:
        config: The config, with the fields that the space leaves out.
        space: Fields of the config -> values, ranges or distributions, as
            `sweeps.space.read_space` takes them.
        strategy: grid (every point), random, or tpe (Optuna's choice).
        trials: How many points to try; a grid needs none.
        seeds: How many members a trial has, from the config's seed on.
        prune: Whether to stop trials after an epoch: those worse than the median of the others
            (True or median), all but the best quarter at epochs 1, 4, 16 and so on (halving), or
            none (False or none). None: the median with tpe only.
        corpus: Instead of the config's: a name, a path, or a corpus in memory.
        run_dir: The sweep's directory, with a run directory for each member; None: nothing is kept.
        resume: Resume the sweep in `run_dir`, or join the processes that work on it.
        workers: Processes that share the work, each pinned to its share of the cores (None: one a
            core on CPUs if the sweep is long and its corpus is named; else this process alone).
        storage: A database's URL for Optuna's study, given again to resume (None: $JAXLM_STORAGE,
            else a journal).
        group: Members that train in one program (None: as many as fit).
        vmap: Members share each operation, equal up to float32 rounding (None: on accelerators), or
            take turns.
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
    # Errors of the space come before a corpus is loaded.
    draft = make_plan(config, space, strategy, trials, seeds, prune, {})
    corpus_object = corpus if isinstance(corpus, Corpus) else None
    if corpus_object:
        _check_one_corpus(space, workers)
    loaded, text = with_corpus(_first_config(draft), corpus, data_dir)
    loaded, *_ = precision.resolved(loaded)
    plan = _complete(draft, loaded, text)
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(TemporaryDirectory(prefix="jaxlm-sweep-")))
        where = _where(folder, storage, resume)
        if config.model.compute_dtype == "auto":
            with suppress(JaxlmError):  # begun on another machine, it has that one's
                dtype = Study(None, folder, where).plan.config.model.compute_dtype
                plan = replace(plan, config=plan.config.replace(compute_dtype=dtype))
        session = _Session(
            Study(plan, folder, where),
            run_dir is not None,
            SweepView(LastingConsole(quiet=quiet)),
            data_dir and os.path.abspath(data_dir),
        )
        session.announce(text)
        locked = run_dir is None or session.study.locks_work()
        if not locked:
            session.view.say(f"!! {no_locks_warning(folder)}")
        if workers is None:
            workers = 1
            if locked and corpus_object is None:
                workers = useful_workers(loaded, plan, len(text.train), ram.available())
            if workers > 1:
                session.view.say(
                    f"{workers} processes, one a core: small models train faster so (--workers 1: "
                    f"all in this process)"
                )
        options = {"size": group, "vmap": vmap}
        with signals.noted() as session.stop:
            if workers > 1:
                session.start_workers({**options, "workers": workers, "quiet": quiet})
            else:
                Worker(
                    session.study,
                    corpus_object,
                    data_dir,
                    **options,
                    kept=session.kept,
                    stopped=lambda: session.stop.signal,
                    show=session.look,
                    say=session.view.say,
                ).run()
        return session.finish(text)


def _check_one_corpus(space: Mapping[str, Any], workers: int | None) -> None:
    """Raises JaxlmError where a sweep needs to load texts, and has one corpus as an object."""
    if (workers or 1) > 1:
        raise JaxlmError(
            "workers load the corpus themselves: name it, instead of giving it as an object"
        )
    fields = sorted(space.keys() & {*DataConfig.__dataclass_fields__, "vocab_size"})
    if fields:
        raise JaxlmError(
            f"{fields[0]} is in the space, and the corpus is given as an object: name it instead"
        )


def _first_config(draft: Plan) -> Config:
    """The config of the space's first values, to load the text by.

    The plan's own config is never trained, so it need not fit the text.
    """
    with suppress(JaxlmError):
        return draft.config.replace(**first_values(draft.space))
    return draft.config


def _complete(
    draft: Plan,
    loaded: Config,
    text: Corpus,
) -> Plan:
    """The plan with the dtype and the text of a loaded config, whose paths become absolute."""
    text_fields = {}
    if "corpus" not in draft.space:  # where the space has several texts, each has its own fields
        text_fields = {"corpus": text.spec, **text.options}
    config = draft.config.replace(compute_dtype=loaded.model.compute_dtype, **text_fields)
    tokenizer = config.data.tokenizer_file
    if tokenizer and not is_prepared(config.data.corpus):  # a prepared folder needs no tokenizer
        config = config.replace(tokenizer_file=os.path.abspath(tokenizer))
    return replace(draft, config=config, corpus=text.identity)


@dataclass
class _Session:
    """A sweep in progress, as the process that was asked for it sees it."""

    study: Study
    kept: bool  # whether the study's folder stays
    view: SweepView
    data_dir: str | None
    stop: signals.Stop = field(default_factory=signals.Stop)
    next_look: float = 0.0  # when a shared study is asked again

    def announce(self, text: Corpus) -> None:
        """Says what is trained, and what of it does not compare."""
        plan = self.study.plan
        for note in text.notes:
            self.view.say(f"!! {note}")
        if plan.space.keys() & TOKEN_FIELDS:
            self.view.say(
                "the trials' tokens differ: results are bits per character, and in the files "
                "perplexities per character"
            )
        if plan.space.keys() & ({"corpus", "vocab_size", *plan.config.data.options} - TOKEN_FIELDS):
            self.view.say(
                "!! the trials' texts or vocabularies differ: their perplexities do not compare"
            )
        trials = f"{plan.trials} trials"
        if plan.seeds > 1:
            trials += f" of {plan.seeds} seeds"
        place = self.study.folder if self.kept else "a temporary directory"
        self.view.say(f"{text.name}: {trials} ({plan.strategy}) in {place}")

    def results(self) -> Sweep:
        """The results so far."""
        config = self.study.plan.config
        members = self.study.records()
        folder = self.study.folder
        if not self.kept:
            folder = None
            members = [replace(member, run_dir=None) for member in members]
        return Sweep(config, members, folder, self.stop.signal, self.data_dir)

    def look(self) -> None:
        """Shows what is new."""
        self.view.show(self.results())

    def look_when_due(self) -> None:
        """Shows what is new; of a database that others share at most every 30 seconds."""
        if not self.study.shared or time.monotonic() > self.next_look:
            self.next_look = time.monotonic() + LONGEST_POLL
            self.look()

    def start_workers(self, options: dict[str, Any]) -> None:
        """Starts worker processes with options of `join`, and waits until they have ended."""
        study = self.study
        options = {**options, "parent": os.getpid()}
        # -P: no code of the current folder is imported.
        command = [sys.executable, "-P", "-c", MAIN, "sweep"]
        command += [f"--run-dir={study.folder}", f"--as-worker={json.dumps(options)}"]
        if self.data_dir is not None:
            command.append(f"--data-dir={self.data_dir}")
        environment = {**os.environ}
        if study.shared:  # its URL may have a password, and command lines are for all to see
            environment[STORAGE] = study.where
        failure = supervise(
            command,
            environment,
            options["workers"],
            study.folder,
            self.stop,
            self.look_when_due,
            self.view.say,
        )
        if failure is None or self.stop.signal is not None:
            return
        ended = [record for record in study.records() if record.status != "running"]
        if len(ended) < study.plan.trials * study.plan.seeds:  # damaged ones have ended too
            raise JaxlmError(
                f"every worker ended before the sweep did: what was saved is whole; resume with "
                f"{flag_text('--run-dir', study.folder)} --resume (the last one: {failure})"
            )

    def finish(self, text: Corpus) -> Sweep:
        """Shows and writes the results of a sweep that has ended, or says how to resume it.

        Args:
            text: What the trials were trained on, for an n-gram model beside them.
        """
        results = self.results()
        self.view.show(results)
        if self.stop.signal is not None:
            fate = "nothing is kept"
            if self.kept:
                fate = f"saved; resume with {flag_text('--run-dir', self.study.folder)} --resume"
            self.view.say(f"stopped by {signal.Signals(self.stop.signal).name}: {fate}")
            return results
        results = replace(results, importances=self.study.importances())
        plan = self.study.plan
        written = write_sweep(results, self.study.folder, plan.corpus) if self.kept else []
        self.view.summary(results, written)
        if not self.view.quiet:
            baseline = baseline_text(text, plan.config.train.baseline_order)
            if baseline:
                self.view.say(baseline)
        return results


def join(
    run_dir: Path,
    data_dir: str | Path | None,
    parent: int,
    quiet: bool,
    **options: Any,
) -> int | None:
    """Works on a sweep that another process began.

    Args:
        run_dir: The sweep's directory.
        data_dir: The folder of Penn Treebank's files.
        parent: The other process.
        quiet: Print nothing.
        options: Options of `Worker`: size, vmap and workers.

    Returns:
        The signal that stopped it, if one did; the parent's death counts as SIGTERM.
    """
    where = _where(run_dir, None, resume=True)
    study = Study(None, run_dir, where)
    view = SweepView(LastingConsole(quiet=quiet))

    def stopped() -> int | None:
        if stop.signal is None and os.getppid() != parent:
            return signal.SIGTERM
        return stop.signal

    # A batch system sends a signal to all processes, and the parent passes it on.
    with signals.noted(together=2.0) as stop:
        Worker(study, None, data_dir, **options, stopped=stopped, say=view.say).run()
        return stopped()


def saved_options(
    run_dir: Path,
    space: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[Config, Mapping[str, Any], dict[str, Any]]:
    """What resumes the sweep in a directory.

    Args:
        run_dir: The sweep's directory.
        space: A space that is given again; empty: the sweep's own.
        options: Options of `sweep` that are given again, which it compares with the plan.

    Returns:
        The config, the space and the options.

    Raises:
        JaxlmError: The directory, or the storage among the options, holds no sweep.
    """
    where = _where(run_dir, options.get("storage"), resume=True)
    plan = Study(None, run_dir, where).plan
    saved = {"strategy": plan.strategy, "seeds": plan.seeds, "prune": plan.prune}
    if plan.strategy != "grid":
        saved["trials"] = plan.trials
    return plan.config, space or plan.space, {**saved, **options}


def _where(
    folder: Path,
    storage: str | None,
    resume: bool,
) -> str:
    """The URL or path of the study. Raises RunDirError if none can begin or be resumed there."""
    if resume and os.path.lexists(folder / JOURNAL):
        if storage is not None:
            raise RunDirError(
                f"the sweep in {folder} has its study in its journal: leave --storage out"
            )
        return str(folder / JOURNAL)
    database = storage or os.environ.get(STORAGE)
    if database is not None and not is_database(database):
        raise JaxlmError(
            f"a storage is a database's URL, as in sqlite:///study.db; it is {database!r}"
        )
    if resume:
        if database is None or not folder.is_dir():
            raise RunDirError(
                f"{folder} holds no sweep that can be resumed (there is no {JOURNAL}): check the "
                f"path, begin one without --resume, or name its database, with the password, by "
                f"--storage or $JAXLM_STORAGE"
            )
        return database
    with (
        explained(RunDirError, f"no sweep can begin in {folder}", ELSEWHERE),
        Folder.open(folder, create=True) as held,
    ):
        names = [name for name in held.names() if not name.startswith(".")]
    if database is None:  # a process that was killed before the first trial may have left a journal
        names = [name for name in names if not name.startswith(JOURNAL)]
    if names:
        raise RunDirError(
            f"{folder} is not empty (it holds {', '.join(names[:4])}): resume the sweep in it with "
            f"--resume, or choose another --run-dir"
        )
    return database or str(folder / JOURNAL)


def useful_workers(
    config: Config,
    plan: Plan,
    tokens: int,
    free: int,
) -> int:
    """How many processes train a sweep's members fastest.

    Small matrix products do not fill many cores (docs/performance.md), but a process must first
    start and compile.

    Args:
        config: A member's config.
        plan: What the sweep is.
        tokens: How many the training split has.
        free: Bytes of memory.

    Returns:
        Processes: 1 for a short sweep, or on accelerators.
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


def pin(
    process: int,
    number: int,
    workers: int,
) -> None:
    """Pins a process to its share of the cores, if there is one for each of the workers.

    Args:
        process: The process's id.
        number: The worker's, from 0.
        workers: How many workers there are.
    """
    available = cores()
    share = len(available) // workers
    if share and jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or the system forbids it: then it runs unpinned
            os.sched_setaffinity(process, available[number * share : (number + 1) * share])


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    workers: int,
    folder: Path,
    stop: signals.Stop,
    show: Callable[[], object],
    say: Callable[[str], object],
) -> str | None:
    """Runs workers until each has ended, and passes a signal on to them.

    Their standard error, where C++ writes stacks, is kept from the terminal.

    Args:
        command: What each worker runs.
        environment: Its environment.
        workers: How many there are.
        folder: Where the standard error of a worker is written that fails without a sentence.
        stop: The signal that came, if one did.
        show: Called every `POLL` seconds.
        say: Prints why a worker failed.

    Returns:
        Why the last failed worker failed; None if none did, or a signal came.
    """
    forwarded = False
    failure = None
    with ExitStack() as stack:
        errors = [stack.enter_context(TemporaryFile()) for _ in range(workers)]
        running: dict[int, subprocess.Popen] = {}
        stack.callback(lambda: [process.terminate() for process in running.values()])
        for number in range(workers):
            running[number] = subprocess.Popen(
                command, start_new_session=True, env=environment, stderr=errors[number]
            )
            pin(running[number].pid, number, workers)
        while running:
            if stop.signal is not None and not forwarded:
                forwarded = True
                for process in running.values():
                    process.send_signal(stop.signal)
            for number, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[number]
                if process.returncode and stop.signal is None:
                    log = folder / f"worker-{number}.log"
                    failure = _reason(process.returncode, errors[number], log)
                    others = "; the others take its trials over" if running else ""
                    say(f"!! worker {number} failed: {failure}{others}")
            show()
            time.sleep(POLL)
    return failure


def _reason(
    code: int,
    file: IO[bytes],
    log: Path,
) -> str:
    """Why a worker failed: its own sentence, or how it ended and where its standard error is."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_READ))
    written = file.read()
    sentences = re.findall("^error: (.*)$", written.decode(errors="replace"), re.MULTILINE)
    if sentences:
        return printable(sentences[-1])
    reason = f"it ended with exit code {code}"
    if code < 0:
        reason = f"{signal.Signals(-code).name} ended it"
    if written:
        with suppress(OSError), Folder.open(log.parent) as folder:
            folder.write(log.name, written)
            reason += f"; what it wrote is in {log}"
    return reason
