"""The study of a sweep: which points there are, who trains which, and what came of each.

Optuna keeps it, in a journal file, a database or in memory, and every worker reads and writes the same one. A point
is one of Optuna's trials; its members (one for each seed) have a run directory each:

    SWEEP/  plan.json  study.journal  trials/0007/        (with seeds: trials/0007/seed-3/)

Who holds the locks of a point's run directories trains it. They end with their process, so the point of a dead
worker is free: whoever comes to it goes on from its checkpoints. Where workers share a database and no file system,
a silent trial counts as failed after `SILENCE` seconds, by Optuna's heartbeats, and is begun again under a new number.
"""

import fcntl
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution, json_to_distribution
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jaxlm.config.config import Config, differences
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.runs import directory as rundir
from jaxlm.sweeps.results import Trial
from jaxlm.sweeps.space import Space, decoded, grid, space_to_json

STRATEGIES = ("grid", "random", "tpe")
BEAT, SILENCE = 60, 600  # seconds
NAME = "jaxlm"


@dataclass(frozen=True)
class Plan:
    """What a sweep is; all who work on one study have the same."""

    config: Config
    space: Space
    strategy: str
    trials: int  # points
    seeds: int
    prune: bool
    corpus: dict[str, str]

    def config_of(self, params: dict[str, Any], seed: int) -> Config:
        """The config of one member; it keeps its last and its best checkpoint."""
        return self.config.replace(**{"keep_last": 1, **decoded(params), "seed": seed})

    def seeds_of(self, params: dict[str, Any]) -> list[int]:
        """The seeds of a point's members."""
        first = self.config.train.seed
        return [params["seed"]] if "seed" in params else list(range(first, first + self.seeds))

    def points(self) -> list[dict[str, Any]] | None:
        """Every point by its number, where they are known ahead."""
        if self.strategy == "grid":
            return grid(self.space)[:self.trials]
        if self.strategy == "random":
            with _quiet():
                drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(self.config.train.seed))
                return [drawn.ask(self.space).params for _ in range(self.trials)]
        return None

    def to_json(self) -> dict[str, Any]:
        return {"config": json.loads(self.config.to_json()), "space": space_to_json(self.space),
                "strategy": self.strategy, "trials": self.trials, "seeds": self.seeds, "prune": self.prune,
                "corpus": self.corpus}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Plan":
        space = {name: json_to_distribution(json.dumps(one)) for name, one in tree["space"].items()}
        return Plan(**{**tree, "config": Config.from_json(json.dumps(tree["config"])), "space": space})

    def differences(self, other: "Plan") -> list[str]:
        """`what: this plan's -> the other's` of all that differs, but for how many trials there are to be."""
        found = [line for line in differences(self.config, other.config) if line.split(":")[0] not in rundir.MAY_CHANGE
                 or line.startswith("train.epochs")]
        mine, others = space_to_json(self.space), space_to_json(other.space)
        found += [f"space.{name}: {_shown(self.space.get(name))} -> {_shown(other.space.get(name))}"
                  for name in sorted({*mine, *others}) if mine.get(name) != others.get(name)]
        found += [f"{name}: {getattr(self, name)} -> {getattr(other, name)}" for name in ("strategy", "seeds", "prune")
                  if getattr(self, name) != getattr(other, name)]
        return found + rundir.different(self.corpus, other.corpus)


def _shown(distribution: Any) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    return str(distribution)


class Point:
    """A claimed point: Optuna's trial, and its members' run directories, held until `Study.end`."""

    def __init__(self, trial: optuna.trial.Trial, params: dict[str, Any], records: dict[int, Trial], held: ExitStack):
        self.trial, self.params, self.records, self.held, self.beat = trial, params, records, held, 0.0
        self.reported = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=0)


class Study:
    """The study in a sweep's directory. `storage` is a journal's path, a database's URL, or None: in memory."""

    def __init__(self, plan: Plan, folder: Path, storage: str | None, place: str):
        self._folder, self._place, self._held = folder, place, dict[int, Point]()
        with _quiet():
            kept = _storage(storage)
            self._heartbeats = kept if isinstance(kept, RDBStorage) else None
            self._study = optuna.create_study(
                storage=kept, study_name=NAME, load_if_exists=True,
                pruner=optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner())
            attributes = self._study.user_attrs
            if "plan" in attributes:
                known = Plan.from_json(attributes["plan"])
                if changed := known.differences(plan):
                    raise JaxlmError(f"the study in {storage} is of another sweep ({'; '.join(changed)}): go on with "
                                     f"its own, or choose another --storage or --run-dir")
            if attributes.get("plan") != plan.to_json():
                self._study.set_user_attr("plan", plan.to_json())
            self.plan, points = plan, plan.points()
            self._study.sampler = _Planned(points) if points is not None else optuna.samplers.TPESampler(
                seed=None if "plan" in attributes else plan.config.train.seed, constant_liar=True)

    def claim(self) -> Point | None:
        """A point that nobody trains: one whose worker is gone, or a new one. None: there is no such now."""
        with self._alone(), _quiet():
            if self._heartbeats:
                for held in self._held.values():
                    self._beat(held.trial)
                optuna.storages.fail_stale_trials(self._study)
            for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                # (One without a place lost its worker before that could say where it is.)
                places = (self._place,) if self._heartbeats else (self._place, None)
                if frozen.number not in self._held and frozen.user_attrs.get("place") in places:
                    try:
                        return self._take(optuna.trial.Trial(self._study, frozen._trial_id))
                    except RunDirError:  # somebody trains it
                        continue
            trials = self._study.get_trials(deepcopy=False)
            if len(_originals(trials)) >= self.plan.trials and not any(t.state == TrialState.WAITING for t in trials):
                return None
            trial = self._study.ask()
            self._beat(trial)
            trial.set_user_attr("place", self._place)
            new = _originals([trial.storage.get_trial(trial._trial_id)])
            if new and _ordinal(self._study, trial.number) >= self.plan.trials:  # another machine was quicker
                self._study.tell(trial, state=TrialState.FAIL)
                return None
            return self._take(trial)

    def _take(self, trial: optuna.trial.Trial) -> Point:
        with ExitStack() as stack:
            params = {name: _suggest(trial, name, distribution) for name, distribution in self.plan.space.items()}
            for seed in self.plan.seeds_of(params):
                stack.enter_context(rundir.lock(self.run_dir(trial.number, seed)))
            records = {record.seed: record for record in self._records(trial.storage.get_trial(trial._trial_id))}
            self._held[trial.number] = Point(trial, params, records, stack.pop_all())
            return self._held[trial.number]

    def run_dir(self, number: int, seed: int) -> Path:
        """A member's run directory."""
        own = self._folder / "trials" / f"{number:04d}"
        return own if self.plan.seeds == 1 else own / f"seed-{seed}"

    def note(self, point: Point, record: Trial) -> None:
        """Writes down how a member stands."""
        point.records[record.seed] = record
        known = {name: getattr(record, name) for name in ("status", "valid_perplexities", "test_perplexity", "seconds",
                                                          "note")}
        try:
            point.trial.set_user_attr(f"seed {record.seed}", known)
        except optuna.exceptions.UpdateFinishedTrialError:
            raise JaxlmError(f"trial {record.number} was given to another worker, for this one had been silent for "
                             f"{SILENCE} s: go on with --resume") from None

    def to_prune(self, point: Point) -> bool:
        """Reports the epochs that all of a point's members have finished; whether Optuna gives the point up."""
        records = point.records.values()
        finished = min((len(record.valid_perplexities) for record in records if record.status != "diverged"),
                       default=point.reported + 1)
        for epoch in range(point.reported + 1, finished + 1):
            values = [math.inf if record.status == "diverged" else record.valid_perplexities[epoch - 1]
                      for record in records]
            point.trial.report(sum(values) / len(values), epoch)
            point.reported = epoch
        return point.trial.should_prune()

    def beat(self, point: Point) -> None:
        """Shows those who share the database only that the point's worker lives; seldom enough to cost nothing."""
        if time.monotonic() > point.beat + BEAT:
            point.beat = time.monotonic()
            self._beat(point.trial)

    def _beat(self, trial: optuna.trial.Trial) -> None:
        if self._heartbeats:
            self._heartbeats.record_heartbeat(trial._trial_id)

    def end(self, point: Point) -> bool:
        """Tells Optuna, once and for all, what became of a point whose members have all ended; whether they have."""
        statuses = {record.status for record in point.records.values()}
        if "running" in statuses:
            return False
        self.to_prune(point)
        values = [record.valid_perplexity for record in point.records.values()]
        state = (TrialState.COMPLETE if statuses == {"done"} else TrialState.FAIL if "failed" in statuses else
                 TrialState.PRUNED)
        self._study.tell(point.trial, sum(values) / len(values) if state == TrialState.COMPLETE else None, state,
                         skip_if_finished=True)
        self.release(point)
        return True

    def release(self, point: Point) -> None:
        """Lets go of a point, for others to go on with if it has not ended."""
        point.held.close()
        self._held.pop(point.trial.number, None)

    @property
    def ended(self) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        return len(_originals(trials)) >= self.plan.trials and all(trial.state.is_finished() for trial in trials)

    def records(self) -> list[Trial]:
        """Every member that has begun, by number and seed."""
        known = [(frozen, self._records(frozen)) for frozen in self._study.get_trials(deepcopy=False)
                 if frozen.params.keys() == self.plan.space.keys()]
        # (A trial that failed while its members ran is one whose machine went silent: it was begun again.)
        return [record for frozen, records in known for record in records
                if frozen.state != TrialState.FAIL or any(record.status == "failed" for record in records)]

    def _records(self, frozen: FrozenTrial) -> list[Trial]:
        here = frozen.user_attrs.get("place") == self._place
        return [Trial(frozen.number, decoded(frozen.params), seed,
                      run_dir=self.run_dir(frozen.number, seed) if here else None,
                      **frozen.user_attrs.get(f"seed {seed}", {"status": "running"}))
                for seed in self.plan.seeds_of(frozen.params)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time, of those who share the directory."""
        descriptor = os.open(self._folder / ".claim", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class _Planned(optuna.samplers.BaseSampler):
    """Points known ahead, each by its number."""

    def __init__(self, points: list[dict[str, Any]]):
        self._points = points

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._points[_ordinal(study, trial.number)][param_name]


def _originals(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """All but those that repeat a trial whose worker went silent."""
    return [trial for trial in trials if "failed_trial" not in trial.system_attrs]


def _ordinal(study: optuna.Study, number: int) -> int:
    return sum(trial.number < number for trial in _originals(study.get_trials(deepcopy=False)))


def _suggest(trial: optuna.trial.Trial, name: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _storage(where: str | None, tries: int = 5) -> Any:
    """Raises JaxlmError, whatever a database's driver raises."""
    try:
        if where is None or "://" not in where:
            return None if where is None else JournalStorage(JournalFileBackend(where))
        return RDBStorage(where, heartbeat_interval=BEAT, grace_period=SILENCE,
                          heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback())
    except Exception as error:
        said = str(error).lower()
        if tries > 1 and any(word in said for word in ("already exists", "unique", "duplicate", "locked")):
            time.sleep(1)  # another worker is just creating the tables
            return _storage(where, tries - 1)
        raise JaxlmError(f"the storage {where} cannot be used ({' '.join(str(error).split())}): expected the path of "
                         f"a journal file, or a database's URL as in sqlite:///study.db") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log lines, and its warnings of what is new in it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
