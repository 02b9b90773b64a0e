"""The study of a sweep: which trials there are, who trains which, and their results.

Optuna keeps the study, and every worker reads and writes it. A trial is a point of the space. Its members, one for each
seed, have a run directory each:

    SWEEP/  study.journal  trials/0007/        (with seeds: trials/0007/seed-3/)

Whoever holds the locks of a trial's run directories trains it. The locks end with their process, so another worker can
resume a dead worker's trial from its checkpoints. Several sweep directories may share a database: each trial has its
runs in one of them. The trial of a directory that is silent for `SILENCE` seconds is lost, by Optuna's heartbeats, and
another directory begins its point again under a new number.
"""

import fcntl
import math
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import filterfalse
from pathlib import Path
from statistics import fmean

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, explained
from jaxlm.late import optuna
from jaxlm.runs.lock import ELSEWHERE, Held, InUse, lock
from jaxlm.sweeps.results import MemberResult
from jaxlm.sweeps.space import Plan, decoded
from jaxlm.sweeps.storage import BEAT, SILENCE, database_errors, opened
from jaxlm.terminal import without_password

NAME = "jaxlm"
JOURNAL = "study.journal"
KEPT = (
    "status",
    "valid_perplexities",
    "test_perplexity",
    "seconds",
    "note",
)  # of a member, beside its trial


@dataclass(eq=False)
class Claim:
    """A trial that this worker trains."""

    trial: "optuna.trial.Trial"
    records: dict[int, MemberResult]  # the members' results, by seed
    dirs: dict[int, Held]  # the members' run directories, by seed
    held: ExitStack  # holds the directories until `Study.release`


class Study:
    """The study of the sweep in a directory. `held` has the trials that this worker trains, by number.

    Raises JaxlmError if the storage at `where` cannot be used or holds another sweep; so does every method.
    """

    def __init__(self, plan: Plan, folder: Path, where: str):
        self.plan = plan
        self._folder = folder
        self._where = where
        self._beat = -math.inf
        self.held = dict[int, Claim]()
        self._damaged = set[int]()  # trials that this worker tried
        self._seen = set[int]()  # trials of other directories
        storage = self._storage = opened(where)
        with database_errors(where):
            pruner = optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner()
            self._study = optuna.create_study(
                storage=storage, study_name=NAME, load_if_exists=True, pruner=pruner
            )
            self._study_id = self._storage.get_study_id_from_name(NAME)
            found = self._study.user_attrs.get("plan")
            if found is not None and (changed := Plan.from_json(found).differences(plan)):
                what = f"the study in {without_password(where)} is of another sweep ({'; '.join(changed)})"
                other = "database: one holds one sweep" if "://" in where else "--run-dir"
                raise JaxlmError(
                    f"{what}: resume it with its own settings, or take another {other}"
                )
            if found != plan.to_json():
                self._study.set_user_attr("plan", plan.to_json())
            # (Of the other strategies a new trial has its point.)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=None if found else plan.config.train.seed
            )

    def claim(self) -> Claim | None:
        """Claims a trial that nobody trains: one whose worker is gone, or a new one. None: there is none now."""
        with (
            explained(RunDirError, f"{self._folder} cannot be used", ELSEWHERE),
            Folder.open(self._folder) as folder,
        ):
            file = folder.append(".claim")
        with file, database_errors(self._where):
            fcntl.flock(
                file, fcntl.LOCK_EX
            )  # so that one worker of this directory at a time claims a trial
            self.beat()
            for frozen in filter(self._is_ours, self._running()):
                if frozen.number not in self._damaged:
                    with suppress(InUse):
                        return self._take(optuna.trial.Trial(self._study, self._id(frozen.number)))
            optuna.storages.fail_stale_trials(
                self._study
            )  # of others: a directory's own go on after any silence
            for frozen in filterfalse(self._is_ours, self._running()):
                if (
                    frozen.number not in self._seen
                ):  # its worker may have died before its first beat
                    self._seen.add(frozen.number)
                    self._show_life(frozen.number)
            taken = self._taken()
            left = [number for number in range(self.plan.trials) if number not in taken]
            if left:
                return self._begin(left[0])
            return None

    def _begin(self, number: int) -> Claim | None:
        """Begins a point; None if another directory begins it right now."""
        point = self.plan.point(number)
        state = optuna.trial.TrialState.RUNNING
        space = None if point is None else {**self.plan.space}
        new = optuna.trial.create_trial(
            state=state, params=point, distributions=space, user_attrs={"point": number}
        )
        identity = self._storage.create_new_trial(self._study_id, template_trial=new)
        trial = optuna.trial.Trial(self._study, identity)
        if self._taken()[number] != trial.number:  # another directory was quicker
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        return self._take(trial)

    def _taken(self) -> dict[int, int]:
        """The first trial of each point, by the point's number."""
        return {
            frozen.user_attrs.get("point", frozen.number): frozen.number
            for frozen in reversed(self._trials())
        }

    def _take(self, trial: "optuna.trial.Trial") -> Claim:
        self._own_directory(trial.number)
        self._show_life(trial.number)
        for name, one in self.plan.space.items():
            if isinstance(one, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, one.choices)
            elif isinstance(one, optuna.distributions.IntDistribution):
                trial.suggest_int(name, one.low, one.high, log=one.log)
            else:
                trial.suggest_float(name, one.low, one.high, log=one.log)
        with ExitStack() as stack:
            dirs = {}
            records = {}
            for seed in self.plan.seeds_of(trial.params):
                dirs[seed] = stack.enter_context(lock(self._own_directory(trial.number, seed)))
            for record in self._records(self._storage.get_trial(self._id(trial.number))):
                damaged = record.status == "damaged"  # it may have been repaired
                records[record.seed] = (
                    replace(record, status="running", note=None) if damaged else record
                )
            self.held[trial.number] = Claim(trial, records, dirs, stack.pop_all())
            return self.held[trial.number]

    def _own_directory(self, number: int, seed: int | None = None) -> Path:
        """A trial's or a member's directory, made if it is missing. Raises RunDirError for a link or a file instead."""
        path = member_dir(self._folder, number, seed, self.plan.seeds)
        check_below(self._folder, path, ELSEWHERE, create=True)
        return path

    def note(self, claim: Claim, record: MemberResult) -> None:
        """Stores a member's record."""
        claim.records[record.seed] = record
        with database_errors(self._where):
            try:
                claim.trial.set_user_attr(
                    f"seed {record.seed}", {name: getattr(record, name) for name in KEPT}
                )
            except optuna.exceptions.UpdateFinishedTrialError:
                why = f"this one had been silent for {SILENCE} s: resume the sweep with --resume"
                raise JaxlmError(
                    f"trial {record.number} was given to another worker, for {why}"
                ) from None

    def to_prune(self, claim: Claim) -> bool:
        """Reports the epochs that all of a trial's members have finished; whether Optuna gives the trial up."""
        records = claim.records.values()
        known = [[*filter(math.isfinite, record.valid_perplexities)] for record in records]
        ended = [
            len(one)
            for one, record in zip(known, records, strict=True)
            if record.status != "diverged"
        ]
        with database_errors(self._where):
            for epoch in range(
                min(ended, default=1 + max(map(len, known)))
            ):  # (Optuna passes over what it knows)
                claim.trial.report(
                    fmean((*one[epoch : epoch + 1], math.inf)[0] for one in known), epoch + 1
                )
            return claim.trial.should_prune()

    def beat(self) -> None:
        """Notes in a database that this directory lives, at most every `BEAT` seconds."""
        if (
            abs(time.time() - self._beat) > BEAT
        ):  # (a monotonic clock stands still while the machine sleeps)
            self._beat = time.time()
            with database_errors(self._where):
                waiting = [one.number for one in filter(self._is_ours, self._running())]
                for number in (*self.held, *waiting):
                    self._show_life(number)

    def _show_life(self, number: int) -> None:
        """Notes in a database that a trial's directory lives."""
        if "://" in self._where:
            self._storage.record_heartbeat(self._id(number))

    def end(self, claim: Claim) -> None:
        """Tells Optuna the result of a held trial once all its members have ended, and releases it.

        A trial with a damaged member stays open, for a resumed sweep to try again.
        """
        statuses = {record.status for record in claim.records.values()}
        if "running" in statuses or claim.trial.number not in self.held:
            return
        if "damaged" in statuses:
            self._damaged.add(claim.trial.number)
        else:
            self.to_prune(claim)
            value = None
            state = optuna.trial.TrialState.PRUNED  # (Optuna's state FAIL is of lost trials)
            if statuses == {"done"}:
                value = fmean(record.valid_perplexity for record in claim.records.values())
                state = optuna.trial.TrialState.COMPLETE
            with database_errors(self._where):
                self._study.tell(claim.trial, value, state, skip_if_finished=True)
        self.release(claim)

    def release(self, claim: Claim) -> None:
        """Releases a trial, for others to resume if it has not ended."""
        claim.held.close()
        self.held.pop(claim.trial.number, None)

    @property
    def ended(self) -> bool:
        """Whether all trials have ended, except those that were found damaged."""
        with database_errors(self._where):
            left = {
                frozen.number for frozen in self._running() if not self._is_left(frozen)
            } - self._damaged
            return not self.held and not left and len(self._taken()) >= self.plan.trials

    def _is_left(self, frozen: "optuna.trial.FrozenTrial") -> bool:
        """Whether a trial is a damaged one of another directory, which that one's `--resume` tries again."""
        statuses = {one.status for one in self._records(frozen)}
        return not self._is_ours(frozen) and "damaged" in statuses and "running" not in statuses

    def records(self) -> list[MemberResult]:
        """Every member that has begun, by number and seed."""
        with database_errors(self._where):
            begun = [
                frozen
                for frozen in self._trials()
                if frozen.params.keys() == self.plan.space.keys()
            ]
            return [record for frozen in begun for record in self._records(frozen)]

    def _records(self, frozen: "optuna.trial.FrozenTrial") -> list[MemberResult]:
        records = []
        for seed in self.plan.seeds_of(frozen.params):
            kept = {"valid_perplexities": (), **frozen.user_attrs.get(f"seed {seed}", {})}
            kept["valid_perplexities"] = tuple(kept["valid_perplexities"])
            own = member_dir(self._folder, frozen.number, seed, self.plan.seeds)
            run_dir = own if self._is_ours(frozen) else None
            records.append(
                MemberResult(frozen.number, decoded(frozen.params), seed, run_dir=run_dir, **kept)
            )
        return records

    def _is_ours(self, frozen: "optuna.trial.FrozenTrial") -> bool:
        """Whether the trial's runs are in this directory."""
        return "://" not in self._where or member_dir(self._folder, frozen.number).exists()

    def _trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials, except those whose directory went silent, or was slower than another to begin the point."""
        lost = optuna.trial.TrialState.FAIL
        return [frozen for frozen in self._study.get_trials(deepcopy=False) if frozen.state != lost]

    def _running(self) -> "list[optuna.trial.FrozenTrial]":
        """Trials that have not ended, except those that this worker trains."""
        return [
            one
            for one in self._trials()
            if not one.state.is_finished() and one.number not in self.held
        ]

    def _id(self, number: int) -> int:
        """Optuna's id of a trial in its storage."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def read_plan(where: str) -> Plan:
    """The plan of the sweep whose study is in a database or a journal. Raises JaxlmError if there is none."""
    storage = opened(where)
    name = without_password(where)
    with database_errors(where):
        begun = NAME in optuna.get_all_study_names(storage)
        plan = (
            optuna.load_study(study_name=NAME, storage=storage).user_attrs.get("plan")
            if begun
            else None
        )
        if plan is None:
            raise JaxlmError(
                f"{name} holds no sweep that can be resumed: begin one without --resume, or check --storage"
            )
        return Plan.from_json(plan)


def check_below(root: Path, path: Path, remedy: str, create: bool = False) -> None:
    """Raises RunDirError where a directory from `root` down to `path` is a link or a file instead."""
    with explained(RunDirError, f"{path} cannot be used", remedy), ExitStack() as stack:
        folder = stack.enter_context(Folder.open(root))
        for name in path.relative_to(root).parts:
            folder = stack.enter_context(folder.folder(name, create))


def member_dir(folder: Path, number: int, seed: int | None = None, seeds: int = 1) -> Path:
    """A trial's directory below a sweep's, or the one in it of a seed, if a trial has several."""
    trial = folder / "trials" / f"{number:04d}"
    if seed is None or seeds == 1:
        return trial
    return trial / f"seed-{seed}"
