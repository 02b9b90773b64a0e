"""The host side of a run, alone or a member of a sweep: its log, its checkpoints and its results.

The device side is `group.py`.
"""

import math
import time
from bisect import bisect_left
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxlm.base.units import TextSize, comparable, perplexity
from jaxlm.config.config import Config
from jaxlm.config.settings import word_milestones
from jaxlm.data.corpora import Corpus
from jaxlm.data.windows import RandomLengths, WindowPlan, batch
from jaxlm.models.noise import sums_all_words
from jaxlm.report.progress import EpochResult
from jaxlm.report.trackers import OnMetrics
from jaxlm.runs import checkpoint
from jaxlm.runs.lock import Held
from jaxlm.runs.metrics import MetricsLog, Prefix
from jaxlm.training.step import Metrics, TrainState
from jaxlm.training.validations import Validations

SAMPLES = 64  # stretches of train, in which its words are counted
SAMPLE_LENGTH = 1 << 14  # tokens of a stretch, at most


class Run:
    """A run in its directory.

    Attributes:
        config: What is trained.
        corpus: What it is trained on.
        folder: The run's directory, held.
        kept: Whether the run is saved; if not, its directory is temporary.
        plan: Which rows each window reads.
        step: Windows trained.
        last: Windows to be trained in all.
        notes: Sentences for the user about how it was resumed.
        learning_rate: Of the last window trained.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        held: Held,
        files: ExitStack,
        saved: checkpoint.Checkpoint | None = None,
        *,
        kept: bool = True,
        steps: int | None = None,
        on_metrics: OnMetrics | None = None,
    ):
        """Opens the metrics of a run, which has entered its directory (`directory.enter`).

        Args:
            config: What is trained.
            corpus: What it is trained on.
            held: The run's directory.
            files: Closes the run's files; the caller closes it before the directory is released.
            saved: The checkpoint that the run is resumed from; None: it begins.
            kept: Whether checkpoints are saved.
            steps: Windows to be trained in all (None: those of all epochs).
            on_metrics: Called with (step, values by tag) of each window and each result.

        Raises:
            JaxlmError: The metrics cannot be read or written.
        """
        self.config = config
        self.corpus = corpus
        self.folder = held.folder
        self.kept = kept
        self._held = held
        counts = config.train
        self.plan = window_plan(config, len(corpus.train) // counts.batch_size)
        self.last = self.plan.total if steps is None else min(steps, self.plan.total)
        self.learning_rate = math.nan
        self.notes: list[str] = []
        self.step = 0
        self._validations: Validations | None = None
        prefix = Prefix()
        if saved:
            self.step = saved.manifest.step
            self._validations = saved.state.validations
            prefix = saved.manifest.metrics
        self._saved = self.step
        self.log = MetricsLog(
            self.folder,
            files,
            corpus.name,
            counts.bptt_length,
            prefix,
            on_metrics,
        )
        names = [field.name for field in fields(EpochResult)]
        self.epochs = [
            EpochResult(**{name: row[name] for name in names if name in row})
            for row in self.log.epochs
        ]
        if saved and self.finished:
            self.notes.append(
                f"{self.folder.path} has finished ({self.epoch} epochs, {self.step} windows): "
                "nothing is left to train, and it is tested again"
            )
        self.start_clock()

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.plan.locate(self.step)[0]

    @property
    def index(self) -> int:
        """The next window, within its epoch."""
        return self.plan.locate(self.step)[1]

    @property
    def finished(self) -> bool:
        """Whether no window is left to train."""
        return self.step >= self.last or self.ended_early

    @property
    def ended_early(self) -> bool:
        """Whether too many validations in a row did not improve on the best."""
        patience = self.config.train.patience
        return bool(patience and self._validations and int(self._validations.stale) >= patience)

    def edge_after(self, step: int) -> int:
        """The next step at which an epoch or the run ends, or a checkpoint is due."""
        epoch, index = self.plan.locate(step)
        edges = [step - index + self.plan.windows_in(epoch), self.last]
        every = self.config.train.checkpoint_every
        if every:
            edges.append(step - step % every + every)
        edges += [milestone for milestone in self._milestones if milestone > step]
        return min(edges)

    @cached_property
    def _milestones(self) -> dict[int, int]:
        """{step: number of words of `keep_checkpoints` that its window reaches}.

        A window has as many words and ends of lines for each token as a sample of train.
        """
        milestones = word_milestones(self.config.train.keep_checkpoints)
        if not milestones:
            return {}
        sample = batch(self.corpus.train, SAMPLES, stop=SAMPLE_LENGTH).T.ravel()
        words_per_token = self.corpus.vocab.text_size(sample).words / max(1, len(sample) - 1)
        words_per_row = self.config.train.batch_size * words_per_token

        def words_read(step: int) -> int:
            return int(self.plan.rows_read(step) * words_per_row)

        steps = range(self.plan.total + 1)
        reached = {bisect_left(steps, words, key=words_read): words for words in milestones}
        return {step: words for step, words in reached.items() if step in steps}

    @property
    def so_far(self) -> EpochResult:
        """The training so far in the epoch of the last window that was trained.

        Windows whose cost is not finite do not count.
        """
        model = self.config.model
        last = max(self.step - 1, 0)
        epoch, index = self.plan.locate(last)
        epoch_start = last - index
        total: Any = np.float32(self.plan.total)  # float32, as in the training step
        cost, steps = self.log.epoch_cost(epoch + 1)
        return EpochResult(
            epoch=epoch + 1,
            learning_rate=self.learning_rate,
            train_perplexity=perplexity(cost, steps),
            train_estimated=bool(model.sampled_words)
            and not sums_all_words(model, epoch_start, total),
        )

    @cached_property
    def unknown(self) -> dict[str, float]:
        """The share of `<unk>` among the tokens of valid and test."""
        return self.corpus.unknown_shares("valid", "test")

    @cached_property
    def ranked_words(self) -> np.ndarray | None:
        """All ids, the most frequent in train first, int32 [V]; by it `sampled_words` draws.

        None where ids are in this order, as those of words are, or none are drawn.
        """
        if not self.config.model.sampled_words:
            return None
        counts = self.corpus.train_counts()
        if (np.diff(counts) <= 0).all():
            return None
        return np.argsort(-counts, kind="stable").astype(np.int32)

    @cached_property
    def _sizes(self) -> dict[str, TextSize]:
        """The sizes of the predicted text of the validation and the test split."""
        counts = self.config.train
        corpus = self.corpus
        return {
            "valid": corpus.vocab.text_size(corpus.valid, counts.batch_size, counts.bptt_length),
            "test": corpus.vocab.text_size(corpus.test),
        }

    def start_clock(self) -> None:
        """Starts the clock of an epoch, or of the part that this process trains."""
        self._since = time.perf_counter()
        self._until = self._since
        self._from = self.step

    @property
    def epoch_seconds(self) -> float:
        """The seconds in which this process trained windows of this epoch."""
        return self._until - self._since

    @property
    def words_per_second(self) -> float:
        """The tokens per second in this epoch, as far as this process trained it."""
        rows = self.plan.rows_read(self.step) - self.plan.rows_read(self._from)
        return rows * self.config.train.batch_size / max(self.epoch_seconds, 1e-9)

    def trained(self, metrics: Metrics, count: int) -> str | None:
        """Logs the first windows of a call.

        Args:
            metrics: The call's metrics, each [W].
            count: How many of the W windows were to be trained.

        Returns:
            A sentence where a window's cost or gradient ended the run.

        Raises:
            RunDirError: The directory was taken over, or cannot be written.
        """
        costs, norms, rates, finite = (
            np.asarray(column)[:count] for column in jax.tree.leaves(metrics)
        )
        done = count
        if self.config.train.on_nonfinite == "stop" and not finite.all():
            done = int(finite.argmin())  # the windows before the first that is not finite
        lengths = self.plan.windows(self.step, done, done).length
        self._held.check()  # else lines of two processes would mix
        epoch = self.epoch + 1
        self.log.windows(
            self.step + 1, epoch, costs[:done], norms[:done], rates[:done], steps=lengths
        )
        if done < count:
            cost = costs[done]
            norm = norms[done]
            rate = rates[done]
            window = self.step + done + 1
            self.log.result(
                "diverged", step=window, epoch=epoch, cost=cost, grad_norm=norm, learning_rate=rate
            )
            return (
                f"window {window} (epoch {epoch}) has cost {cost} and gradient norm {norm} "
                f"at learning rate {rate:g}"
            )
        self.step += done
        self.learning_rate = float(rates[-1])
        self._until = time.perf_counter()
        return None

    def end_epoch(self, valid_perplexity: float) -> None:
        """Logs the epoch that has just ended."""
        result = replace(self.so_far, valid_perplexity=valid_perplexity)
        self.log.result(
            "epoch",
            preset=self.config.preset,
            epoch=result.epoch,
            step=self.step,
            learning_rate=result.learning_rate,
            train_perplexity=result.train_perplexity,
            train_estimated=result.train_estimated or None,
            valid_perplexity=valid_perplexity,
            **self.comparable("valid", valid_perplexity),
            unknown_valid=self.unknown["valid"],
            skipped_windows=self.log.skipped[result.epoch] or None,
            **floors(self.corpus, "train", "valid"),
        )
        self.log.timing(
            epoch=result.epoch, seconds=self.epoch_seconds, words_per_second=self.words_per_second
        )
        self.epochs.append(result)

    def remember(self, record: Validations | None) -> None:
        """Keeps the state's record of validations, whole in the host's memory."""
        self._validations = record

    def perplexity(
        self,
        nats: float,
        predictions: int,
        rows: int = 1,
    ) -> float:
        """A perplexity, with predictions counted as the recipe counts them.

        Args:
            nats: Summed over all predictions.
            predictions: How many there are.
            rows: The rows that the text was read in.
        """
        return perplexity(nats, self.config.optimizer.counted(predictions, rows))

    def save(self, state: TrainState) -> None:
        """Saves a checkpoint, unless there is one of this step."""
        if not self.kept or (self.step == self._saved and self.step > 0):
            return
        self._held.check()
        valid = None
        if self.epochs and self.index == 0:  # an epoch has just ended
            valid = self.epochs[-1].valid_perplexity
        manifest = checkpoint.Manifest(
            self.step,
            self.epoch,
            valid,
            self.corpus.identity,
            *self.log.sync(),
            words=self._milestones.get(self.step),
        )
        checkpoint.save(self.folder, state, self.config, self.corpus.vocab, manifest)
        self._saved = self.step

    def comparable(self, split: str, value: float) -> dict[str, float]:
        """The measures that compare between vocabularies, from a perplexity.

        Args:
            split: valid or test.
            value: The split's perplexity.

        Returns:
            `SPLIT_bits_per_byte` and so on (`units.comparable`).
        """
        size = self._sizes[split]
        rows = self.config.train.batch_size if split == "valid" else 1
        nats = math.nan
        if value > 0:
            nats = math.log(value) * self.config.optimizer.counted(size.tokens, rows)
        return {f"{split}_{name}": number for name, number in comparable(nats, size).items()}

    def log_test(
        self,
        which: str,
        step: int,
        nats: float,
        predictions: int,
    ) -> float:
        """Logs the test of a checkpoint.

        Args:
            which: last or best.
            step: The checkpoint's step.
            nats: The nats of the test split, summed.
            predictions: How many tokens were predicted.

        Returns:
            The test perplexity.
        """
        value = self.perplexity(nats, predictions)
        self.log.result(
            "test",
            checkpoint=which,
            step=step,
            test_perplexity=value,
            **self.comparable("test", value),
            unknown_test=self.unknown["test"],
            **floors(self.corpus, "test"),
        )
        self.log.sync()
        return value


def window_plan(config: Config, rows: int) -> WindowPlan:
    """Which rows of the tokens each step reads.

    Args:
        config: The run's config.
        rows: N // B, of tokens [N // B, B].
    """
    counts = config.train
    random = None
    if counts.length_deviation is not None:
        random = RandomLengths(
            counts.bptt_length,
            counts.short_probability,
            counts.length_deviation,
            counts.shortest_window,
            counts.longest,
            counts.length_seed,
            config.optimizer.windows_as_published,
        )
    rolled = counts.batch_size if counts.roll_rows else 0
    return WindowPlan(rows, counts.longest, counts.epochs, random, rolled, counts.seed)


def floors(corpus: Corpus, *splits: str) -> dict[str, float]:
    """The perplexities of the source that generated a text, as far as they are known.

    Args:
        corpus: The text.
        *splits: Of train, valid and test.

    Returns:
        {"floor_SPLIT": perplexity}.
    """
    nats = corpus.floor or {}
    return {
        f"floor_{split}": perplexity(nats[split], len(getattr(corpus, split)) - 1)
        for split in splits
        if split in nats
    }
