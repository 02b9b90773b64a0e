"""The host side of a run, alone or a member of a sweep: its log, its checkpoints and its results.

The device side is `group.py`.
"""

import math
import time
from bisect import bisect_left
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.settings import word_milestones
from jaxlm.data.corpora import Corpus
from jaxlm.data.vocab import BLOCK, Vocab
from jaxlm.data.windows import RandomLengths, WindowPlan, batch
from jaxlm.models.noise import sums_all_words
from jaxlm.report.progress import EpochResult
from jaxlm.report.trackers import OnMetrics
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.lock import Held
from jaxlm.runs.metrics import MetricsLog
from jaxlm.training.step import Metrics, TrainState
from jaxlm.training.validations import Validations
from jaxlm.units import TextSize, comparable, perplexity


class Run:
    """A run in its directory.

    Attributes:
        kept: whether it is saved; if not, its directory is temporary.
        plan: which rows each window reads.
        step, last: windows trained, and to be trained.
        found: the checkpoint that it is resumed from, until its state is taken.
        notes: sentences for the user about how it was resumed.
        learning_rate: of the last window trained.
        averages_from: the step after whose validation averaging started, if this process saw it.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        held: Held,
        files: ExitStack,
        *,
        resume: bool,
        kept: bool = True,
        steps: int | None = None,
        given_params: bool = False,
        devices: tuple[int, int] = (1, 1),
        on_metrics: OnMetrics | None = None,
    ):
        """Begins or resumes a run in a held directory; `files` closes its files before the directory is released.

        `given_params` and `devices` are recorded (`directory.begin`); `steps` and `on_metrics` are those of `train`.
        Raises JaxlmError where another run is there, or none, or it cannot be read.
        """
        self.config = config
        self.corpus = corpus
        self.folder = held.folder
        self.kept = kept
        self._held = held
        counts = config.train
        self.plan = window_plan(config, len(corpus.train) // counts.batch_size)
        self.last = self.plan.total if steps is None else min(steps, self.plan.total)
        self.found: checkpoint.Checkpoint | None = None
        self.notes: list[str] = []
        if resume:
            self.found, self.notes = directory.resume(
                self.folder, config, corpus, given_params, devices
            )
        else:
            directory.begin(self.folder, config, corpus, given_params, devices)
        lines = self.found.manifest.metrics if self.found else None
        self.log = MetricsLog(
            self.folder, files, corpus.name, counts.bptt_length, kept=lines, on_metrics=on_metrics
        )
        self.step = self._saved = self.found.manifest.step if self.found else 0
        self.learning_rate = math.nan
        self._validations = self.found.state.validations if self.found else None
        self.averages_from: int | None = None
        if self.found and self.finished:
            done = f"{self.folder.path} has finished ({self.epoch} epochs, {self.step} windows)"
            self.notes.append(f"{done}: nothing is left to train, and it is tested again")
        names = EpochResult.__dataclass_fields__
        self.epochs = [
            EpochResult(**{name: row[name] for name in names if name in row})
            for row in self.log.epochs
        ]
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
        (epoch, index), every = self.plan.locate(step), self.config.train.checkpoint_every
        edges = [step - index + self.plan.windows_in(epoch), self.last]
        if every:
            edges.append(step - step % every + every)
        return min(edges + [milestone for milestone in self._milestones if milestone > step][:1])

    @cached_property
    def _milestones(self) -> dict[int, int]:
        """{step: number of words of `keep_checkpoints` that its window reaches}, by step.

        A window has as many words and ends of lines for each token as all of train.
        """
        train = self.corpus.train
        found = {}
        steps = range(self.plan.total + 1)
        milestones = word_milestones(self.config.train.keep_checkpoints)
        if milestones:
            row = (
                self.config.train.batch_size
                * word_count(self.corpus.vocab, train)
                / max(1, len(train) - 1)
            )
            for words in milestones:
                step = bisect_left(
                    steps, words, key=lambda step: int(self.plan.rows_read(step) * row)
                )
                if step in steps:
                    found[step] = words
        return found

    @property
    def so_far(self) -> EpochResult:
        """The last window's epoch so far, without windows whose cost is not finite."""
        model = self.config.model
        last = max(self.step - 1, 0)
        epoch, index = self.plan.locate(last)
        total: Any = np.float32(self.plan.total)  # as the step computes it
        sampled = bool(model.sampled_words) and not sums_all_words(model, last - index, total)
        cost, steps = self.log.epoch_cost(epoch + 1)
        return EpochResult(
            epoch + 1, self.learning_rate, perplexity(cost, steps), train_estimated=sampled
        )

    @cached_property
    def unknown(self) -> dict[str, float]:
        """The share of `<unk>` among the tokens of valid and test."""
        return self.corpus.unknown_shares("valid", "test")

    @cached_property
    def _sizes(self) -> dict[str, TextSize]:
        """The sizes of the predicted text of the validation and the test split."""
        counts = self.config.train
        corpus = self.corpus
        valid = corpus.vocab.text_size(corpus.valid, counts.batch_size, counts.bptt_length)
        return {"valid": valid, "test": corpus.vocab.text_size(corpus.test)}

    def start_clock(self) -> None:
        """Starts the clock of an epoch, or of the part that this process trains."""
        self._since = time.perf_counter()
        self._until = time.perf_counter()
        self._from = self.step

    @property
    def epoch_seconds(self) -> float:
        """The seconds in which this process trained windows of this epoch."""
        return self._until - self._since

    @property
    def words_per_second(self) -> float:
        """The speed in this epoch, as far as this process trained it."""
        rows = self.plan.rows_read(self.step) - self.plan.rows_read(self._from)
        return rows * self.config.train.batch_size / max(self.epoch_seconds, 1e-9)

    def trained(self, metrics: Metrics, count: int) -> str | None:
        """Logs the first `count` windows of a call; returns a sentence where one of them ends the run."""
        cost, norm, rate, finite = (
            np.asarray(column)[:count] for column in jax.tree.leaves(metrics)
        )
        stopping = self.config.train.on_nonfinite == "stop" and not finite.all()
        done = int(finite.argmin()) if stopping else count
        lengths = self.plan.windows(self.step, done, done).length
        self._held.check()  # else lines of two processes would mix
        self.log.windows(
            self.step + 1, self.epoch + 1, cost[:done], norm[:done], rate[:done], steps=lengths
        )
        if stopping:
            where = f"window {self.step + done + 1} (epoch {self.epoch + 1})"
            return f"{where} has cost {cost[done]} and gradient norm {norm[done]} at learning rate {rate[done]:g}"
        self.step += done
        self.learning_rate = float(rate[-1])
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
        """Takes over the state's record of validations, whole in the host's memory."""
        before = self._validations
        self._validations = record
        if (
            record
            and record.switch
            and before
            and before.switch
            and record.switch.averaging > before.switch.averaging
        ):
            self.averages_from = self.step

    def perplexity(self, nats: float, predictions: int, rows: int = 1) -> float:
        """The perplexity of summed nats in so many rows, as the recipe counts them."""
        return perplexity(nats, self.config.optimizer.counted(predictions, rows))

    def save(self, state: TrainState) -> None:
        """Saves a checkpoint, unless there is one of this step."""
        if not self.kept or (self.step == self._saved and self.step > 0):
            return
        self._held.check()
        valid = (
            self.epochs[-1].valid_perplexity if self.epochs and self.index == 0 else None
        )  # at an epoch's end
        named = directory.named(self.corpus)
        words = self._milestones.get(self.step)
        manifest = checkpoint.Manifest(
            self.step, self.epoch, valid, named, *self.log.sync(), words=words
        )
        checkpoint.save(self.folder, state, self.config, self.corpus.vocab, manifest)
        self._saved = self.step

    def comparable(self, split: str, value: float) -> dict[str, float]:
        """`SPLIT_bits_per_byte` and so on, of valid or test, from its perplexity."""
        size = self._sizes[split]
        rows = self.config.train.batch_size if split == "valid" else 1
        nats = (math.log(value) if value > 0 else math.nan) * self.config.optimizer.counted(
            size.tokens, rows
        )
        return {f"{split}_{name}": found for name, found in comparable(nats, size).items()}

    def log_test(self, which: str, step: int, nats: float, predictions: int) -> float:
        """Logs the test of a checkpoint, and returns its perplexity."""
        value = self.perplexity(nats, predictions)
        floor = floors(self.corpus, "test")
        unknown = self.unknown["test"]
        found = {
            "test_perplexity": value,
            **self.comparable("test", value),
            "unknown_test": unknown,
            **floor,
        }
        self.log.result("test", checkpoint=which, step=step, **found)
        self.log.sync()
        return value


def window_plan(config: Config, rows: int) -> WindowPlan:
    """Which rows of [N // B, B] each step reads."""
    counts = config.train
    if counts.length_deviation is None:
        return WindowPlan(rows, counts.bptt_length, counts.epochs)
    lengths = (
        counts.bptt_length,
        counts.short_probability,
        counts.length_deviation,
        counts.shortest_window,
    )
    random = RandomLengths(
        *lengths, counts.longest, counts.length_seed, config.optimizer.windows_as_published
    )
    return WindowPlan(rows, counts.longest, counts.epochs, random)


def floors(corpus: Corpus, *splits: str) -> dict[str, float]:
    """`floor_SPLIT`: the perplexity of the true source, where the corpus has one."""
    nats = corpus.floor or {}
    return {
        f"floor_{part}": perplexity(nats[part], len(getattr(corpus, part)) - 1)
        for part in splits
        if part in nats
    }


def word_count(vocab: Vocab, ids: np.ndarray) -> int:
    """The words at white space and the ends of lines in ids [N] but the first, from a table of the tokens.

    (Exact, but where bytes are tokens and one white space is several: such a space is not seen.)
    """
    if vocab.kind == "words":
        return len(ids) - 1
    texts = [data.decode("utf-8", "replace") for data in vocab.token_bytes]
    words = np.array([len(text.split()) + text.count("\n") for text in texts])
    begins, ends = (
        np.array([text != "" and not text[at].isspace() for text in texts]) for at in (0, -1)
    )
    count = 0
    for start in range(0, len(ids) - 1, BLOCK):
        block = batch(ids, 1, start=start, stop=start + BLOCK + 1)[:, 0]
        joined = ends[block[:-1]] & begins[block[1:]]  # two tokens of one word
        count += int(words[block[1:]].sum() - np.count_nonzero(joined))
    return count
