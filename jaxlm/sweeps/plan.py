"""What a sweep is: the recipe, the space and how its points are chosen; and `plan.json`, which keeps it, sealed."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jaxlm.config.config import MAY_CHANGE, Config, differences
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import Folder, reason, seal, unseal
from jaxlm.runs import directory as rundir
from jaxlm.sweeps.distributions import Space
from jaxlm.sweeps.space import MOST_POINTS, decoded, grid_point, grid_size, random_point, read_space
from jaxlm.urls import without_password

STRATEGIES = ("grid", "random", "tpe")
MOST_SEEDS = 10_000
MOST_MEMBERS = 1_000_000  # of a sweep
MOST_GROUP, MOST_WORKERS = 4_096, 1_024
PLAN, MOST_BYTES = "plan.json", 1 << 24


@dataclass(frozen=True)
class Plan:
    """What a sweep is; all who work on one study have the same."""

    config: Config
    space: Space
    strategy: str
    trials: int
    seeds: int  # members of a trial
    prune: bool
    corpus: dict[str, str]  # as `runs.directory.named` names it

    def config_of(self, params: Mapping[str, Any], seed: int) -> Config:
        """The config of one member; it keeps its last and its best checkpoint."""
        return self.config.replace(**{"keep_last": 1, **decoded(params), "seed": seed})

    def seeds_of(self, params: Mapping[str, Any]) -> list[int]:
        """The seeds of a trial's members."""
        first = self.config.train.seed
        return [params["seed"]] if "seed" in params else list(range(first, first + self.seeds))

    @property
    def known(self) -> bool:
        """Whether every point is known ahead."""
        return self.strategy != "tpe"

    def point(self, number: int) -> dict[str, Any]:
        """The point of a trial by its number from 0, where it is known ahead."""
        return (
            grid_point(self.space, number)
            if self.strategy == "grid"
            else random_point(self.space, self.config.train.seed, number)
        )

    def to_json(self) -> dict[str, Any]:
        """JSON's form, which `from_json` reads."""
        return {
            "config": json.loads(self.config.to_json()),
            "strategy": self.strategy,
            "trials": self.trials,
            "space": {name: distribution.to_json() for name, distribution in self.space.items()},
            "seeds": self.seeds,
            "prune": self.prune,
            "corpus": self.corpus,
        }

    @staticmethod
    def from_json(tree: Any) -> "Plan":
        """The plan whose `to_json` is `tree`, every part checked. Raises JaxlmError where it is anything else."""
        parts = ("config", "space", "strategy", "trials", "seeds", "prune", "corpus")
        if not isinstance(tree, Mapping) or tree.keys() != set(parts):
            raise JaxlmError(f"a plan has {', '.join(parts)}")
        config, space, strategy, trials, seeds, prune, corpus = (tree[part] for part in parts)
        for name, value, kind in (
            ("space", space, Mapping),
            ("strategy", strategy, str),
            ("prune", prune, bool),
            ("corpus", corpus, Mapping),
        ):
            if not isinstance(value, kind):
                raise JaxlmError(f"the plan's {name} is not what a sweep writes")
        if not all(isinstance(text, str) for text in corpus.values()):
            raise JaxlmError("the plan's corpus is not what a sweep writes")
        return make_plan(Config.from_json(json.dumps(config)), space, strategy, trials, seeds, prune, dict(corpus))

    def differences(self, other: "Plan") -> list[str]:
        """`what: this plan's -> the other's` of all that differs, but for how many trials there are to be."""
        found = [
            line
            for line in differences(self.config, other.config)
            if line.split(":")[0] not in MAY_CHANGE - {"train.epochs"}
        ]
        found += [
            f"space.{name}: {self.space.get(name)} -> {other.space.get(name)}"
            for name in sorted({*self.space, *other.space})
            if self.space.get(name) != other.space.get(name)
        ]
        found += [
            f"{name}: {getattr(self, name)} -> {getattr(other, name)}"
            for name in ("strategy", "seeds", "prune")
            if getattr(self, name) != getattr(other, name)
        ]
        return found + rundir.different(self.corpus, other.corpus)


def make_plan(
    config: Config,
    space: Mapping[str, Any],
    strategy: str,
    trials: int | None,
    seeds: int,
    prune: bool | None,
    corpus: dict[str, str],
) -> Plan:
    """The plan of what a user asks for, checked.

    Args:
        config: The recipe.
        space: As `read_space` takes it.
        strategy: One of `STRATEGIES`.
        trials: How many points; None: all of a grid.
        seeds: How many members a trial has.
        prune: Whether trials worse than the median are given up; None: with tpe.
        corpus: As `runs.directory.named` names it.

    Raises:
        JaxlmError: One of them is out of its limits, or two do not go together.
    """
    if trials is not None:
        check_count("trials", trials, MOST_POINTS)
    check_count("seeds", seeds, MOST_SEEDS)
    read = read_space(space, config)
    if strategy not in STRATEGIES:
        raise JaxlmError(f"strategy is {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}; it is {strategy!r}")
    if "seed" in read and seeds > 1:
        raise JaxlmError("seed is in the space, and seeds asks for several of each point: leave one of them out")
    if (config.train.epochs if "epochs" not in read else min(read["epochs"].samples)) < 1:
        raise JaxlmError("a sweep needs at least 1 epoch, to compare validation perplexities; epochs is 0")
    if strategy == "grid":
        points = grid_size(read)
        if trials not in (None, points):
            raise JaxlmError(
                f"a grid tries each of its {points} points: leave trials ({trials}) out, or choose the strategy random"
            )
        trials = points
    if trials is None:
        raise JaxlmError(f"the strategy {strategy} has no end of its own: give trials, the number of points to try")
    if trials * seeds > MOST_MEMBERS:
        raise JaxlmError(
            f"{trials:,} trials of {seeds:,} seeds are {trials * seeds:,} runs: {MOST_MEMBERS:,} is the most"
        )
    config.replace(seed=config.train.seed + seeds - 1)  # refuses one that is too large
    return Plan(config, read, strategy, trials, seeds, strategy == "tpe" if prune is None else prune, corpus)


def member_dir(folder: Path, plan: Plan, number: int, seed: int) -> Path:
    """The run directory of a member, by its trial's number and its seed, below a sweep's."""
    trial = folder / "trials" / f"{number:04d}"
    return trial if plan.seeds == 1 else trial / f"seed-{seed}"


def check_count(name: str, number: Any, most: int) -> None:
    """Raises JaxlmError unless it is a whole number from 1 to `most`."""
    if type(number) is not int or number < 1:
        raise JaxlmError(
            f"{name} must be at least 1, and a whole number; it is {str(number)[:40]}"
            if type(number) is not int
            else f"{name} must be at least 1; it is {max(number, -(10**18))}"
        )
    if number > most:
        raise JaxlmError(
            f"{name} must be at most {most:,}; it is {min(number, 10**18):,}" + (" or more" if number > 10**18 else "")
        )


@dataclass(frozen=True)
class Saved:
    """What `plan.json` keeps.

    `storage` is None for the journal in the sweep's directory, a path below it, another journal's absolute path, or a
    database's URL without its password. `place` names the directory in a study that several share.
    """

    plan: Plan
    storage: str | None = None
    group: int | None = None
    vmap: bool | None = None
    place: str = field(default_factory=lambda: secrets.token_hex(8))

    def write(self, path: Path) -> None:
        """Writes `plan.json` into a sweep's directory. Raises RunDirError."""
        tree = {
            "plan": self.plan.to_json(),
            "storage": self.storage,
            "group": self.group,
            "vmap": self.vmap,
            "place": self.place,
        }
        try:
            with Folder.open(path) as folder:
                folder.write(PLAN, seal(tree).encode())
        except OSError as error:
            raise RunDirError(f"{path / PLAN} cannot be written: {reason(error)}") from None

    @staticmethod
    def read(path: Path) -> "Saved":
        """What `plan.json` of a sweep's directory keeps, every part checked.

        Raises:
            RunDirError: There is no plan.json, it is damaged, or an older version wrote it, without a seal.
        """
        try:
            with Folder.open(path) as folder:
                tree = unseal(folder.read(PLAN, MOST_BYTES))
            if tree.keys() != {"plan", "storage", "group", "vmap", "place"}:
                raise ValueError("it is not what a sweep writes")
            saved = Saved(Plan.from_json(tree["plan"]), tree["storage"], tree["group"], tree["vmap"], tree["place"])
            if saved.group is not None:
                check_count("group", saved.group, MOST_GROUP)
            if not (
                isinstance(saved.vmap, bool | None)
                and isinstance(saved.storage, str | None)
                and isinstance(saved.place, str)
                and re.fullmatch("[0-9a-f]{16}", saved.place)
            ):
                raise ValueError("it is not what a sweep writes")
            return saved
        except FileNotFoundError:
            problem = "plan.json: there is no such file): begin one without --resume, or check the path"
        except (OSError, ValueError, RecursionError) as error:
            problem = (
                f"plan.json: {reason(error) if isinstance(error, OSError) else error}): put an intact copy in "
                f"its place, or begin another sweep; the runs in {path / 'trials'} are runs of their own"
            )
        raise RunDirError(f"{path} holds no sweep that can be resumed ({problem}")

    def resolve(self, path: Path, given: str | None, default: str | None = None) -> str | None:
        """Where the study of a resumed sweep is, if it is not the journal in its directory.

        Args:
            path: The sweep's directory.
            given: What the user gives, to be compared; None: what is saved, if that is below the directory.
            default: Taken where it is not.

        Raises:
            RunDirError: Something else is given, or nothing and the study is elsewhere.
        """
        below = self.storage is None or _is_below(path, self.storage)
        given = given or (None if below else default)
        if given is not None and kept_storage(path, given) != self.storage:
            raise RunDirError(
                f"the sweep in {path} has its study in {self.storage or 'its journal'}, not in "
                f"{without_password(given)}: " + ("leave --storage out" if below else "name that with --storage")
            )
        if given is None and not below:
            raise RunDirError(
                f"the sweep in {path} has its study outside its directory, in {self.storage}: give it "
                f"again with --storage or $JAXLM_STORAGE, with its password if it needs one"
            )
        return given or (self.storage and str(path / self.storage))


def kept_storage(path: Path, given: str | None) -> str | None:
    """What `plan.json` of a sweep's directory keeps of a storage."""
    if given is None or "://" in given:
        return given and without_password(given)
    absolute, own = Path(given).resolve(), path.resolve()
    return str(absolute.relative_to(own) if absolute.is_relative_to(own) else absolute)


def _is_below(path: Path, storage: str) -> bool:
    """Whether it is a file's relative path, and leads below the directory, through no link."""
    parts = PurePosixPath(storage)
    return (
        "://" not in storage
        and "\0" not in storage
        and not parts.is_absolute()
        and ".." not in parts.parts
        and (path / storage).resolve() == path.resolve() / storage
    )
