"""The study of a sweep: which trials there are, who trains which, and their results.

Optuna keeps the study, and every worker reads and writes it. A trial is a point of the space. Its
members, one for each seed, have a run directory each:

    SWEEP/  study.journal  trials/0007/        (with seeds: trials/0007/seed-3/)

Whoever holds the locks of a trial's run directories trains it. The locks end with their process, so
another worker can resume a dead worker's trial from its checkpoints.

Several sweep directories may share a database. Each trial has its runs in one of them. Where that
directory shows no life for `SILENCE` seconds (Optuna's heartbeats), another one marks the trial as
lost, and begins its point again under a new number. If none does, the first directory can resume
the trial after any silence.
"""

import fcntl
import math
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.files import Folder, explained
from jaxlm.base.terminal import without_password
from jaxlm.report.sweep_results import MemberResult
from jaxlm.runs.lock import ELSEWHERE, Held, InUse, excludes_others, lock
from jaxlm.sweeps import storage
from jaxlm.sweeps.plan import Plan
from jaxlm.sweeps.space import decoded
from jaxlm.sweeps.storage import database_errors, import_optuna, is_database, open_storage

NAME = "jaxlm"  # the study's, in its storage
JOURNAL = "study.journal"
CLAIM = ".claim"  # the file whose lock a worker holds while it claims a trial
TREE_DEPTH = 8  # of the forest of importances: deeper trees of 1,000 trials take half a minute
LEAST_TRIALS = 10  # finished ones, from which importances mean something
# The fields of a member's results that the study stores; the others follow from the trial.
STORED = ("status", "valid_perplexities", "test_perplexity", "seconds", "note")


@dataclass(eq=False)
class Claim:
    """A trial that this worker trains."""

    trial: Any  # Optuna's
    records: dict[int, MemberResult]  # the members' results, by seed
    dirs: dict[int, Held]  # the members' run directories, by seed
    held: ExitStack  # holds the directories until `Study.release`


class Study:
    """The study of the sweep in a directory, as one worker sees it.

    Every method raises JaxlmError if the storage cannot be used.

    Attributes:
        plan: What the sweep is.
        folder: The sweep's directory.
        where: The storage: a journal's path, or a database's URL.
        held: The trials that this worker trains, by number.
        shared: Whether other directories may share the study, in a database.
    """

    def __init__(
        self,
        plan: Plan | None,
        folder: Path,
        where: str,
    ):
        """Opens the study, or begins it.

        Args:
            plan: What the sweep is; None: what the study says, which must have begun.
            folder: The sweep's directory.
            where: The storage: a journal's path, or a database's URL.

        Raises:
            JaxlmError: The storage cannot be used, or holds another sweep or none.
        """
        self.held = dict[int, Claim]()
        self.shared = is_database(where)
        self.folder = folder
        self.where = where
        self._last_beat = -math.inf
        self._damaged = set[int]()  # trials that this worker has tried
        self._seen = set[int]()  # unfinished trials of other directories
        self._storage = open_storage(where)
        with database_errors(where):
            optuna = import_optuna()
            self._study = optuna.create_study(
                storage=self._storage, study_name=NAME, load_if_exists=True
            )
            self._study_id = self._storage.get_study_id_from_name(NAME)
            saved = self._study.user_attrs.get("plan")
            self.plan = self._agreed(plan, saved)
            if saved != self.plan.to_json():
                self._study.set_user_attr("plan", self.plan.to_json())
            pruners = {
                "none": optuna.pruners.NopPruner(),
                "median": optuna.pruners.MedianPruner(),
                "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
            }
            self._study.pruner = pruners[self.plan.prune]
            seed = self.plan.config.train.seed if saved is None else None
            self._sampler = optuna.samplers.TPESampler(seed=seed)

    def _agreed(self, plan: Plan | None, saved: Any) -> Plan:
        """The plan that was given, or the saved one. Raises JaxlmError if they differ."""
        if saved is None:
            if plan is None:
                raise JaxlmError(
                    f"{without_password(self.where)} holds no sweep that can be resumed: begin one "
                    f"without --resume, or check --storage"
                )
            return plan
        saved_plan = Plan.from_json(saved)
        if plan is None:
            return saved_plan
        changed = saved_plan.differences(plan)
        if changed:
            other = "database: one holds one sweep" if self.shared else "--run-dir"
            raise JaxlmError(
                f"the study in {without_password(self.where)} is of another sweep "
                f"({'; '.join(changed)}): resume it with its own settings, or take another {other}"
            )
        return plan

    def claim(self) -> Claim | None:
        """Claims a trial that nobody trains: one whose worker is gone, or a new one.

        Returns:
            The trial, or None where there is none now.

        Raises:
            RunDirError: The sweep's directory cannot be used.
        """
        with self._claiming():
            self.beat()
            if self.shared:
                import_optuna().storages.fail_stale_trials(self._study)
            trials = self._trials()
            for frozen in self._unfinished(trials):
                if not self._is_ours(frozen):
                    if frozen.number not in self._seen:
                        # Its worker may have died before its first beat, from which silence counts.
                        self._seen.add(frozen.number)
                        self._show_life(frozen.number)
                elif frozen.number not in self._damaged:
                    with suppress(InUse):
                        return self._take(frozen.number)
            return self._begin(trials)

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        """Waits until no other worker of this directory claims. Raises RunDirError."""
        with (
            explained(RunDirError, f"{self.folder} cannot be used", ELSEWHERE),
            Folder.open(self.folder) as folder,
        ):
            file = folder.append(CLAIM)
        with file, database_errors(self.where):
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def locks_work(self) -> bool:
        """Whether the claim of one process keeps another from its own. Raises RunDirError."""
        with self._claiming():
            return excludes_others(self.folder / CLAIM)

    def _begin(self, trials: list[Any]) -> Claim | None:
        """Begins a point without a trial; None if there is none, or another directory was quicker.

        The storage counts trials, so as long as there are fewer trials than points the next trial's
        number is a point that no directory can begin at the same moment. Later points are free only
        where trials were lost. A random one of them is begun; of two trials of one point the first
        counts.
        """
        free = set(range(self.plan.trials)) - self._first_trials(trials).keys()
        if not free:
            return None
        optuna = import_optuna()
        running = optuna.trial.TrialState.RUNNING
        attributes = {}
        if len(trials) >= self.plan.trials:
            attributes["point"] = random.choice(sorted(free))
        template = optuna.trial.create_trial(state=running, user_attrs=attributes)
        identity = self._storage.create_new_trial(self._study_id, template_trial=template)
        number = self._storage.get_trial_number_from_id(identity)
        if attributes:
            begun = self._first_trials(self._trials())[attributes["point"]] == number
        else:
            begun = number in free
        if not begun:  # another directory was quicker
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)
            return None
        return self._take(number)

    def _take(self, number: int) -> Claim:
        """Locks the directories of a trial, and gives it its values where it has none yet."""
        optuna = import_optuna()
        self._own_directory(number)
        self._show_life(number)
        identity = self._id(number)
        point = self.plan.point(_point_of(self._storage.get_trial(identity)))
        self._study.sampler = optuna.samplers.PartialFixedSampler(point, self._sampler)
        trial = optuna.trial.Trial(self._study, identity)
        for name, values in self.plan.space.items():
            if isinstance(values, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, values.choices)
            elif isinstance(values, optuna.distributions.IntDistribution):
                trial.suggest_int(name, values.low, values.high, log=values.log)
            else:
                trial.suggest_float(name, values.low, values.high, log=values.log)
        with ExitStack() as stack:
            dirs = {}
            for seed in self.plan.seeds_of(trial.params):
                dirs[seed] = stack.enter_context(lock(self._own_directory(number, seed)))
            records = {}
            for record in self._records(self._storage.get_trial(identity)):
                if record.status == "damaged":  # it may have been repaired
                    record = replace(record, status="running", note=None)
                records[record.seed] = record
            claim = Claim(trial, records, dirs, stack.pop_all())
        self.held[number] = claim
        return claim

    def _own_directory(self, number: int, seed: int | None = None) -> Path:
        """A trial's or a member's directory, made where it is missing; RunDirError for a link."""
        path = member_dir(self.folder, number, seed, self.plan.seeds)
        check_below(self.folder, path, ELSEWHERE, create=True)
        return path

    def note(self, claim: Claim, record: MemberResult) -> None:
        """Stores a member's record.

        Args:
            claim: The trial.
            record: The member's results, which replace those of its seed.

        Raises:
            JaxlmError: The trial was lost, and another worker has its point.
        """
        claim.records[record.seed] = record
        values = {name: getattr(record, name) for name in STORED}
        with database_errors(self.where):
            try:
                claim.trial.set_user_attr(f"seed {record.seed}", values)
            except import_optuna().exceptions.UpdateFinishedTrialError:
                raise JaxlmError(
                    f"trial {record.number} was given to another worker, for this one had been "
                    f"silent for {storage.SILENCE} s: resume the sweep with --resume"
                ) from None

    def to_prune(self, claim: Claim) -> bool:
        """Reports the epochs that all of a trial's members have finished.

        Returns:
            Whether Optuna gives the trial up.
        """
        with database_errors(self.where):
            for epoch, value in enumerate(_means(claim.records.values()), 1):
                claim.trial.report(value, epoch)  # Optuna ignores an epoch that it knows
            return claim.trial.should_prune()

    def beat(self) -> None:
        """Notes in a database that this directory lives, at most every `BEAT` seconds."""
        now = time.time()  # a monotonic clock stands still while the machine sleeps
        if self.shared and abs(now - self._last_beat) > storage.BEAT:
            self._last_beat = now
            with database_errors(self.where):
                waiting = filter(self._is_ours, self._unfinished(self._trials()))
                for number in (*self.held, *(frozen.number for frozen in waiting)):
                    self._show_life(number)

    def _show_life(self, number: int) -> None:
        """Notes in a database that a trial's directory lives."""
        if self.shared:
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
            states = import_optuna().trial.TrialState
            state = states.PRUNED  # Optuna's state FAIL is that of lost trials
            value = None
            if statuses == {"done"}:
                state = states.COMPLETE
                value = fmean(record.valid_perplexity for record in claim.records.values())
            with database_errors(self.where):
                self._study.tell(claim.trial, value, state, skip_if_finished=True)
        self.release(claim)

    def release(self, claim: Claim) -> None:
        """Releases a trial, for others to resume if it has not ended."""
        claim.held.close()
        self.held.pop(claim.trial.number, None)

    @property
    def ended(self) -> bool:
        """Whether all trials have ended, except those that were found damaged."""
        with database_errors(self.where):
            trials = self._trials()
            if self.held or len(self._first_trials(trials)) < self.plan.trials:
                return False
            return all(
                frozen.number in self._damaged or self._is_damaged_elsewhere(frozen)
                for frozen in self._unfinished(trials)
            )

    def _is_damaged_elsewhere(self, frozen: Any) -> bool:
        """Whether a trial of another directory is damaged: only a resume there tries it again."""
        statuses = {record.status for record in self._records(frozen)}
        return not self._is_ours(frozen) and "damaged" in statuses and "running" not in statuses

    def records(self) -> list[MemberResult]:
        """Every member that has begun, by number and seed."""
        records = []
        with database_errors(self.where):
            for frozen in self._trials():
                if not _is_lost(frozen) and frozen.params.keys() == self.plan.space.keys():
                    records += self._records(frozen)
        return records

    def importances(self) -> dict[str, float]:
        """Each field's share of what sets the finished trials' log perplexities apart.

        By functional ANOVA (Hutter et al. 2014, proceedings.mlr.press/v32/hutter14), as Optuna
        computes it.

        Returns:
            Shares that sum to 1, by field, the largest first. Empty where scikit-learn is missing,
            or where the trials are too few or too alike.
        """
        with database_errors(self.where), suppress(ImportError, ValueError, RuntimeError):
            finished = [frozen for frozen in self._trials() if frozen.state.name == "COMPLETE"]
            if len(finished) < LEAST_TRIALS:
                return {}
            importance = import_optuna().importance
            return importance.get_param_importances(
                self._study,
                evaluator=importance.FanovaImportanceEvaluator(max_depth=TREE_DEPTH, seed=0),
                target=lambda trial: math.log(trial.value),
            )
        return {}

    def _records(self, frozen: Any) -> list[MemberResult]:
        """The results of a trial's members, by seed."""
        values = decoded(frozen.params)
        is_ours = self._is_ours(frozen)
        records = []
        for seed in self.plan.seeds_of(frozen.params):
            stored = dict(frozen.user_attrs.get(f"seed {seed}", {}))
            stored["valid_perplexities"] = tuple(stored.get("valid_perplexities", ()))
            run_dir = None
            if is_ours:
                run_dir = member_dir(self.folder, frozen.number, seed, self.plan.seeds)
            records.append(MemberResult(frozen.number, values, seed, run_dir=run_dir, **stored))
        return records

    def _is_ours(self, frozen: Any) -> bool:
        """Whether the trial's runs are in this directory."""
        return not self.shared or member_dir(self.folder, frozen.number).exists()

    def _trials(self) -> list[Any]:
        """All trials as Optuna stores them, by number."""
        return self._study.get_trials(deepcopy=False)

    def _first_trials(self, trials: list[Any]) -> dict[int, int]:
        """The first trial that is not lost of each point."""
        first = {}
        for frozen in trials:
            if not _is_lost(frozen):
                first.setdefault(_point_of(frozen), frozen.number)
        return first

    def _unfinished(self, trials: list[Any]) -> list[Any]:
        """The trials that have not ended, except those that this worker trains."""
        return [
            frozen
            for frozen in trials
            if not frozen.state.is_finished() and frozen.number not in self.held
        ]

    def _id(self, number: int) -> int:
        """Optuna's id of a trial in its storage."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _point_of(frozen: Any) -> int:
    """The number of a trial's point: its own, unless it begins a lost trial's point again."""
    return frozen.user_attrs.get("point", frozen.number)


def _is_lost(frozen: Any) -> bool:
    """Whether a trial's directory went silent, or another was quicker to begin its point."""
    return frozen.state.name == "FAIL"


def _means(records: Iterable[MemberResult]) -> list[float]:
    """The means over a trial's members of the perplexities of the epochs that all have finished.

    A diverged member counts as infinite from then on.
    """
    curves = []
    lengths = []  # of the members that may still finish an epoch
    for record in records:
        curve = [value for value in record.valid_perplexities if math.isfinite(value)]
        if record.status == "diverged":
            curve.append(math.inf)
        else:
            lengths.append(len(curve))
        curves.append(curve)
    epochs = zip_longest(*curves, fillvalue=math.inf)
    return [fmean(epoch) for epoch in islice(epochs, min(lengths, default=None))]


def check_below(
    root: Path,
    path: Path,
    remedy: str,
    create: bool = False,
) -> None:
    """Checks that all directories from one down to another are directories, and no links.

    Args:
        root: The uppermost directory.
        path: The lowest.
        remedy: What to do otherwise, which ends the error's sentence.
        create: Make those that are missing.

    Raises:
        RunDirError: One is a link or a file.
    """
    with explained(RunDirError, f"{path} cannot be used", remedy), ExitStack() as stack:
        folder = stack.enter_context(Folder.open(root))
        for name in path.relative_to(root).parts:
            folder = stack.enter_context(folder.folder(name, create))


def member_dir(
    folder: Path,
    number: int,
    seed: int | None = None,
    seeds: int = 1,
) -> Path:
    """The directory of a trial, or of one of its members.

    Args:
        folder: The sweep's directory.
        number: The trial's number.
        seed: The member's seed; None: the trial's own directory.
        seeds: How many members a trial has; a single one has the trial's directory.
    """
    trial = folder / "trials" / f"{number:04d}"
    if seed is None or seeds == 1:
        return trial
    return trial / f"seed-{seed}"
