"""A worker: it claims trials of a study and trains their members in groups.

A group has one compiled program. At an epoch's end, where the windows of all its members line up,
each member is validated, saved and reported, Optuna may prune its trial, and free slots are filled.
"""

import errno
import gc
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm.base.errors import CheckpointError, JaxlmError, OutOfMemory, RunDirError
from jaxlm.base.terminal import say
from jaxlm.base.units import perplexity
from jaxlm.config.config import Config
from jaxlm.config.settings import TOKEN_FIELDS, DataConfig, TrainConfig
from jaxlm.data.corpora import Corpus
from jaxlm.report.sweep_results import MemberResult
from jaxlm.runs import directory, precision, ram
from jaxlm.runs.group import MemberGroup, SingleGroup
from jaxlm.runs.loop import Group, Observer, fit
from jaxlm.runs.run import Run
from jaxlm.runs.state_arrays import memory_needed, new_state, shapes_of_state
from jaxlm.runs.training_corpus import with_corpus
from jaxlm.sweeps.plan import Plan
from jaxlm.sweeps.study import Claim, Study
from jaxlm.training.step import TrainState

POLL = 1.0  # seconds before the second look for a trial whose worker is gone
LONGEST_POLL = 30.0  # seconds between two looks into a database, at most
PATIENCE = 5  # looks before the waiting is reported
MOST_ON_CPU = 8  # members in a group
MOST = 32  # the same on accelerators
# Why trials are pruned, by the plan's method.
PRUNED = {
    "median": "worse than the median",
    "halving": "not in the best quarter (successive halving)",
}
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


class Shape(NamedTuple):
    """What all members of one program share.

    Attributes:
        recipe: The structure of the recipe; its numbers may differ.
        counts: The counts of the run, without seed and epochs.
        data: How the text is read.
        corpus: The text's sha256.
        epoch: The epoch, where its windows depend on it; else 0.
        window: The next window within the epoch.
    """

    recipe: Any
    counts: TrainConfig
    data: DataConfig
    corpus: str
    epoch: int
    window: int


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
        """What members must have in common to train in one program."""
        return Shape(
            recipe=jax.tree.structure(self.config.recipe),
            counts=replace(self.config.train, seed=0, epochs=0),
            data=self.config.data,
            corpus=self.corpus.sha256,
            # Each epoch with random lengths has windows of its own.
            epoch=0 if self.plan.random is None else self.epoch,
            window=self.index,
        )


def _never() -> None:
    return None


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
    stopped: Callable[[], int | None] = _never  # the signal that asks to stop, if there is one
    show: Callable[[], object] = _never  # called after each epoch, and each look in vain
    say: Callable[[str], object] = say  # prints a line
    _corpora: dict[tuple[DataConfig, int], Corpus] = field(default_factory=dict)
    _waiting: list[Member] = field(default_factory=list)  # members without a slot
    _shape: Shape | None = None  # of the members of the group

    def run(self) -> None:
        """Works until all trials have ended, or a signal asks to stop."""
        looks = 0  # in vain
        try:
            while self.stopped() is None:
                if self._waiting:
                    shapes = Counter(member.shape for member in self._waiting)
                    self._train(shapes.most_common(1)[0][0])
                    gc.collect()  # jax 0.12 keeps arrays in cycles; the next group needs the memory
                elif self._claim():
                    looks = 0
                elif self.study.ended:
                    break
                else:  # others train the rest, and one of them may die
                    looks += 1
                    if looks == PATIENCE:
                        self.say(
                            "waiting for trials that other processes train: one of them may end "
                            "early"
                        )
                    self.show()
                    self._sleep(looks)
        finally:
            for claim in list(self.study.held.values()):
                self.study.release(claim)

    def _sleep(self, looks: int) -> None:
        """Waits for the next look: ever longer for a database, which many may ask at once."""
        seconds = POLL
        if self.study.shared:
            seconds = random.uniform(0.5, 1) * min(LONGEST_POLL, POLL * 2**looks)
        end = time.monotonic() + seconds
        while self.stopped() is None and time.monotonic() < end:
            time.sleep(min(POLL, max(0, end - time.monotonic())))

    def _train(self, shape: Shape) -> None:
        """Trains members of one shape until there are no more, or a signal came."""
        self._shape = shape
        config = next(member.config for member in self._waiting if member.shape == shape)
        vmap = self.vmap
        if vmap is None:
            vmap = jax.default_backend() != "cpu"
        size = self.size or group_size(config, self.study.plan, self.workers)
        group = MemberGroup(size, vmap)
        self.fill(group)
        fit(group, self)

    def _claim(self) -> bool:
        """Begins or resumes the members of another trial; whether there was one."""
        claim = self.study.claim()
        if claim is None:
            return False
        for record in list(claim.records.values()):
            if record.status == "running":
                self._begin(claim, record)
        self.study.end(claim)
        return True

    def _begin(self, claim: Claim, record: MemberResult) -> None:
        """Begins or resumes a member; one that cannot be trained is noted as damaged or failed."""
        try:
            member = self._member(claim, record)
        except (CheckpointError, RunDirError, OutOfMemory) as error:
            folder = claim.dirs[record.seed].folder
            damaged = folder.exists("config.json") and directory.problems(folder)
            if isinstance(error, RunDirError) and not damaged:
                raise  # the disk is at fault, not the trial
            self.study.note(claim, replace(record, status="damaged", note=str(error)))
            return
        except JaxlmError as error:  # say, a batch too large for the corpus
            cause = error.__context__
            if getattr(cause, "errno", None) in MACHINE:
                raise
            status = "failed"
            if isinstance(cause, MemoryError):  # memory may be free later
                status = "damaged"
            self.study.note(claim, replace(record, status=status, note=str(error)))
            return
        for note in member.notes:  # such as a damaged newest checkpoint
            self.say(f"!! trial {record.number} seed {record.seed}: {note}")
        if member.finished:
            self._finish(member, SingleGroup(member, member.state, None), 0)
        else:
            self._waiting.append(member)

    def _member(self, claim: Claim, record: MemberResult) -> Member:
        """A member's run, with its state as it is saved, or as it begins."""
        config = self.study.plan.config_of(record.values, record.seed)
        held = claim.dirs[record.seed]
        key = (config.data, config.model.vocab_size)
        resume = held.folder.exists("config.json")
        config, corpus = with_corpus(config, self.corpus or self._corpora.get(key), self.data_dir)
        self._corpora[key] = corpus
        saved_config = directory.saved_config(held.folder) if resume else None
        config, rates, _ = precision.resolved(config, saved_config)
        setup = directory.Setup(rates=rates)
        saved, notes = directory.enter(held.folder, config, corpus, setup, resume)
        member = Member(config, corpus, held, claim.held, saved, kept=self.kept)
        member.notes += notes
        member.claim = claim
        member.state = saved.state if saved else new_state(config)
        return member

    def fill(self, group: Group) -> None:
        """Gives the free slots to waiting members of its shape, and to those of new trials."""
        assert isinstance(group, MemberGroup)
        for run in group.runs:
            if isinstance(run, Member):  # at an epoch's edge it is at another window than it was
                self._shape = run.shape
                break
        free = [slot for slot, run in enumerate(group.runs) if run is None]
        while len(self._fitting()) < len(free) and self._may_claim(len(group.runs)):
            if not self._claim():
                break
        for slot, member in zip(free, self._fitting(), strict=False):
            self._waiting.remove(member)
            member.start_clock()
            group.add(slot, member, member.state)
            del member.state  # so that the group alone holds the arrays

    def _fitting(self) -> list[Member]:
        """The waiting members of the group's shape."""
        return [member for member in self._waiting if member.shape == self._shape]

    def _may_claim(self, size: int) -> bool:
        """Whether members of new trials may fit: they are at the beginning of an epoch.

        With random lengths it must be the first epoch. And few members of other shapes may wait.
        """
        most = 1 if self.study.plan.strategy == "grid" else size
        misfits = len(self._waiting) - len(self._fitting())
        shape = self._shape
        return shape is not None and shape.epoch == shape.window == 0 and misfits < most

    def trained(self) -> None:
        """Shows the other workers of a shared database that this directory lives."""
        self.study.beat()

    def diverged(
        self,
        group: Group,
        slot: int,
        problem: str,
    ) -> None:
        """Ends a member whose window was not finite."""
        self._note(self._free(group, slot), status="diverged", note=problem)

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        """Reports the epochs, and ends trials to prune.

        Args:
            group: The members.
            stopping: Whether a signal came; else finished members end, and free slots are filled.
        """
        members = {slot: run for slot, run in enumerate(group.runs) if isinstance(run, Member)}
        for slot, member in members.items():
            self._note(member, seconds=round(member.record.seconds + member.epoch_seconds, 3))
            value = member.record.valid_perplexity
            if not math.isfinite(value):
                problem = f"epoch {member.epoch} has validation perplexity {value}"
                self.diverged(group, slot, problem)
            elif member.finished and not stopping:
                self._finish(member, group, slot)
                self._free(group, slot)
        claims = dict.fromkeys(member.claim for member in members.values() if not member.finished)
        for claim in claims:
            if claim in self.study.held.values() and self.study.to_prune(claim):
                self._prune(group, claim)
        self.show()
        if not stopping:
            self.fill(group)

    def _prune(self, group: Group, claim: Claim) -> None:
        """Ends all members of a trial that Optuna gives up."""
        reason = PRUNED[self.study.plan.prune]
        for slot, member in enumerate(group.runs):
            if isinstance(member, Member) and member.claim is claim:
                note = f"{reason} after epoch {member.epoch}"
                self._note(self._free(group, slot), status="pruned", note=note)
        for member in list(self._waiting):
            if member.claim is claim:
                self._waiting.remove(member)
                self._note(member, status="pruned", note=f"its other seeds were {reason}")

    def _finish(
        self,
        member: Member,
        group: Group,
        slot: int,
    ) -> None:
        """Tests a member whose last window was trained, and ends it."""
        value = member.log_test("last", member.step, *group.nats(slot, member.corpus.test))
        self._note(member, status="done", test_perplexity=self._compared(member, "test", value))

    def _free(self, group: Group, slot: int) -> Member:
        """Empties a slot, and returns its member."""
        member = group.runs[slot]
        group.runs[slot] = None
        assert isinstance(member, Member)
        return member

    def _note(self, member: Member, **changes: Any) -> None:
        """Stores a member's epochs so far, and what else changed; may end its trial."""
        epochs = tuple(
            self._compared(member, "valid", epoch.valid_perplexity) for epoch in member.epochs
        )
        self.study.note(member.claim, replace(member.record, valid_perplexities=epochs, **changes))
        self.study.end(member.claim)

    def _compared(
        self,
        run: Run,
        split: str,
        value: float,
    ) -> float:
        """A perplexity, per character where the trials' tokens differ."""
        if self.study.plan.space.keys().isdisjoint(TOKEN_FIELDS):
            return value
        bits = run.comparable(split, value)[f"{split}_bits_per_character"]
        return perplexity(math.log(2) * bits, 1)


def group_size(
    config: Config,
    plan: Plan,
    workers: int,
) -> int:
    """How many members of a shape are useful in a group, and fit into a third of the free memory.

    There are as many on each device: an empty slot costs less than an idle device.

    Args:
        config: A member's config.
        plan: What the sweep is.
        workers: Processes that share the machine.
    """
    device = ram.of_device()
    free = ram.available() if device is None else device
    fitting = free // 3 // workers // memory_needed(config, shapes_of_state(config))
    rounds = 4 if plan.strategy == "tpe" else 1  # Optuna learns from the trials that have ended
    useful = math.ceil(plan.trials * plan.seeds / workers / rounds)
    limit = MOST_ON_CPU if jax.default_backend() == "cpu" else MOST
    most = max(1, min(limit, fitting))
    size = min(most, useful)
    devices = len(jax.local_devices())
    if most < devices:
        return size
    return devices * min(math.ceil(size / devices), most // devices)
