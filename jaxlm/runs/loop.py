"""The host loop: compile once, train, log, validate, save, test; resume where it was stopped."""

import math
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from jaxlm.config.config import Config
from jaxlm.data.corpora import Corpus, load_corpus
from jaxlm.data.windows import check_fits, locate, num_windows
from jaxlm.distributed import hosts as processes
from jaxlm.distributed import mesh as parallel
from jaxlm.errors import CheckpointError, Diverged, JaxlmError, RunDirError
from jaxlm.models.lstm import Params
from jaxlm.report.metrics import MetricsLog, Progress, read_metrics
from jaxlm.report.plots import learning_curve
from jaxlm.runs import checkpoint, signals
from jaxlm.runs import directory as rundir
from jaxlm.runs.manifest import Manifest
from jaxlm.scoring.stream import perplexity, stream_nats
from jaxlm.training.feed import Take, feed
from jaxlm.training.step import TrainState, init_state, train_windows

_init_state = jax.jit(init_state, static_argnums=(1, 3))


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1: the rate that it was trained with, and its perplexities."""

    epoch: int
    learning_rate: float
    train_perplexity: float
    valid_perplexity: float


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    config: Config
    corpus: str
    run_dir: Path | None
    state: TrainState
    epochs: list[EpochResult] = field(default_factory=list)
    test_perplexity: float | None = None  # with the last parameters; None if a signal ended the training
    stopped_by: int | None = None  # that signal's number
    skipped_windows: int = 0  # whose cost or gradient was not finite, dropped because on_nonfinite is "skip"

    @property
    def params(self) -> Params:
        return self.state.params


@dataclass(frozen=True)
class _Run:
    """What stays the same during one call of `train`."""

    config: Config
    corpus: Corpus
    folder: Path
    shared: Path  # the same, but for a process that is not the first: the first's
    kept: bool  # False: the folder is a temporary one, so that saving would be in vain
    log: MetricsLog
    progress: Progress
    check_held: Callable[[], None]  # raises RunDirError once the folder is no longer this run's
    mesh: Mesh | None = None  # of the devices, where there are several


def train(config: Config, corpus: str | Path | Corpus | None = None, run_dir: str | Path | None = None, *,
          params: Params | None = None, resume: bool = False, steps: int | None = None,
          data_dir: str | Path | None = None, quiet: bool = False, devices: int | None = None,
          model_devices: int = 1) -> TrainResult:
    """Trains one model and tests it.

    `corpus` is a Corpus or what `--corpus` takes (default: the config's own); `params` replaces the fresh
    parameters; `steps` ends the training after so many windows in all. With `run_dir` everything is kept there,
    and `resume` goes on from its newest intact checkpoint; without one nothing is kept but what is returned.

    The batch's rows are spread over `devices` (default: as many as they divide over) and the vocabulary over
    `model_devices`, in all their product. The numbers are one device's within rounding, a run may be resumed on other
    devices than it began on, and what is returned lies whole in the host's memory. Of many processes
    (`processes.join`) only the first writes, prints and returns all epochs; `run_dir` is one that all of them see.

    SIGTERM, SIGINT and SIGUSR1 end the training: after at most one call of `windows_per_call` windows (and the
    validation, where that call ends an epoch) it is saved and returned from. A second signal ends the process at
    once; what was saved stays whole. During the final test a signal does what it does elsewhere: the training is
    saved by then. Raises JaxlmError.
    """
    mesh, note = parallel.make_mesh(config.train.batch_size, devices, model_devices)
    config, corpus = load(config, corpus, data_dir)
    fresh = new_state(config, params)
    first = processes.first()  # the others keep a directory of their own for as long as they run, and say nothing
    with processes.guarded(), ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxlm-")))
        shared = Path(run_dir or temporary)
        folder, kept = (shared, run_dir is not None) if first else (temporary, False)

        def begin() -> tuple[Callable[[], None], checkpoint.Checkpoint | None, list[str], MetricsLog]:
            goes_on = resume and first
            rundir.check(folder, goes_on)
            check_held = stack.enter_context(rundir.lock(folder))
            if goes_on:
                found, offset, notes = rundir.go_on(folder, config, corpus, parallel.shape(mesh))
            else:
                found, offset, notes = None, None, []
                rundir.begin(folder, config, corpus, params is not None, parallel.shape(mesh))
            return check_held, found, notes, stack.enter_context(
                MetricsLog(folder, corpus.name, offset=offset, tensorboard=kept))

        check_held, found, notes, log = processes.together(begin)
        saved = processes.agreed(found.manifest.step if found else -1)
        if saved >= 0:
            fresh = processes.together(lambda: (found or checkpoint.read(checkpoint.find(shared, str(saved)))).state)
        state = parallel.put(mesh, fresh)
        found = fresh = None  # on a mesh they are copies
        progress = stack.enter_context(_progress(config, corpus, steps, quiet or not first))
        for line in (*corpus.notes, *([note] if note else []), *notes):
            progress.say(line, loud=True)
        run = _Run(config, corpus, folder, shared, kept, log, progress, check_held, mesh)
        progress.say(f"{corpus.name}: {corpus.description}")
        progress.say(f"run directory: {folder if run.kept else 'none, so nothing is kept'}")
        if params is not None and not resume:
            _save(run, state, 0, 0, None)  # nobody could draw these again
        with signals.noted() as stop, feed(corpus.train, config.train, partial(parallel.put_rows, mesh)) as take:
            state, stopped_by = _train(run, state, steps, stop, take)
        return _finish(run, state, stopped_by)


def load(config: Config, corpus: str | Path | Corpus | None = None, data_dir: str | Path | None = None
         ) -> tuple[Config, Corpus]:
    """The corpus, and the config with its vocabulary size and where it was found. Raises DataError, JaxlmError."""
    if not isinstance(corpus, Corpus):
        config = config if corpus is None else config.replace(corpus=str(corpus))
        corpus = load_corpus(config.data.corpus, data_dir=data_dir, max_vocab=config.model.vocab_size,
                             min_count=config.data.min_count, lowercase=config.data.lowercase)
    if len(corpus.vocab) > config.model.vocab_size:
        raise JaxlmError(f"the corpus has {len(corpus.vocab):,} words and vocab_size is {config.model.vocab_size:,}: "
                         f"raise it, or load the corpus with max_vocab={config.model.vocab_size}")
    for split in ("train", "valid"):
        check_fits(split, len(getattr(corpus, split)), config.train.batch_size, config.train.bptt_length)
    check_fits("test", len(corpus.test), 1, 1)
    return config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec, **corpus.options), corpus


def new_state(config: Config, params: Params | None = None) -> TrainState:
    """The state before the first step.

    Raises JaxlmError where given parameters do not have the config's shapes, or no device has its recurrent op.
    """
    platform = jax.default_backend()
    if config.model.recurrent_op == "cudnn" and platform not in ("gpu", "cuda"):
        raise JaxlmError(f"recurrent_op cudnn needs a CUDA device, and there is only {platform}: take scan")
    numbers = (jax.random.key(config.train.seed), config.model, config.hyper, config.train.batch_size)
    if params is not None:
        expected = checkpoint.shapes(jax.eval_shape(lambda: init_state(*numbers)).params)
        given = checkpoint.shapes(params)
        if wrong := [f"{name}: expected {expected.get(name)}, got {given.get(name)}"
                     for name in sorted({*expected, *given}) if expected.get(name) != given.get(name)]:
            raise JaxlmError("params do not have the config's shapes: " + "; ".join(wrong))
        return init_state(*numbers, params)
    return _init_state(*numbers)


def _train(run: _Run, state: TrainState, steps: int | None, stop: signals.Stop, take: Take
           ) -> tuple[TrainState, int | None]:
    """Trains to the end, to `steps` windows in all, or to a signal, which it returns; an epoch's end is validated."""
    counts, hyper = run.config.train, jax.tree.map(jnp.float32, run.config.hyper)
    skip = counts.on_nonfinite == "skip"
    T, B = counts.bptt_length, counts.batch_size
    windows = num_windows(len(run.corpus.train) // B, T)
    last = min(counts.epochs * windows, counts.epochs * windows if steps is None else steps)
    step = int(state.step)
    costs = run.log.epoch_costs(step // windows + 1)
    started, begun_with = time.perf_counter(), len(costs)
    stopped_by = _asked(stop)
    while step < last and stopped_by is None:
        epoch, index = locate(step, windows)
        edges = [windows - index, last - step, counts.windows_per_call]
        if counts.checkpoint_every:
            edges.append(counts.checkpoint_every - step % counts.checkpoint_every)
        tokens, first = take(index, (index + min(edges)) % windows)
        state, metrics = train_windows(state, hyper, tokens, jnp.int32(min(edges)), jnp.bool_(skip), jnp.int32(first),
                                       jnp.int32(windows), bptt_length=T, max_windows=counts.windows_per_call,
                                       mesh=run.mesh)
        metrics, done = jax.device_get(metrics), int(state.step) - step
        cost, norm, rate = (values[:min(edges)] for values in (metrics.cost, metrics.grad_norm,
                                                               metrics.learning_rate))
        run.log.windows(step + 1, epoch + 1, cost[:done], norm[:done], rate[:done])
        if done < min(edges):
            raise Diverged(f"window {step + done + 1} (epoch {epoch + 1}) has cost {cost[done]} and gradient norm "
                           f"{norm[done]} at learning rate {rate[done]:g}: stopped before its update; "
                           f"try a lower learning_rate or clip_norm, or go on from the last checkpoint without "
                           f"such windows (--resume --on-nonfinite skip)")
        step, costs = step + done, costs + cost.tolist()
        train_perplexity = perplexity_of_costs(costs, T)
        run.progress.advance(epoch + 1, index + done, train_perplexity, float(rate[0]))

        valid_perplexity = None
        if step % windows == 0:
            seconds = time.perf_counter() - started
            speed = (len(costs) - begun_with) * T * B / seconds
            valid_perplexity = perplexity(*stream_nats(state.params, hyper, run.corpus.valid, B, T, run.mesh))
            log_epoch(run.log, run.config, run.corpus, epoch=epoch + 1, step=step, learning_rate=float(rate[0]),
                      train_perplexity=train_perplexity, valid_perplexity=valid_perplexity)
            run.log.timing(epoch=epoch + 1, seconds=seconds, words_per_second=speed)
            run.progress.epoch(epoch + 1, train_perplexity, valid_perplexity, float(rate[0]), speed, seconds,
                               floors(run.corpus, "valid").get("floor_valid"))
            costs, begun_with, started = [], 0, time.perf_counter()
        stopped_by = _asked(stop)  # once: what ends the loop also saves
        if step % windows == 0 or step == last or stopped_by is not None or (
                counts.checkpoint_every and step % counts.checkpoint_every == 0):
            _save(run, state, step, step // windows, valid_perplexity)
    return state, stopped_by


def _asked(stop: signals.Stop) -> int | None:
    """The signal that asked this process, or any other, to stop."""
    return processes.agreed(stop.signal or 0) or None


def _save(run: _Run, state: TrainState, step: int, epoch: int, valid_perplexity: float | None) -> None:
    state = parallel.whole(run.mesh, state, run.config.model.vocab_size)

    def save() -> None:
        if run.kept:
            run.check_held()
            run.log.sync()
            manifest = Manifest(step=step, epoch=epoch, valid_perplexity=valid_perplexity,
                                corpus=rundir.named(run.corpus))
            checkpoint.save(run.folder, state, run.config, run.corpus.vocab, manifest)

    processes.together(save)


def _finish(run: _Run, state: TrainState, stopped_by: int | None) -> TrainResult:
    """Tests (batch 1, every prediction), draws the curve and sums up; after a signal it only says how to go on."""
    kept_in = run.folder if run.kept else None
    epochs = [EpochResult(**{name: row[name] for name in EpochResult.__dataclass_fields__})
              for row in read_metrics(run.folder) if row["kind"] == "epoch"]
    skipped = run.log.skipped.total()
    result = TrainResult(run.config, run.corpus.name, kept_in,
                         parallel.whole(run.mesh, state, run.config.model.vocab_size), epochs, stopped_by=stopped_by,
                         skipped_windows=skipped)
    if stopped_by is not None:
        how = f"saved; go on with --run-dir {run.folder} --resume" if kept_in else "nothing is kept"
        run.progress.say(f"stopped by {signal.Signals(stopped_by).name} after window {int(state.step)}: {how}")
        return result

    def test(which: str, step: int, params: Params) -> float:
        value = perplexity(*stream_nats(params, run.config.hyper, run.corpus.test, mesh=run.mesh))
        run.log.result("test", checkpoint=which, step=step, test_perplexity=value, **floors(run.corpus, "test"))
        return value

    tests = {"last": test("last", int(state.step), state.params)}
    best = checkpoint.best_step(checkpoint.manifests(run.folder))
    best = processes.agreed(-1 if best is None else best)
    if best not in (-1, int(state.step)):
        try:
            saved = processes.together(lambda: checkpoint.read(checkpoint.find(run.shared, str(best)))).state.params
            tests["best"] = test("best", best, parallel.put(run.mesh, saved))
        except CheckpointError as error:
            run.progress.say(f"the best checkpoint is not tested: {error}", loud=True)
    run.log.sync()
    rows = [(f"epoch {row.epoch}", f"train {row.train_perplexity:.2f}  valid {row.valid_perplexity:.2f}")
            for row in epochs]
    rows += [(f"test, {which} checkpoint", f"{value:.2f}") for which, value in tests.items()]
    rows += [(name.replace("_", " of "), f"{value:.2f} (the true source's perplexity)")
             for name, value in floors(run.corpus, "train", "valid", "test").items()]
    if skipped:
        rows.append(("windows skipped", f"{skipped}, whose cost or gradient was not finite"))
    if kept_in and epochs:
        try:
            rows.append(("learning curve", str(learning_curve(run.folder))))
        except RunDirError as error:
            run.progress.say(f"there is no learning curve: {error}", loud=True)
    run.progress.summary(rows, run.config.preset)
    return TrainResult(**{**vars(result), "test_perplexity": tests["last"]})


def perplexity_of_costs(costs: list[float], bptt_length: int) -> float:
    """The perplexity of windows with these costs; those that are not finite, of which no update was made, left out."""
    finite = [cost for cost in costs if math.isfinite(cost)]
    return perplexity(sum(finite), bptt_length * len(finite))


def log_epoch(log: MetricsLog, config: Config, corpus: Corpus, *, epoch: int, **values: float) -> None:
    """Writes down what an epoch (from 1) came to."""
    log.result("epoch", preset=config.preset, epoch=epoch, **values, skipped_windows=log.skipped[epoch] or None,
               **floors(corpus, "train", "valid"))


def floors(corpus: Corpus, *splits: str) -> dict[str, float]:
    """`floor_SPLIT`: the perplexity of the true source, where the corpus has one."""
    return {f"floor_{split}": perplexity(corpus.floor[split], len(getattr(corpus, split)) - 1)
            for split in splits} if corpus.floor else {}


def _progress(config: Config, corpus: Corpus, steps: int | None, quiet: bool) -> Progress:
    T, B = config.train.bptt_length, config.train.batch_size
    windows = num_windows(len(corpus.train) // B, T)
    return Progress(config.train.epochs, windows, T * B, corpus.name, Console(quiet=True) if quiet else None,
                    total_windows=None if steps is None else min(steps, config.train.epochs * windows))
