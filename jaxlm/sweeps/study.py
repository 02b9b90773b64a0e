"""The study of a sweep: which trials there are, who trains which, and what came of each.

Optuna keeps it, and every worker reads and writes the same one. Its trial is a point of the space; the trial's members
(one for each seed) have a run directory each:

    SWEEP/  plan.json  study.journal  trials/0007/        (with seeds: trials/0007/seed-3/)

Who holds the locks of a trial's run directories trains it. They end with their process, so the trial of a dead worker
is free: the next one resumes it from its checkpoints. Where workers share a database and no file system, a silent
trial counts as failed after `SILENCE` seconds, by Optuna's heartbeats, and begins again under a new number.
"""

import fcntl
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, reason
from jaxlm.runs.lock import Held, InUse, lock
from jaxlm.sweeps.distributions import Distribution, Values
from jaxlm.sweeps.optional import optuna
from jaxlm.sweeps.plan import Plan, member_dir
from jaxlm.sweeps.results import MemberResult
from jaxlm.sweeps.space import decoded
from jaxlm.sweeps.storage import BEAT, SILENCE, Storage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

NAME = "jaxlm"
PATIENCE = 5.0  # seconds that a worker waits before it says for what


class Point:
    """A claimed trial: Optuna's, and its members' run directories, held until `Study.end`.

    `records` and the held run directories, `dirs`, are by seed.
    """

    def __init__(
        self,
        trial: "optuna.trial.Trial",
        params: dict[str, Any],
        records: dict[int, MemberResult],
        reported: int,
        dirs: dict[int, Held],
        held: ExitStack,
    ):
        self.trial, self.params, self.records, self.held, self.dirs = trial, params, records, held, dirs
        self.reported, self.beat = reported, 0.0  # epochs; when it last showed that it lives


class Study:
    """The study of the sweep in a directory.

    Args:
        plan: What the sweep is.
        folder: Its directory.
        storage: A journal's path, a database's URL, or None: in memory.
        place: The directory's name in the study.
        shared: Whether sweeps of other directories may use the storage too.
        say: Prints what a worker waits for, and how it resumes a member.

    Raises:
        JaxlmError: The storage cannot be used, or is of another sweep. So does every method.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        storage: str | None,
        place: str,
        shared: bool = False,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ):
        self.plan, self._folder, self._place, self._shared, self.say = plan, folder, place, shared, say
        self._held, self._busy = dict[int, Point](), dict[int, str]()
        self._since, self._waited, self._told = 0.0, -math.inf, False  # of `wait`
        self._last, self._changed = None, 0.0
        self._first_seen: dict[int, float] = {}  # when a trial without a place was first seen
        self._storage = Storage(storage)
        with self._storage.guarded():
            self._study = optuna.create_study(
                storage=self._storage.keeper,
                study_name=NAME,
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner(),
            )
            kept = self._study.user_attrs.get("plan")
            if kept is not None and (changed := Plan.from_json(kept).differences(plan)):
                raise JaxlmError(
                    f"the study in {self._storage.name} is of another sweep ({'; '.join(changed)}): "
                    f"resume it with its own, or choose another --storage or --run-dir"
                )
            if kept != plan.to_json():
                self._study.set_user_attr("plan", plan.to_json())
            self._study.sampler = (
                _planned(plan)
                if plan.known
                else optuna.samplers.TPESampler(seed=None if kept else plan.config.train.seed, constant_liar=True)
            )

    def claim(self) -> Point | None:
        """A trial that nobody trains: one whose worker is gone, or a new one. None: there is no such now.

        Raises RunDirError where a trial's directory holds what no run does: nobody would ever train it.
        """
        with self._alone(), self._storage.guarded():
            self._busy = {}
            if self._storage.heartbeats:
                for held in self._held.values():
                    self._beat(held.trial.number)
                optuna.storages.fail_stale_trials(self._study)
            for frozen in self._trials():
                if frozen.state != optuna.trial.TrialState.RUNNING or frozen.number in self._held:
                    continue
                if not self._is_ours(frozen):
                    self._busy[frozen.number] = "another sweep directory of the same study trains it"
                elif not self._set_aside(frozen):
                    try:
                        return self._take(optuna.trial.Trial(self._study, self._id(frozen.number)))
                    except InUse as error:
                        self._busy[frozen.number] = str(error)
            trials = self._trials()
            waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in trials)
            if len(_originals(trials)) >= self.plan.trials and not waiting:
                return None
            trial = self._study.ask()
            self._beat(trial.number)
            trial.set_user_attr("place", self._place)
            new = _originals([self._trial(trial.number)])
            if new and _ordinal(self._study, trial.number) >= self.plan.trials:  # another machine was quicker
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                return None
            return self._take(trial, new=True)

    def _take(self, trial: "optuna.trial.Trial", new: bool = False) -> Point:
        with ExitStack() as stack:
            params = {name: _suggest(trial, name, distribution) for name, distribution in self.plan.space.items()}
            dirs = {
                seed: stack.enter_context(lock(self._own_directory(trial.number, seed)))
                for seed in self.plan.seeds_of(params)
            }
            if (frozen := self._trial(trial.number)).user_attrs.get("place") != self._place:
                trial.set_user_attr("place", self._place)
            records = {record.seed: record for record in self._records(frozen)}
            if new:  # also where it repeats one that was damaged on a silent machine
                records = {
                    seed: replace(record, status="running") if record.status == "damaged" else record
                    for seed, record in records.items()
                }
            reported = max(frozen.intermediate_values, default=0)
            self._held[trial.number] = Point(trial, params, records, reported, dirs, stack.pop_all())
            return self._held[trial.number]

    def run_dir(self, number: int, seed: int) -> Path:
        """A member's run directory."""
        return member_dir(self._folder, self.plan, number, seed)

    def _own_directory(self, number: int, seed: int) -> Path:
        """The same, made where it is missing. Raises RunDirError where a link or a file is in its place."""
        try:
            with ExitStack() as stack:
                folder = stack.enter_context(Folder.open(self._folder))
                for name in self.run_dir(number, seed).relative_to(self._folder).parts:
                    folder = stack.enter_context(folder.folder(name, create=True))
        except OSError as error:
            raise RunDirError(f"{error.filename} cannot be used: {reason(error)}; remove it, then resume") from None
        return self.run_dir(number, seed)

    def note(self, point: Point, record: MemberResult) -> None:
        """Keeps how a member stands."""
        point.records[record.seed] = record
        with self._storage.guarded():
            try:
                point.trial.set_user_attr(f"seed {record.seed}", record.to_json())
            except optuna.exceptions.UpdateFinishedTrialError:
                raise JaxlmError(
                    f"trial {record.number} was given to another worker, for this one had been silent "
                    f"for {SILENCE} s: resume the sweep with --resume"
                ) from None

    def to_prune(self, point: Point) -> bool:
        """Reports the epochs that all of a trial's members have finished; whether Optuna gives the trial up."""
        records = [record for record in point.records.values() if record.status != "damaged"]
        finished = min(
            (len(record.valid_perplexities) for record in records if record.status != "diverged"),
            default=point.reported + 1,
        )
        with self._storage.guarded():
            for epoch in range(point.reported + 1, finished + 1 if len(records) == len(point.records) else 0):
                values = [
                    math.inf if record.status == "diverged" else record.valid_perplexities[epoch - 1]
                    for record in records
                ]
                point.trial.report(sum(values) / len(values), epoch)
                point.reported = epoch
            return point.trial.should_prune()

    def beat(self, point: Point) -> None:
        """Shows those who share the database only that the trial's worker lives; seldom enough to cost nothing."""
        if time.monotonic() > point.beat + BEAT:
            point.beat = time.monotonic()
            with self._storage.guarded():
                self._beat(point.trial.number)

    def _beat(self, number: int) -> None:
        if self._storage.heartbeats:
            self._storage.heartbeats.record_heartbeat(self._id(number))

    def end(self, point: Point) -> bool:
        """Tells Optuna, once and for all, what became of a trial whose members have all ended; whether they have.

        A trial with a damaged member is released and stays open, for a resumed sweep to try again.
        """
        statuses = {record.status for record in point.records.values()}
        if "running" in statuses:
            return False
        if "damaged" not in statuses:
            self.to_prune(point)
            states = optuna.trial.TrialState
            state = states.COMPLETE if statuses == {"done"} else states.FAIL if "failed" in statuses else states.PRUNED
            values = [record.valid_perplexity for record in point.records.values()]
            with self._storage.guarded():
                self._study.tell(
                    point.trial,
                    sum(values) / len(values) if state == states.COMPLETE else None,
                    state,
                    skip_if_finished=True,
                )
        self.release(point)
        return True

    def release(self, point: Point) -> None:
        """Lets go of a trial, for others to resume if it has not ended."""
        point.held.close()
        self._held.pop(point.trial.number, None)

    def retry_damaged(self) -> None:
        """Lets workers try the damaged members of this directory again."""
        with self._alone(), self._storage.guarded():
            for frozen in self._trials():
                if frozen.state != optuna.trial.TrialState.RUNNING or not self._is_ours(frozen):
                    continue
                for record in self._records(frozen):
                    if record.status == "damaged":
                        again = replace(record, status="running", note=None)
                        optuna.trial.Trial(self._study, self._id(frozen.number)).set_user_attr(
                            f"seed {record.seed}", again.to_json()
                        )

    def wait(self, seconds: float) -> None:
        """Waits for other workers, one of which may die; says for what, once, after `PATIENCE` seconds.

        Call it where `claim` found nothing, and the study has not ended. Raises JaxlmError where sweeps in other
        directories, which are to train the rest, have kept nothing for `SILENCE` seconds (and no database tells
        which of them live).
        """
        now = time.monotonic()
        if now > self._waited + 2 * seconds + PATIENCE:  # what it waited for before has ended
            self._since, self._told = now, False
        busy = sorted(self._busy.items())
        if busy and not self._told and now > self._since + PATIENCE:
            self._told = True
            many = ", ".join(str(number) for number, _ in busy[:5]) + (" ..." if len(busy) > 5 else "")
            self.say(f"waiting for trial{'s' * (len(busy) > 1)} {many}: {busy[0][1]}")
        with self._storage.guarded():
            state = [
                (trial.number, trial.state, len(trial.intermediate_values), str(trial.user_attrs))
                for trial in self._trials()
                if trial.number in self._busy
            ]
        if state != self._last:
            self._last, self._changed = state, now
        if (
            now > self._changed + SILENCE
            and self._shared
            and not self._storage.heartbeats
            and all(not self._is_ours(self._trial(number)) for number, _ in busy)
        ):
            raise JaxlmError(
                f"the study in {self._storage.name} has trials of another sweep directory "
                f"({', '.join(str(number) for number, _ in busy[:5])}), which has kept nothing for "
                f"{SILENCE} s: resume it there"
            )
        time.sleep(seconds)
        self._waited = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether all trials have ended, but for those whose damaged members wait for a resumed sweep."""
        with self._storage.guarded():
            trials = self._trials()
            return len(_originals(trials)) >= self.plan.trials and all(
                trial.state.is_finished() or self._set_aside(trial) for trial in trials
            )

    def records(self) -> list[MemberResult]:
        """Every member that has begun, by number and seed."""
        with self._storage.guarded():
            known = [
                (frozen, self._records(frozen))
                for frozen in self._trials()
                if frozen.params.keys() == self.plan.space.keys()
            ]
            # (A trial that failed while its members ran is one whose machine went silent: it was begun again.)
            return [
                record
                for frozen, records in known
                for record in records
                if frozen.state != optuna.trial.TrialState.FAIL or any(one.status == "failed" for one in records)
            ]

    def _records(self, frozen: "FrozenTrial") -> list[MemberResult]:
        here = self._is_ours(frozen)
        values = decoded(frozen.params)
        return [
            MemberResult.from_json(
                frozen.number,
                values,
                seed,
                self.run_dir(frozen.number, seed) if here else None,
                frozen.user_attrs.get(f"seed {seed}", {}),
            )
            for seed in self.plan.seeds_of(frozen.params)
        ]

    def _is_ours(self, frozen: "FrozenTrial") -> bool:
        """Whether the trial's runs are in this directory.

        One without a place lost its worker before that could be kept: it is whose journal it is, and after `SILENCE`
        seconds that of whoever shares the database.
        """
        place = frozen.user_attrs.get("place")
        if not self._shared or place == self._place:
            return True
        if place is not None or frozen.state != optuna.trial.TrialState.RUNNING:
            return False
        first = self._first_seen.setdefault(frozen.number, time.monotonic())
        return not self._storage.heartbeats or time.monotonic() > first + SILENCE

    def _set_aside(self, frozen: "FrozenTrial") -> bool:
        """Whether a trial that has not ended has only damaged members left."""
        if frozen.number in self._held or frozen.params.keys() != self.plan.space.keys():
            return False
        statuses = {record.status for record in self._records(frozen)}
        return "damaged" in statuses and "running" not in statuses

    def _trials(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> "FrozenTrial":
        return next(trial for trial in self._trials() if trial.number == number)

    def _id(self, number: int) -> int:
        """Optuna's id of a trial in its storage."""
        keeper = self._storage.keeper
        return keeper.get_trial_id_from_study_id_trial_number(keeper.get_study_id_from_name(NAME), number)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time, of those who share the directory."""
        try:
            with Folder.open(self._folder) as folder:
                file = folder.append(".claim")
        except OSError as error:
            raise RunDirError(f"{error.filename} cannot be used: {reason(error)}; remove it, then resume") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _planned(plan: Plan) -> Any:
    """A sampler of points known ahead, each by its number."""

    class Planned(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return plan.point(_ordinal(study, trial.number))[param_name]

    return Planned()


def _originals(trials: "list[FrozenTrial]") -> "list[FrozenTrial]":
    """All but those that repeat a trial whose worker went silent."""
    retried = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number
    return [trial for trial in trials if retried(trial) is None]


def _ordinal(study: "optuna.Study", number: int) -> int:
    return sum(trial.number < number for trial in _originals(study.get_trials(deepcopy=False)))


def _suggest(trial: "optuna.trial.Trial", name: str, distribution: Distribution) -> Any:
    if isinstance(distribution, Values):
        return trial.suggest_categorical(name, distribution.values)
    if distribution.whole:
        return trial.suggest_int(
            name, int(distribution.low), int(distribution.high), step=int(distribution.step or 1), log=distribution.log
        )
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
