"""A worker: it claims trials of a study and trains their members in groups, one compiled program for each shape.

At an epoch's end, where the windows of all members line up, each member is validated, saved and reported, Optuna may
prune its trial, and free slots are filled.
"""

import errno
import gc
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.config import Config
from jaxlm.config.settings import TOKEN_FIELDS, DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.errors import CheckpointError, JaxlmError, OutOfMemory, RunDirError
from jaxlm.runs import directory, precision, ram
from jaxlm.runs.group import Group, MemberGroup, SingleGroup
from jaxlm.runs.loop import Observer, fit
from jaxlm.runs.run import Run
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.runs.trainer import new_state, with_corpus
from jaxlm.sweeps.results import MemberResult
from jaxlm.sweeps.space import Plan
from jaxlm.sweeps.study import Claim, Study
from jaxlm.terminal import say
from jaxlm.training.step import TrainState
from jaxlm.units import perplexity

POLL = 1.0
PATIENCE = 5  # seconds between two looks for a trial whose worker is gone; looks before it is told
MOST_ON_CPU = 8
MOST = 32  # members in a group, unless the caller says how many
# The errors that are the machine's, not a trial's.
MACHINE = {
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}

Shape = tuple[Any, ...]  # everything that members of one program share


class Member(Run):
    """A run of a claimed trial. Its state waits here until the run gets a slot of a group."""

    claim: Claim
    state: TrainState

    @property
    def record(self) -> MemberResult:
        """Its results, as the study keeps them."""
        return self.claim.records[self.config.train.seed]

    @property
    def shape(self) -> Shape:
        """What members of one program share: the recipe's structure, the counts, the text, the next window."""
        train = replace(self.config.train, seed=0, epochs=0)
        epoch = (
            0 if self.plan.random is None else self.epoch
        )  # each epoch has random lengths of its own
        recipe = jax.tree.structure(self.config.recipe)
        return recipe, train, self.config.data, self.corpus.sha256, epoch, self.index


@dataclass(eq=False)
class Worker(Observer):
    """One of a sweep's processes."""

    study: Study
    corpus: Corpus | None  # if it is given as an object; None: the one that each config names
    data_dir: str | Path | None
    size: int | None  # members in a group; None: as many as the memory holds
    vmap: bool | None  # whether members share each operation; None: on accelerators
    workers: int = 1  # processes that share this machine
    kept: bool = True  # whether members are saved
    stopped: Callable[[], int | None] = lambda: (
        None
    )  # the signal that asks to stop, if there is one
    show: Callable[[], object] = lambda: None  # called after each epoch
    say: Callable[[str], object] = say  # prints a line
    _corpora: dict[tuple[DataConfig, int], Corpus] = field(default_factory=dict)
    _waiting: list[Member] = field(default_factory=list)
    _shape: Shape = ()

    def run(self) -> None:
        """Works until all trials have ended, or a signal asks to stop."""
        idle = 0
        try:
            while self.stopped() is None:
                if self._waiting:
                    self._train(
                        Counter(member.shape for member in self._waiting).most_common(1)[0][0]
                    )
                    gc.collect()  # jax 0.12 keeps arrays in cycles, and the next group may need their memory
                elif not self._claim():  # others train the rest, and one of them may die
                    if self.study.ended:
                        break
                    idle += 1
                    if idle == PATIENCE:
                        self.say(
                            "waiting for trials that other processes train: one of them may end early"
                        )
                    self.show()
                    time.sleep(POLL)
        finally:
            for claim in list(self.study.held.values()):
                self.study.release(claim)

    def _train(self, shape: Shape) -> None:
        """Trains members of one shape until there are no more, or a signal came."""
        self._shape = shape
        config = next(member.config for member in self._waiting if member.shape == shape)
        vmap = jax.default_backend() != "cpu" if self.vmap is None else self.vmap
        group = MemberGroup(self.size or group_size(config, self.study.plan, self.workers), vmap)
        self.fill(group)
        fit(group, self)

    def _claim(self) -> bool:
        """Begins or resumes the members of another trial; whether there was one."""
        claim = self.study.claim()
        if claim is None:
            return False
        for seed, record in claim.records.items():
            if record.status != "running":
                continue
            try:
                member = self._member(claim, record)
            except (CheckpointError, RunDirError, OutOfMemory) as error:
                folder = claim.dirs[seed].folder
                if isinstance(error, RunDirError) and not (
                    folder.exists("config.json") and directory.problems(folder)
                ):
                    raise  # the disk is at fault, not the trial
                self.study.note(claim, replace(record, status="damaged", note=str(error)))
            except JaxlmError as error:  # say, a batch too large for the corpus
                cause = error.__context__
                if getattr(cause, "errno", None) in MACHINE:
                    raise  # the machine is at fault, not the trial
                status = (
                    "damaged" if isinstance(cause, MemoryError) else "failed"
                )  # (memory may be free later)
                self.study.note(claim, replace(record, status=status, note=str(error)))
            else:
                for note in member.notes:  # such as a damaged newest checkpoint
                    self.say(f"!! trial {record.number} seed {seed}: {note}")
                if member.finished:
                    self._finish(member, SingleGroup(member, member.state, None), 0)
                else:
                    self._waiting.append(member)
        self.study.end(claim)
        return True

    def _member(self, claim: Claim, record: MemberResult) -> Member:
        config = self.study.plan.config_of(record.values, record.seed)
        held = claim.dirs[record.seed]
        key = config.data, config.model.vocab_size
        resume = held.folder.exists("config.json")
        if resume and config.model.compute_dtype == "auto":
            config = config.replace(compute_dtype=directory.saved_dtype(held.folder))
        config, corpus = with_corpus(config, self.corpus or self._corpora.get(key), self.data_dir)
        self._corpora[key] = corpus
        config, rates, _ = precision.resolved(config)
        setup = directory.Setup(rates=rates)
        member = Member(
            config, corpus, held, claim.held, resume=resume, kept=self.kept, setup=setup
        )
        member.claim = claim
        member.state = member.resumed.state if member.resumed else new_state(config)
        member.resumed = None
        return member

    def fill(self, group: Group) -> None:
        """Puts waiting members of the group's shape, and those of newly claimed trials, into the free slots."""
        assert isinstance(group, MemberGroup)
        most = (
            1 if self.study.plan.strategy == "grid" else len(group.runs)
        )  # members of other shapes that may wait
        running = next((run for run in group.runs if isinstance(run, Member)), None)
        if running:
            self._shape = (
                running.shape
            )  # at an epoch's edge it is at another window than when it came
        free = [slot for slot, run in enumerate(group.runs) if run is None]
        while len(
            fitting := [member for member in self._waiting if member.shape == self._shape]
        ) < len(free):
            others = len(self._waiting) - len(fitting)
            if self._shape[-2:] != (0, 0) or others >= most or not self._claim():
                break
        for slot, member in zip(free, fitting, strict=False):
            self._waiting.remove(member)
            member.start_clock()
            group.add(slot, member, member.state)
            del member.state  # so that the group alone holds the arrays

    def trained(self, group: Group) -> None:
        """Shows the other workers of a shared database that this directory lives."""
        self.study.beat()

    def diverged(self, group: Group, slot: int, problem: str) -> None:
        """Ends a member whose window was not finite."""
        self._note(self._free(group, slot), status="diverged", note=problem)

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        """Reports the epochs, and ends trials to prune; unless stopping, ends finished members and fills free slots."""
        members = {slot: run for slot, run in enumerate(group.runs) if isinstance(run, Member)}
        for slot, member in members.items():
            self._note(member, seconds=round(member.record.seconds + member.epoch_seconds, 3))
            if not math.isfinite(value := member.record.valid_perplexity):
                self.diverged(
                    group, slot, f"epoch {member.epoch} has validation perplexity {value}"
                )
            elif member.finished and not stopping:
                self._finish(member, group, slot)
                self._free(group, slot)
        for claim in dict.fromkeys(
            member.claim for member in members.values() if not member.finished
        ):
            if claim in self.study.held.values() and self.study.to_prune(claim):
                self._prune(group, claim)
        self.show()
        if not stopping:
            self.fill(group)

    def _prune(self, group: Group, claim: Claim) -> None:
        """Ends all members of a trial that Optuna gives up."""
        for slot, member in enumerate(group.runs):
            if isinstance(member, Member) and member.claim is claim:
                note = f"worse than the median after epoch {member.epoch}"
                self._note(self._free(group, slot), status="pruned", note=note)
        for member in [member for member in self._waiting if member.claim is claim]:
            self._waiting.remove(member)
            self._note(member, status="pruned", note="its other seeds were worse than the median")

    def _finish(self, member: Member, group: Group, slot: int) -> None:
        value = member.log_test("last", member.step, *group.nats(slot, member.corpus.test))
        self._note(member, status="done", test_perplexity=self._compared(member, "test", value))

    def _free(self, group: Group, slot: int) -> Member:
        member = group.runs[slot]
        group.runs[slot] = None
        assert isinstance(member, Member)
        return member

    def _note(self, member: Member, **changes: Any) -> None:
        """Stores a member's epochs so far, and what else has changed; ends its trial with the last member's end."""
        epochs = tuple(
            self._compared(member, "valid", epoch.valid_perplexity) for epoch in member.epochs
        )
        self.study.note(member.claim, replace(member.record, valid_perplexities=epochs, **changes))
        self.study.end(member.claim)

    def _compared(self, run: Run, split: str, value: float) -> float:
        """A perplexity, per character where the trials' tokens differ."""
        if self.study.plan.space.keys().isdisjoint(TOKEN_FIELDS):
            return value
        return perplexity(
            math.log(2) * run.comparable(split, value)[f"{split}_bits_per_character"], 1
        )


def group_size(config: Config, plan: Plan, workers: int) -> int:
    """How many members of a shape are useful in a worker's group, and fit into its share of half the free memory.

    As many on each device: an empty slot costs less than a device that is left out.
    """
    T = config.train.longest
    B = config.train.rows_of_gradient
    model = config.model
    state = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of_state(config)))
    activations = T * B * (3 * model.embedding_size + 16 * sum(model.hidden_sizes))
    device = ram.of_device()
    free = ram.available() if device is None else device
    fit_in = free // 2 // workers // (4 * (4 * state + activations))
    rounds = 4 if plan.strategy == "tpe" else 1  # Optuna learns from the trials that have ended
    useful = math.ceil(plan.trials * plan.seeds / workers / rounds)
    most = max(1, min(MOST_ON_CPU if jax.default_backend() == "cpu" else MOST, fit_in))
    size = min(most, useful)
    devices = len(jax.local_devices())
    if most < devices:
        return size
    return devices * min(math.ceil(size / devices), most // devices)
