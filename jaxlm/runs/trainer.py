"""`train`: one run from its beginning, or from where it was stopped, to its test."""

import shlex
import signal
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxlm.config.config import Config
from jaxlm.data.corpora import UNKNOWN, Corpus, load_corpus, reload_corpus
from jaxlm.data.vocab import Vocab
from jaxlm.data.windows import check_fits
from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import DATA, MODEL, make_mesh, place
from jaxlm.errors import CheckpointError, DataError, Diverged, JaxlmError, RunDirError
from jaxlm.fields import checked_value, shown
from jaxlm.models.recurrent import Params
from jaxlm.report.curve import learning_curve
from jaxlm.report.progress import EpochResult, Progress, lasting_console
from jaxlm.report.trackers import OnMetrics
from jaxlm.runs import checkpoint, directory, precision, signals, state_arrays
from jaxlm.runs.group import Group, SingleGroup
from jaxlm.runs.lock import lock
from jaxlm.runs.loop import Observer, fit
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.run import Run, floors
from jaxlm.scoring.stream import stream_nats
from jaxlm.terminal import flag_text
from jaxlm.training.step import TrainState, fresh_state, init_state
from jaxlm.units import comparable_text, perplexity_text


@dataclass(frozen=True)
class TrainResult:
    """The results of a run."""

    config: Config
    corpus: str
    run_dir: Path | None
    state: TrainState
    epochs: list[EpochResult] = field(default_factory=list)
    test_perplexity: float | None = None  # of the last parameters; None if a signal ended the run
    stopped_by: int | None = None  # that signal's number
    skipped_windows: int = (
        0  # whose cost or gradient was not finite, dropped because on_nonfinite is "skip"
    )

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
) -> TrainResult:
    """Trains one model and tests it.

    SIGTERM, SIGINT and SIGUSR1 save the run and return, after at most one call of `windows_per_call` windows and the
    validation of an epoch that the call ends. A second signal ends the process at once; the last checkpoint stays
    whole. During the final test, when the run is saved, signals have their usual effect.

    Args:
        config: what to train.
        corpus: a Corpus, or what `--corpus` takes (default: the config's own).
        run_dir: the run's directory; None keeps nothing. Of many processes (`hosts.py`) only the first writes it, and
            all must see it.
        params: in place of fresh parameters.
        resume: continue the run in `run_dir` from its newest intact checkpoint, on any number of devices.
        steps: end after so many windows in all.
        data_dir: the folder of Penn Treebank's files.
        quiet: print nothing.
        devices: spread the batch's rows over so many devices (default: as many as the rows divide over). Results equal
            those of one device within rounding.
        model_devices: spread the vocabulary over so many devices, for each of the `devices`.
        on_metrics: called with (step, values by tag) of every window, epoch and test; only in the first process.

    Returns:
        The results, with the state whole in the host's memory.

    Raises:
        JaxlmError: a mistake in the arguments, a run directory or corpus that cannot be used, or a run that diverged.
    """
    if not isinstance(config, Config):
        raise JaxlmError(
            f"config takes a Config, such as jaxlm.preset('small'); it is {shown(config)}"
        )
    steps = checked_value("steps", steps, int, low=0, optional=True)
    run_dir = checked_value("run_dir", run_dir, Path, optional=True)
    mesh, note = make_mesh(config.train.batch_size, devices, model_devices)
    vocab = None
    if resume:
        if run_dir is None:
            raise JaxlmError("resume continues a run in its directory: give run_dir")
        if config.data.corpus == UNKNOWN:
            remedy = f"train it further in another directory, with --init {run_dir} --corpus TEXT --run-dir NEW"
            raise RunDirError(
                f"{run_dir} holds an imported model, which has no run to resume: {remedy}"
            )
        with suppress(RunDirError, CheckpointError):
            config = directory.with_saved_dtype(config, run_dir)
            if config.data.tokens == "subwords" or not directory.drew_params(run_dir):
                vocab = getattr(
                    checkpoint.newest_intact(run_dir)[0], "vocab", None
                )  # it may differ from its text's
    asked = config.model.compute_dtype
    config, corpus = with_corpus(config, corpus, data_dir, vocab)
    spread = (
        (1, 1) if mesh is None else (mesh.shape[DATA], mesh.shape[MODEL])
    )  # for the rows and for the words
    sharing = 1 if mesh is None else mesh.size
    state_arrays.check_memory(config, sharing)
    state = None if resume else new_state(config, params, sharing)
    of_dtype = precision.notes(
        asked, config
    )  # (measured before the run's record, which has the rates, is written)
    first = jax.process_index() == 0
    with hosts.guarded(), ExitStack() as held:
        # (Of many processes, all but the first write into a temporary directory of their own.)
        kept = run_dir if first else None
        resumes = resume and first
        folder = Path(kept or held.enter_context(tempfile.TemporaryDirectory(prefix="jaxlm-run-")))
        shared = Path(run_dir or folder)

        def begin() -> Run:
            directory.check(folder, resumes)
            return Run(
                config,
                corpus,
                held.enter_context(lock(folder)),
                held,
                resume=resumes,
                kept=bool(kept),
                steps=steps,
                given_params=params is not None,
                devices=spread,
                on_metrics=on_metrics if first else None,
            )

        run = hosts.together(begin)
        saved = hosts.agreed(-1 if run.found is None else run.step)
        if saved >= 0:
            run.step = saved
            state = hosts.together(lambda: (run.found or checkpoint.load(shared, str(saved))).state)
        group = SingleGroup(run, state or new_state(config, params, sharing), mesh)
        run.found = state = None  # the group's are copies
        counts = config.train
        console = lasting_console(quiet or not first)
        per_window = counts.bptt_length * counts.batch_size
        progress = held.enter_context(
            Progress(counts.epochs, run.last, per_window, corpus.name, console, corpus.vocab.kind)
        )
        for line in (*corpus.notes, *([note] if note else []), *of_dtype, *run.notes):
            progress.say(line, loud=True)
        progress.say(f"{corpus.name}: {corpus.description}")
        progress.say(f"run directory: {folder if kept else 'none, so nothing is kept'}", wrap=False)
        if saved < 0 and (params is not None or run.finished):
            # Given parameters cannot be drawn again; a run of no window is evaluated too.
            hosts.together(partial(run.save, group.state()))
        progress.doing("compiling")
        with signals.noted() as stop:
            reporter = _Reporter(run, progress, stop)
            stopped_by = (
                fit(group, reporter) or reporter.stopped()
            )  # (one may come in the last validation)
        return _finish(run, group, shared, progress, stopped_by, data_dir)


def with_corpus(
    config: Config,
    corpus: str | Path | Corpus | None,
    data_dir: str | Path | None = None,
    vocab: Vocab | None = None,
) -> tuple[Config, Corpus]:
    """The corpus, and the config with its vocabulary size, where it was found, and a dtype in place of `auto`.

    The arguments are those of `train`; `vocab` is a resumed run's, where it may be another than its text gives. Raises
    JaxlmError where the corpus cannot be used, or has more words or fewer tokens than the config allows.
    """
    if not isinstance(corpus, Corpus):
        config = config if corpus is None else config.replace(corpus=str(corpus))
        data = config.data
        if vocab:
            corpus = reload_corpus(data, vocab, data_dir)
        else:
            corpus = load_corpus(
                data.corpus, data_dir=data_dir, max_vocab=config.model.vocab_size, **data.options
            )
    if len(corpus.vocab) > (most := config.model.vocab_size) and not corpus.vocab.tokens.names:
        remedy = f"raise it, or load the corpus with max_vocab={most}"
        raise JaxlmError(
            f"the corpus has {len(corpus.vocab):,} words and vocab_size is {most:,}: {remedy}"
        )
    for split, epochs in (("train", config.train.epochs), ("valid", 0)):
        check_fits(
            split,
            len(getattr(corpus, split)),
            config.train.batch_size,
            config.train.bptt_length,
            epochs,
        )
    count = len(corpus.test)
    if count < 2:
        raise DataError(
            f"the test split has {count} tokens, and a test reads at least 2: use more text"
        )
    config = config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec, **corpus.options)
    return precision.resolved(config), corpus


def new_state(config: Config, params: Params | None = None, devices: int = 1) -> TrainState:
    """The state before the first step, on one device; to be shared by so many.

    Raises:
        JaxlmError: given parameters do not have the config's shapes, or there is not enough memory.
    """
    state_arrays.check_memory(config, devices)
    counts = config.train
    if params is None:
        return fresh_state(
            config.recipe, np.uint32(counts.seed), counts.batch_size, counts.patience
        )
    expected = state_arrays.shapes(state_arrays.shapes_of_state(config).params)
    wrong = directory.different(expected, state_arrays.shapes(params))
    if wrong:
        raise JaxlmError(
            f"params do not have the config's shapes (expected -> given): {'; '.join(wrong)}"
        )
    params = jax.tree.map(np.float32, params)
    key = jax.random.key(counts.seed)
    return init_state(config.recipe, key, counts.batch_size, params, patience=counts.patience)


@dataclass
class _Reporter(Observer):
    """Shows a run's progress, and ends it where it diverges."""

    _run: Run
    _progress: Progress
    _stop: signals.Stop

    def stopped(self) -> int | None:
        return hosts.agreed(self._stop.signal or 0) or None

    def trained(self, group: Group) -> None:
        plan = self._run.plan
        step = self._run.step
        epoch, window = plan.locate(step - 1)
        self._progress.advance(self._run.so_far, window + 1, plan.windows_in(epoch), step)

    def doing(self, what: str) -> None:
        self._progress.doing(what)

    def diverged(self, group: Group, slot: int, problem: str) -> None:
        remedy = "try a lower learning_rate or clip_norm, or resume from the last checkpoint without such windows"
        raise Diverged(
            f"{problem}: stopped before its update; {remedy} (--resume --on-nonfinite skip)"
        )

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        run = self._run
        floor = floors(self._run.corpus, "valid").get("floor_valid")
        self._progress.epoch(run.epochs[-1], run.words_per_second, run.epoch_seconds, floor)
        if run.averages_from == run.step and not run.finished:
            self._progress.say(
                f"by its validations so far, averaging starts with window {run.step + 1}"
            )


def _finish(
    run: Run,
    group: SingleGroup,
    shared: Path,
    progress: Progress,
    stopped_by: int | None,
    data_dir: str | Path | None,
) -> TrainResult:
    """Tests, draws the curve and prints the results; after a signal it only says how to resume."""
    kept_in = run.folder.path if run.kept else None
    skipped = run.log.skipped.total()
    result = TrainResult(
        run.config, run.corpus.name, kept_in, group.state(), run.epochs, None, stopped_by, skipped
    )
    if stopped_by is not None:
        how = (
            f"saved; resume with {flag_text('--run-dir', run.folder.path)} --resume"
            if kept_in
            else "nothing is kept"
        )
        progress.say(
            f"stopped by {signal.Signals(stopped_by).name} after window {run.step}: {how}",
            wrap=False,
        )
        return result
    progress.doing("testing")
    tested = {"last": (run.step, *group.nats(0, run.corpus.test))}
    best = checkpoint.best_step(checkpoint.manifests(run.folder))
    best = hosts.agreed(-1 if best is None else best)
    if best not in (-1, run.step):
        progress.doing("testing the best checkpoint")
        try:
            saved = hosts.together(lambda: checkpoint.load(shared, str(best)).state.evaluated)
        except JaxlmError as error:  # (also of another process)
            progress.say(f"the best checkpoint is not tested: {error}", loud=True)
        else:
            nats = stream_nats(
                run.config.model, place(group.mesh, saved), run.corpus.test, mesh=group.mesh
            )
            tested["best"] = best, *nats
    # (All are written at once: a run that is stopped in between has no test, and can be resumed.)
    tests = {which: run.log_test(which, *found) for which, found in tested.items()}
    rows = []
    for one in run.epochs:
        rows.append(
            (
                f"epoch {one.epoch}",
                f"train {one.train_text}  valid {perplexity_text(one.valid_perplexity)}",
            )
        )
    rows += [
        (f"test, {which} checkpoint", perplexity_text(value)) for which, value in tests.items()
    ]
    found = {
        name.removeprefix("test_"): value
        for name, value in run.comparable("test", tests["last"]).items()
    }
    rows.append(("comparable with any tokens", comparable_text(found)))
    for name, value in floors(run.corpus, "train", "valid", "test").items():
        rows.append((name.replace("_", " of "), f"{value:.2f} (the true source's perplexity)"))
    rows.append(
        (
            "unknown tokens",
            "  ".join(f"{split} {share:.1%}" for split, share in run.unknown.items()),
        )
    )
    if run.ended_early and run.step < run.last:
        rows.append(("ended early", f"validations without a new best: {run.config.train.patience}"))
    if skipped:
        rows.append(("windows skipped", f"{skipped}, whose cost or gradient was not finite"))
    if kept_in and run.epochs:
        progress.doing("drawing the curve")
        try:
            steps = run.config.train.bptt_length
            rows.append(
                (
                    "learning curve",
                    str(learning_curve(read_metrics(kept_in), steps, kept_in / "curve.png")),
                )
            )
        except RunDirError as error:
            progress.say(f"there is no learning curve: {error}", loud=True)
    progress.summary(rows, run.config.preset)
    if kept_in and run.epochs:
        words = ["jaxlm", "report", str(kept_in), "-o", str(kept_in / "report.html")]
        words += [f"--data-dir={data_dir}"] * bool(data_dir)
        progress.say(f"a page of curves, words and samples: {shlex.join(words)}", wrap=False)
    return replace(result, test_perplexity=tests["last"])
