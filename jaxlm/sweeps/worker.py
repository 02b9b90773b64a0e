"""A worker: it claims trials of a study and trains their members in groups, one compiled program for each shape.

At an epoch's end, where the windows of all members line up, each member is validated, saved and reported, Optuna may
prune its trial, and free slots are filled.
"""

import gc
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.config import Config
from jaxlm.config.settings import DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.errors import CheckpointError, JaxlmError, RunDirError
from jaxlm.runs import ram
from jaxlm.runs.group import Group, MemberGroup, SingleGroup
from jaxlm.runs.loop import Observer, fit
from jaxlm.runs.run import Run
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.runs.trainer import new_state, with_corpus
from jaxlm.sweeps.plan import Plan
from jaxlm.sweeps.results import MemberResult
from jaxlm.sweeps.study import Claim, Study
from jaxlm.training.step import TrainState

POLL = 1.0  # seconds between two looks for a trial whose worker is gone
MOST_ON_CPU, MOST = 8, 32  # members in a group, unless the caller says how many

Shape = tuple[Any, ...]  # everything that members of one program share


class Corpora:
    """A config -> itself with its corpus's vocabulary size, and the corpus. Each corpus is loaded once.

    Args:
        found: The sweep's corpus.
        in_memory: Whether it was given as an object, so that no other can be loaded.
        data_dir: Where Penn Treebank's files are.
    """

    def __init__(self, found: Corpus, in_memory: bool, data_dir: str | Path | None):
        self._found, self._in_memory, self._data_dir = found, in_memory, data_dir
        self._known: dict[tuple[DataConfig, int], Corpus] = {}

    def __call__(self, config: Config) -> tuple[Config, Corpus]:
        key = config.data, config.model.vocab_size
        config, self._known[key] = with_corpus(
            config, self._found if self._in_memory else self._known.get(key), self._data_dir
        )
        return config, self._known[key]


@dataclass(eq=False)
class Member:
    """A run of a claimed trial. Its state waits here until the run gets a slot of a group."""

    run: Run
    record: MemberResult
    state: TrainState

    @property
    def shape(self) -> Shape:
        """What members of one program share: the recipe's structure, the counts, the text, the next window."""
        config = self.run.config
        train = replace(config.train, seed=0, epochs=0)
        epoch = 0 if self.run.plan.random is None else self.run.epoch  # each epoch has random lengths of its own
        return jax.tree.structure(config.recipe), train, config.data, self.run.corpus.sha256, epoch, self.run.index


class Worker(Observer):
    """One of a sweep's processes.

    Args:
        study: Whose trials are trained.
        corpora: Loads the text of a config.
        size: Members in a group; None: as many as the memory holds.
        workers: Processes that share this machine.
        kept: Whether the runs are saved.
        stop: The signal that asks to stop, if there is one.
        tick: Called after each call of windows.
        vmap: Whether members share each operation; None: on accelerators.
    """

    def __init__(
        self,
        study: Study,
        corpora: Corpora,
        size: int | None,
        workers: int,
        kept: bool,
        stop: Callable[[], int | None],
        tick: Callable[[], object],
        vmap: bool | None = None,
    ):
        self._study, self._corpora, self._size, self._workers, self._kept = study, corpora, size, workers, kept
        self.stopped, self._tick = stop, tick
        self._vmap = jax.default_backend() != "cpu" if vmap is None else vmap
        self._waiting: list[Member] = []
        self._placed: dict[Run, Member] = {}
        self._claims: dict[int, Claim] = {}
        self._shape: Shape = ()

    def run(self) -> None:
        """Works until all trials have ended, or a signal asks to stop."""
        try:
            while self.stopped() is None and (self._waiting or self._claim() or not self._study.ended):
                if self._waiting:
                    self._train(Counter(member.shape for member in self._waiting).most_common(1)[0][0])
                    gc.collect()  # jax 0.12 keeps arrays in cycles, and the next group may need their memory
                else:  # others train the rest, and one of them may die
                    self._tick()
                    self._study.wait(POLL)
        finally:
            for claim in self._claims.values():
                self._study.release(claim)

    def _train(self, shape: Shape) -> None:
        """Trains members of one shape until there are no more, or a signal came."""
        self._shape = shape
        config = next(member.run.config for member in self._waiting if member.shape == shape)
        group = MemberGroup(self._size or group_size(config, self._study.plan, self._workers), self._vmap)
        self.fill(group)
        fit(group, self)
        for run in filter(None, group.runs):
            del self._placed[run]

    def _claim(self) -> bool:
        """Begins or resumes the members of another trial; whether there was one."""
        claim = self._study.claim()
        if claim is None:
            return False
        number = claim.trial.number
        self._claims[number] = claim
        for seed, record in claim.records.items():
            if record.status != "running":
                continue
            try:
                member = self._member(claim, seed, record)
            except RunDirError:  # the disk is at fault, not the trial
                raise
            except CheckpointError as error:  # none is intact: a resumed sweep tries again
                self._study.note(claim, replace(record, status="damaged", note=str(error)))
            except JaxlmError as error:  # such as a batch that is too large for the corpus
                self._study.note(claim, replace(record, status="failed", note=str(error)))
            else:
                for note in member.run.notes:  # such as a damaged newest checkpoint
                    self._study.say(f"!! trial {number} seed {seed}: {note}")
                if member.run.finished:
                    self._finish(member, SingleGroup(member.run, member.state, None), 0)
                else:
                    self._waiting.append(member)
        self._end(number)
        return True

    def _member(self, claim: Claim, seed: int, record: MemberResult) -> Member:
        config, corpus = self._corpora(self._study.plan.config_of(claim.params, seed))
        held = claim.dirs[seed]
        resume = held.folder.exists("config.json")
        run = Run(config, corpus, held, claim.held, resume=resume, kept=self._kept)
        state = new_state(config) if run.found is None else run.found.state
        run.found = None
        return Member(run, self._seen(run, record), state)

    def fill(self, group: Group) -> None:
        """Puts waiting members of the group's shape, and those of newly claimed trials, into the free slots."""
        assert isinstance(group, MemberGroup)
        most = 1 if self._study.plan.strategy == "grid" else len(group.runs)  # members of other shapes that may wait
        if (running := next(filter(None, group.runs), None)) and running.plan.random is not None:
            self._shape = (*self._shape[:-2], running.epoch, 0)
        for slot in [slot for slot, run in enumerate(group.runs) if run is None]:
            found = self._of_shape()
            while found is None and self._shape[-2:] == (0, 0) and len(self._waiting) < most and self._claim():
                found = self._of_shape()
            if found is None:
                break
            self._waiting.remove(found)
            self._placed[found.run] = found
            found.run.start_clock()
            group.add(slot, found.run, found.__dict__.pop("state"))  # so that the group alone holds the arrays

    def trained(self, group: Group) -> None:
        """Shows those who share a database that this worker lives."""
        for run in filter(None, group.runs):
            self._study.beat(self._claims[self._placed[run].record.number])
        self._tick()

    def diverged(self, group: Group, slot: int, problem: str) -> None:
        """Ends a member whose window was not finite."""
        self._close(self._free(group, slot), "diverged", problem)

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        """Reports the members' epochs; ends those that have finished, unless stopping, and trials to prune."""
        numbers = set()
        for slot, run in enumerate(group.runs):
            if run is None:
                continue
            member = self._placed[run]
            member.record = self._seen(run, member.record)
            numbers.add(member.record.number)
            self._study.note(self._claims[member.record.number], member.record)
            if not math.isfinite(value := member.record.valid_perplexity):
                self.diverged(group, slot, f"epoch {run.epoch} has validation perplexity {value}")
            elif run.finished and not stopping:
                self._finish(self._placed[run], group, slot)
                self._free(group, slot)
        for number in numbers & self._claims.keys():
            if self._study.to_prune(self._claims[number]):
                self._prune(group, number)

    def _prune(self, group: Group, number: int) -> None:
        """Ends all members of a trial that Optuna gives up."""
        for slot, run in enumerate(group.runs):
            if run is not None and self._placed[run].record.number == number:
                self._close(self._free(group, slot), "pruned", f"worse than the median after epoch {run.epoch}")
        for member in [member for member in self._waiting if member.record.number == number]:
            self._waiting.remove(member)
            self._close(member, "pruned", "its other seeds were worse than the median")

    def _finish(self, member: Member, group: Group, slot: int) -> None:
        member.record = replace(member.record, test_perplexity=group.test(slot))
        self._close(member, "done")

    def _free(self, group: Group, slot: int) -> Member:
        run, group.runs[slot] = group.runs[slot], None
        assert run is not None
        return self._placed.pop(run)

    def _close(self, member: Member, status: str, note: str | None = None) -> None:
        """Ends a member, and its trial if it was the last one."""
        member.record = replace(member.record, status=status, note=note)
        self._study.note(self._claims[member.record.number], member.record)
        self._end(member.record.number)

    def _end(self, number: int) -> None:
        if number in self._claims and self._study.end(self._claims[number]):
            del self._claims[number]

    def _of_shape(self) -> Member | None:
        return next((member for member in self._waiting if member.shape == self._shape), None)

    @staticmethod
    def _seen(run: Run, record: MemberResult) -> MemberResult:
        """The record with the run's epochs and seconds; those of earlier processes are in it already."""
        epochs = tuple(epoch.valid_perplexity for epoch in run.epochs)
        return replace(record, valid_perplexities=epochs, seconds=record.seconds + run.take_seconds())


def group_size(config: Config, plan: Plan, workers: int) -> int:
    """How many members of a shape are useful in a worker's group, and fit into its share of half the free memory."""
    T, B, model = config.train.longest, config.train.batch_size, config.model
    state = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of_state(config)))
    activations = T * B * (3 * model.embedding_size + 16 * sum(model.hidden_sizes))
    device = jax.local_devices()[0].memory_stats() or {}
    free = device["bytes_limit"] - device.get("bytes_in_use", 0) if "bytes_limit" in device else ram.available()
    fit_in = free // 2 // workers // (4 * (4 * state + activations))
    rounds = 4 if plan.strategy == "tpe" else 1  # Optuna learns from the trials that have ended
    useful = math.ceil(plan.trials * plan.seeds / workers / rounds)
    return max(1, min(MOST_ON_CPU if jax.default_backend() == "cpu" else MOST, fit_in, useful))
