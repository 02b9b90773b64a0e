"""`train`: one run from its beginning, or from where it was stopped, to its test."""

import math
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.base.errors import CheckpointError, Diverged, JaxlmError, RunDirError
from jaxlm.base.fields import checked_value, shown
from jaxlm.base.terminal import flag_text
from jaxlm.base.units import comparable_text, measure_text, result_text
from jaxlm.config.config import Config
from jaxlm.config.settings import DataConfig
from jaxlm.data.corpora import UNKNOWN
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab
from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import DATA, MODEL, make_mesh, place
from jaxlm.models.recurrent import Params
from jaxlm.report.curve import learning_curve
from jaxlm.report.progress import EpochResult, LastingConsole, Progress
from jaxlm.report.trackers import OnMetrics
from jaxlm.runs import checkpoint, directory, precision, signals, state_arrays
from jaxlm.runs.checkpoint import Checkpoint
from jaxlm.runs.directory import Setup
from jaxlm.runs.group import SingleGroup
from jaxlm.runs.lock import NAME as LOCK
from jaxlm.runs.lock import excludes_others, lock, no_locks_warning
from jaxlm.runs.loop import Group, Observer, fit
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.ngram_models import baseline
from jaxlm.runs.profile import Profiler
from jaxlm.runs.run import Run, floors
from jaxlm.runs.state_arrays import new_state
from jaxlm.runs.training_corpus import with_corpus
from jaxlm.scoring.stream import stream_nats
from jaxlm.training.step import TrainState

LEAST_FACTOR = 0.01  # on the rate, down to which restarts lower it


@dataclass(frozen=True)
class TrainResult:
    """The results of a run."""

    config: Config
    corpus: str  # its name
    run_dir: Path | None
    state: TrainState
    epochs: list[EpochResult] = field(default_factory=list)
    test_perplexity: float | None = None  # of the last parameters; None if a signal ended the run
    stopped_by: int | None = None  # that signal's number
    skipped_windows: int = 0  # whose cost or gradient was not finite (on_nonfinite="skip")

    @property
    def params(self) -> Params:
        """The parameters that were tested."""
        return self.state.evaluated


def train(
    config: Config,
    corpus: str | Path | Corpus | None = None,
    run_dir: str | Path | None = None,
    *,
    params: Params | None = None,
    resume: bool = False,
    steps: int | None = None,
    data_dir: str | Path | None = None,
    quiet: bool = False,
    devices: int | None = None,
    model_devices: int = 1,
    on_metrics: OnMetrics | None = None,
    profile: int | None = None,
) -> TrainResult:
    """Trains one model and tests it.

    SIGTERM, SIGINT and SIGUSR1 save the run and return, after at most one call of
    `windows_per_call` windows and the validation of an epoch that the call ends. A second signal
    ends the process at once; the last checkpoint stays whole. During the final test, when the run
    is saved, signals have their usual effect.

    Args:
        config: What to train.
        corpus: A Corpus, or what `--corpus` takes (default: the config's own).
        run_dir: The run's directory; None keeps nothing. Of many processes (`hosts.py`) only the
            first writes it, and all must see it.
        params: In place of fresh parameters.
        resume: Continue the run in `run_dir` from its newest intact checkpoint, on any number of
            devices.
        steps: End after this many windows in all.
        data_dir: The folder of Penn Treebank's files.
        quiet: Print nothing.
        devices: Spread the batch's rows over this many devices (default: as many as the rows divide
            over). Results equal those of one device within rounding.
        model_devices: Spread the vocabulary over this many devices, for each of the `devices`.
        on_metrics: Called with (step, values by tag) of every window, epoch and test; only in the
            first process.
        profile: Trace this many windows, once the program is compiled, into `profile` in `run_dir`.

    Returns:
        The results, with the state whole in the host's memory.

    Raises:
        JaxlmError: A mistake in the arguments, a run directory or corpus that cannot be used, or a
            run that diverged.
    """
    if not isinstance(config, Config):
        raise JaxlmError(
            f"config takes a Config, such as jaxlm.preset('small'); it is {shown(config)}"
        )
    mesh, devices_note = make_mesh(config.train.batch_size, devices, model_devices)
    steps = checked_value("steps", steps, int, low=0, optional=True)
    profile = checked_value("profile", profile, int, low=1, optional=True)
    folder: Path | None = checked_value("run_dir", run_dir, Path, optional=True)
    if profile and folder is None:
        raise JaxlmError("profile writes a trace into the run's directory: give run_dir")
    saved_config, vocab = _saved_settings(folder, config.data) if resume else (None, None)
    config, corpus = with_corpus(config, corpus, data_dir, vocab)
    config, rates, notes = precision.resolved(config, saved_config)
    result = None
    while result is None:
        result = _attempt(
            config,
            corpus,
            folder,
            mesh,
            rates,
            [devices_note, *notes],
            params=params,
            resume=resume,
            steps=steps,
            quiet=quiet,
            on_metrics=on_metrics,
            profile=profile,
            data_dir=data_dir,
        )
        params = None
        resume = True
        profile = None
    return result


def _attempt(
    config: Config,
    corpus: Corpus,
    folder: Path | None,
    mesh: Mesh | None,
    rates: Mapping[str, float] | None,
    notes: list[str | None],
    *,
    params: Params | None,
    resume: bool,
    steps: int | None,
    quiet: bool,
    on_metrics: OnMetrics | None,
    profile: int | None,
    data_dir: str | Path | None,
) -> TrainResult | None:
    """Trains a run from its beginning or newest checkpoint, and tests it.

    Returns:
        The results; None: the run diverged, went back to its best checkpoint, and is to be resumed.
    """
    spread = (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[MODEL])
    sharing = math.prod(spread)
    state = None
    if resume:
        state_arrays.check_memory(config, sharing)
    else:
        state = new_state(config, params, sharing)
    setup = Setup(params is not None, spread, rates)
    is_first = jax.process_index() == 0
    with hosts.guarded(), ExitStack() as stack:

        def enter() -> tuple[Run, Checkpoint | None]:
            """Begins or resumes the run. Only the first process writes into `run_dir`."""
            path = folder if is_first else None
            if path is None:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxlm-run-")))
            kept = path == folder
            resumed = resume and is_first
            if not resumed:
                directory.check_vacant(path)
            locked = stack.enter_context(lock(path))
            saved, resume_notes = directory.enter(locked.folder, config, corpus, setup, resumed)
            run = Run(
                config,
                corpus,
                locked,
                stack,
                saved,
                kept=kept,
                steps=steps,
                on_metrics=on_metrics if is_first else None,
            )
            run.notes += resume_notes
            if kept and not excludes_others(path / LOCK):
                run.notes.append(no_locks_warning(path))
            return run, saved

        run, saved = hosts.together(enter)
        shared = folder or run.folder.path
        resumed_state = _shared_state(run, saved, shared)
        begins = resumed_state is None
        state = resumed_state or state or new_state(config, params, sharing)
        group = SingleGroup(run, state, mesh)
        del state, saved, resumed_state  # the group has copies
        progress = stack.enter_context(_progress(run, quiet or not is_first, notes))
        if begins and (params is not None or run.finished):
            # Given parameters cannot be drawn again; a run of no window is evaluated too.
            hosts.together(partial(run.save, group.state()))
        try:
            stopped_by = _fit(run, group, progress, profile)
        except Diverged as error:
            back = hosts.agreed(hosts.together(partial(_go_back, run)))
            if back < 0:
                raise
            progress.say(
                f"{error.args[0].partition(':')[0]}: going back to window {back}", loud=True
            )
            return None
        return _finish(run, group, shared, progress, stopped_by, data_dir)


def _go_back(run: Run) -> int:
    """Prepares a run's best checkpoint to be resumed from, at a lower rate (arXiv:2211.01848).

    The new factor on the rate is saved in the checkpoint, so that the rest of the run follows from
    it; the checkpoints after it become `STEP.diverged`.

    Returns:
        The checkpoint's step; -1 where there is none, the config has no `restart_factor`, or
            restarts have lowered the rate too often.
    """
    factor = run.config.optimizer.restart_factor
    best = checkpoint.best_step(checkpoint.manifests(run.folder))
    if factor is None or best is None:
        return -1
    saved = checkpoint.load(run.folder, str(best))
    record = saved.state.validations
    slowed = record.slowed * np.float32(factor)
    if slowed < LEAST_FACTOR:
        return -1
    state = replace(saved.state, validations=record._replace(slowed=slowed))
    checkpoint.set_aside_later(run.folder, best, "diverged")
    checkpoint.save(run.folder, state, run.config, saved.vocab, saved.manifest)
    return best


def _saved_settings(run_dir: Path | None, data: DataConfig) -> tuple[Config, Vocab | None]:
    """What a run that is resumed began with.

    Returns:
        Its config; and its vocabulary, if it may differ from the one that the text gives: if the
            run has subwords, or began from given parameters.

    Raises:
        JaxlmError: There is no run, or an imported model.
    """
    if run_dir is None:
        raise JaxlmError("resume continues a run in its directory: give run_dir")
    config = directory.saved_config(run_dir)
    if data.corpus == UNKNOWN:
        raise RunDirError(
            f"{run_dir} holds an imported model, which has no run to resume: train it further in "
            f"another directory, with --init {run_dir} --corpus TEXT --run-dir NEW"
        )
    if data.tokens == "subwords" or not directory.drew_params(run_dir):
        with suppress(CheckpointError):
            saved, _ = checkpoint.newest_intact(run_dir, state_arrays.nothing)
            if saved:
                return config, saved.vocab
    return config, None


def _shared_state(run: Run, saved: Checkpoint | None, shared: Path) -> TrainState | None:
    """The state that a run is resumed from, in every process; None: it begins.

    Args:
        run: The run.
        saved: The checkpoint that it is resumed from; None in all processes but the first.
        shared: The directory, which all processes see.
    """
    step = hosts.agreed(saved.manifest.step if saved else -1)
    if step < 0:
        return None
    run.step = step
    return hosts.together(lambda: saved or checkpoint.load(shared, str(step))).state


def _progress(
    run: Run,
    quiet: bool,
    notes: Sequence[str | None],
) -> Progress:
    """The progress of a run, after it has told what the run is."""
    corpus = run.corpus
    counts = run.config.train
    progress = Progress(
        counts.epochs,
        run.last,
        counts.bptt_length * counts.batch_size,
        corpus.name,
        LastingConsole(quiet=quiet),
        corpus.vocab.kind,
    )
    for note in filter(None, (*corpus.notes, *notes, *run.notes)):
        progress.say(note, loud=True)
    progress.say(f"{corpus.name}: {corpus.description}")
    where = run.folder.path if run.kept else "none, so nothing is kept"
    progress.say(f"run directory: {where}", wrap=False)
    return progress


@dataclass
class _Reporter(Observer):
    """Shows a run's progress, and ends it where it diverges."""

    _run: Run
    _progress: Progress
    _stop: signals.Stop
    _profiler: Profiler

    def stopped(self) -> int | None:
        return hosts.agreed(self._stop.signal or 0) or None

    def trained(self) -> None:
        run = self._run
        epoch, window = run.plan.locate(run.step - 1)
        self._progress.advance(run.so_far, window + 1, run.plan.windows_in(epoch), run.step)
        self._profiler.trained(run.step)

    def doing(self, task: str) -> None:
        self._progress.doing(task)

    def diverged(
        self,
        group: Group,
        slot: int,
        problem: str,
    ) -> None:
        raise Diverged(
            f"{problem}: stopped before its update; try a lower learning_rate or clip_norm, or "
            "resume from the last checkpoint without such windows (--resume --on-nonfinite skip)"
        )

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        run = self._run
        floor = floors(run.corpus, "valid").get("floor_valid")
        self._progress.epoch(run.epochs[-1], run.words_per_second, run.epoch_seconds, floor)


def _fit(
    run: Run,
    group: SingleGroup,
    progress: Progress,
    profile: int | None,
) -> int | None:
    """Trains a run, and traces `profile` of its windows. Returns the signal that stopped it."""
    progress.doing("compiling")
    traced = profile if run.kept else None
    with Profiler(run.folder.path, traced) as profiler, signals.noted() as stop:
        stopped_by = fit(group, _Reporter(run, progress, stop, profiler))
    if profiler.begun_at is not None:
        progress.say(f"trace of {profile} windows: {profiler.path}", wrap=False)
    return stopped_by


def _finish(
    run: Run,
    group: SingleGroup,
    shared: Path,
    progress: Progress,
    stopped_by: int | None,
    data_dir: str | Path | None,
) -> TrainResult:
    """Tests, draws the curve and prints the results; after a signal it only says how to resume."""
    result = TrainResult(
        run.config,
        run.corpus.name,
        run.folder.path if run.kept else None,
        group.state(),
        run.epochs,
        stopped_by=stopped_by,
        skipped_windows=run.log.skipped.total(),
    )
    if stopped_by is not None:
        progress.say(_stopped_text(run, stopped_by, data_dir), wrap=False)
        return result
    try:
        tests = _test(run, group, shared, progress)
    except KeyboardInterrupt as error:  # `__main__` raises it with a signal's number.
        (number,) = error.args or (signal.SIGINT,)
        progress.say(_stopped_text(run, number, data_dir), wrap=False)
        raise
    rows = []
    if not progress.console.quiet:
        rows = _rows(run, tests)
    if run.kept and run.epochs:
        progress.doing("drawing the curve")
        try:
            path = run.folder.path
            curve = learning_curve(read_metrics(path), run.config, path / "curve.png")
            rows.append(("learning curve", str(curve)))
        except RunDirError as error:
            progress.say(f"there is no learning curve: {error}", loud=True)
    progress.summary(rows, run.config.title)
    return replace(result, test_perplexity=tests["last"])


def _stopped_text(
    run: Run,
    number: int,
    data_dir: str | Path | None,
) -> str:
    """Which signal stopped a run after which window, and how to resume it."""
    saved = "nothing is kept"
    if run.kept:
        where = flag_text("--run-dir", run.folder.path)
        if data_dir is not None:
            where = f"{where} {flag_text('--data-dir', data_dir)}"
        saved = f"saved; resume with jaxlm train {where} --resume"
    return f"stopped by {signal.Signals(number).name} after window {run.step}: {saved}"


def _test(
    run: Run,
    group: SingleGroup,
    shared: Path,
    progress: Progress,
) -> dict[str, float]:
    """The test perplexities of the last and, if it is another, of the best checkpoint, logged."""
    progress.doing("testing")
    tested = {"last": (run.step, *group.nats(0, run.corpus.test))}
    best = checkpoint.best_step(checkpoint.manifests(run.folder))
    best = hosts.agreed(-1 if best is None else best)
    if best not in (-1, run.step):
        progress.doing("testing the best checkpoint")
        try:
            saved = hosts.together(
                lambda: checkpoint.load(shared, str(best), state_arrays.evaluated)
            )
        except JaxlmError as error:  # also of another process
            progress.say(f"the best checkpoint is not tested: {error}", loud=True)
        else:
            params = place(group.mesh, saved.state)
            nats = stream_nats(run.config.model, params, run.corpus.test, mesh=group.mesh)
            tested["best"] = (best, *nats)
    # All are written at once: a run that is stopped in between has no test, and can be resumed.
    return {which: run.log_test(which, *test) for which, test in tested.items()}


def _rows(run: Run, tests: dict[str, float]) -> list[tuple[str, str]]:
    """(name, value) of each result of a run, for the table that ends it."""
    tokens = run.corpus.vocab.kind
    rows = []
    for epoch in run.epochs:
        valid = measure_text(epoch.valid_perplexity, tokens)
        rows.append((f"epoch {epoch.epoch}", f"train {epoch.train_measure(tokens)}  valid {valid}"))
    for which, perplexity in tests.items():
        rows.append((f"test, {which} checkpoint", result_text(perplexity, tokens)))
    order = run.config.train.baseline_order
    ngram_perplexity = baseline(run.corpus, order)
    if ngram_perplexity is not None:
        rows.append((f"test, {order}-gram model", result_text(ngram_perplexity, tokens)))
    comparable = run.comparable("test", tests["last"])
    measures = {name.removeprefix("test_"): value for name, value in comparable.items()}
    rows.append(("comparable with any tokens", comparable_text(measures)))
    explanation = " (the floor: the perplexity of the source that generated the text)"
    for name, value in floors(run.corpus, "train", "valid", "test").items():
        rows.append((name.replace("_", " of "), f"{value:.2f}{explanation}"))
        explanation = ""
    shares = [f"{split} {share:.1%}" for split, share in run.unknown.items()]
    rows.append(("unknown tokens", "  ".join(shares)))
    if run.ended_early and run.step < run.last:
        rows.append(("ended early", f"validations without a new best: {run.config.train.patience}"))
    skipped = run.log.skipped.total()
    if skipped:
        rows.append(("windows skipped", f"{skipped}, whose cost or gradient was not finite"))
    return rows
