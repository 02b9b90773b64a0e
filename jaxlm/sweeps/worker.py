"""A worker: it claims points of a study and trains their members in groups, one compiled program for each shape.

At an epoch's edge, where the windows of all members line up, each is validated, saved and reported, Optuna may give
its point up, and the slots that became free are filled.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm.config.config import Config, DataConfig, Hyper
from jaxlm.data.corpora import Corpus
from jaxlm.data.windows import batch
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.runs.loop import load, new_state
from jaxlm.scoring.stream import members_nats, perplexity, stream_nats
from jaxlm.sweeps import members
from jaxlm.sweeps.members import Member
from jaxlm.sweeps.study import Plan, Point, Study
from jaxlm.training.step import TrainState

POLL = 1.0  # seconds between two looks for a point whose worker is gone
MOST_ON_CPU, MOST = 8, 32  # members in a group, unless one says how many

Shape = tuple[Config, int]  # all but numbers and seed, and the window within the epoch


class Corpora:
    """A config -> itself with the corpus's own vocabulary size, and the corpus; each corpus is loaded once.

    `found` is the sweep's own; `given`: as an object, so that no other can be loaded.
    """

    def __init__(self, found: Corpus, given: bool, data_dir: str | Path | None):
        self._found, self._given, self._data_dir = found, given, data_dir
        self._known: dict[tuple[DataConfig, int], Corpus] = {}

    def __call__(self, config: Config) -> tuple[Config, Corpus]:
        key = config.data, config.model.vocab_size
        config, self._known[key] = load(config, self._found if self._given else self._known.get(key), self._data_dir)
        return config, self._known[key]


class Worker:
    """One of a sweep's processes: `size` members a group (None: by memory), `vmap` as `train_members` has it."""

    def __init__(self, study: Study, load: Corpora, size: int | None, workers: int, kept: bool,
                 stop: Callable[[], int | None], tick: Callable[[], object], vmap: bool | None = None):
        self.study, self.load, self.size, self.workers, self.kept = study, load, size, workers, kept
        self.stop, self.tick = stop, tick
        self.vmap = jax.default_backend() != "cpu" if vmap is None else vmap
        self.waiting: list[Member] = []
        self.points: dict[int, Point] = {}

    def run(self) -> None:
        """Works until all points have ended, or `stop` names a signal."""
        try:
            while self.stop() is None and (self.waiting or self._claim() or not self.study.ended):
                if self.waiting:
                    self._train(*Counter(map(_shape, self.waiting)).most_common(1)[0][0])
                else:  # others train the rest: one of them may die
                    self.tick()
                    time.sleep(POLL)
        finally:
            for point in self.points.values():
                self.study.release(point)

    def _claim(self) -> bool:
        """Takes on another point's members; whether there was one."""
        point = self.study.claim()
        if point is None:
            return False
        self.points[point.trial.number] = point
        for seed, record in point.records.items():
            if record.status != "running":
                continue
            try:
                config, corpus = self.load(self.study.plan.config_of(point.params, seed))
                member = Member(config, corpus, self.study.run_dir(record.number, seed), self.kept, record, point.held)
            except RunDirError:  # the disk's, not the point's
                raise
            except JaxlmError as error:  # such as a batch that is too large for the corpus
                self.study.note(point, replace(record, status="failed", note=str(error)))
                continue
            if member.finished:
                self._finish(member, member.begin().params)
            else:
                self.waiting.append(member)
        self._end(point.trial.number)
        return True

    def _train(self, static: Config, index: int) -> None:
        """Trains members of one shape from window `index` of an epoch on, until there are no more or a signal came."""
        config, corpus = self.load(static)
        counts = config.train
        T, B = counts.bptt_length, counts.batch_size
        tokens = jnp.asarray(batch(corpus.train, B))
        slots: list[Member | None] = [None] * (self.size or group_size(config, self.study.plan, self.workers))
        group, stopped = None, self.stop()
        while stopped is None:
            if index == 0 or group is None:
                group = self._fill(slots, group, (static, index))
            live = {slot: member for slot, member in enumerate(slots) if member is not None}
            if not live or group is None:
                break
            states, hypers = group
            windows = next(iter(live.values())).windows
            every = counts.checkpoint_every or windows
            count = min(windows - index, counts.windows_per_call, every - index % every)
            states, metrics = members.train_members(
                states, hypers, jnp.array([member.epoch if member else 0 for member in slots], jnp.int32),
                jnp.array([member is not None for member in slots]), tokens, jnp.int32(index), jnp.int32(count),
                bptt_length=T, max_windows=counts.windows_per_call, vmapped=self.vmap)
            group, index, metrics = (states, hypers), (index + count) % windows, jax.device_get(metrics)
            for slot, member in live.items():
                self.study.beat(self.points[member.record.number])
                if problem := member.trained(members.take(metrics, slot), count):
                    self._leave(slots, slot, "diverged", problem)
            stopped = self.stop()  # asked once: what ends the loop also saves
            if index == 0:
                self._end_epoch(slots, states, hypers, test=stopped is None)
            elif stopped is not None or index % every == 0:
                for slot, member in enumerate(slots):
                    if member is not None:
                        member.save(members.take(states, slot))
            self.tick()

    def _fill(self, slots: list[Member | None], group: tuple[TrainState, Hyper] | None, shape: Shape
              ) -> tuple[TrainState, Hyper] | None:
        """Puts waiting members of the shape, and those of newly claimed points, into the free slots."""
        most = 1 if self.study.plan.strategy == "grid" else len(slots)  # of other shapes, that wait meanwhile
        for slot in [slot for slot, member in enumerate(slots) if member is None]:
            found = next((member for member in self.waiting if _shape(member) == shape), None)
            while found is None and shape[1] == 0 and len(self.waiting) < most and self._claim():
                found = next((member for member in self.waiting if _shape(member) == shape), None)
            if found is None:
                break
            self.waiting.remove(found)
            state, hyper = found.begin(), found.config.hyper
            group = members.stack(state, hyper, len(slots)) if group is None else members.put(group, slot, state, hyper)
            slots[slot] = found
        return group

    def _end_epoch(self, slots: list[Member | None], states: TrainState, hypers: Hyper, test: bool) -> None:
        """Validates, saves and reports; ends members that have finished (where `test` says so) and points given up."""
        live = {slot: member for slot, member in enumerate(slots) if member is not None}
        if not live:
            return
        some = next(iter(live.values()))
        what = some.corpus.valid, some.config.train.batch_size, some.config.train.bptt_length
        if self.vmap:
            nats, predictions = members_nats(states.params, hypers, *what)
        for slot, member in live.items():
            state = members.take(states, slot)
            value = perplexity(nats[slot], predictions) if self.vmap else perplexity(
                *stream_nats(state.params, members.take(hypers, slot), *what))
            member.end_epoch(value)
            member.save(state)
            self.study.note(self.points[member.record.number], member.record)
            if not math.isfinite(value):
                self._leave(slots, slot, "diverged", f"epoch {member.epoch} has validation perplexity {value}")
            elif member.finished and test:
                self._finish(member, state.params)
                slots[slot] = None
        for number in {member.record.number for member in live.values()} & self.points.keys():
            point = self.points[number]
            if self.study.to_prune(point):
                for slot, member in enumerate(slots):
                    if member is not None and member.record.number == number:
                        self._leave(slots, slot, "pruned", f"worse than the median after epoch {member.epoch}")
                for member in [member for member in self.waiting if member.record.number == number]:
                    self.waiting.remove(member)
                    self._close(member, "pruned", "its other seeds were worse than the median")
            self._end(number)

    def _finish(self, member: Member, params: members.Params) -> None:
        test = member.test(params)
        member.record = replace(member.record, test_perplexity=test)
        self._close(member, "done", None)

    def _leave(self, slots: list[Member | None], slot: int, status: str, note: str) -> None:
        member, slots[slot] = slots[slot], None
        assert member is not None
        self._close(member, status, note)
        self._end(member.record.number)

    def _close(self, member: Member, status: str, note: str | None) -> None:
        member.record = replace(member.record, status=status, note=note)
        self.study.note(self.points[member.record.number], member.record)

    def _end(self, number: int) -> None:
        if number in self.points and self.study.end(self.points[number]):
            del self.points[number]


def _shape(member: Member) -> Shape:
    config = member.config
    train = replace(config.train, seed=0, epochs=1)
    return replace(config, hyper=Hyper(), train=train), member.step % member.windows


def group_size(config: Config, plan: Plan, workers: int) -> int:
    """How many members of a shape are of use in a worker's group, and fit into its share of half the free memory."""
    T, B, model = config.train.bptt_length, config.train.batch_size, config.model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: new_state(config)).params))
    activations = T * B * (3 * model.embedding_size + 16 * sum(model.hidden_sizes))
    device = jax.devices()[0].memory_stats() or {}
    free = (device["bytes_limit"] - device.get("bytes_in_use", 0) if "bytes_limit" in device else
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    fit = free // 2 // workers // (4 * (4 * parameters + activations))
    # Optuna's choice grows wiser by what has ended: so it gets four rounds at least.
    rounds = 4 if plan.strategy == "tpe" else 1
    useful = math.ceil(plan.trials * plan.seeds / workers / rounds)
    return max(1, min(MOST_ON_CPU if jax.default_backend() == "cpu" else MOST, fit, useful))
