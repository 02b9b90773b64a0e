"""What a run is: a recipe (model, optimiser and schedule, each of a kind chosen by name), counts and a text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import jax

import jaxlm.published  # noqa: F401 (its kinds stand in the tables too)
from jaxlm.config.settings import DataConfig, TrainConfig
from jaxlm.errors import JaxlmError
from jaxlm.fields import Spec, checked, checked_value, either, nearest, setting_text, shown, specs
from jaxlm.kinds import Kinds
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import MODELS, Recurrent
from jaxlm.optimizers.descent import SGD
from jaxlm.optimizers.optimizer import OPTIMIZERS, Optimizer
from jaxlm.schedules import SCHEDULES, Piecewise, Plateau, Schedule

FORMAT = 2  # of config.json

KINDS: dict[str, Kinds] = {"model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
FIXED: dict[str, type] = {"train": TrainConfig, "data": DataConfig}
SECTIONS = {**KINDS, **{name: {"": kind} for name, kind in FIXED.items()}}
# Named recipes: the base, the fields that differ from it, and where they come from.
PRESETS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("presets.json").read_text()
)

# Fields that do not change what is trained. (The corpus is compared by its hash, wherever it was found.)
MAY_CHANGE = {
    "train.epochs",
    "train.windows_per_call",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_checkpoints",
    "train.on_nonfinite",
    "data.corpus",
    "data.lines",  # (the corpus's name and hash tell)
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recipe:
    """Model, optimiser and schedule: the pytree that the step takes, whose numbers may be traced."""

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)


@dataclass(frozen=True)
class Config:
    """The config of a run: model, optimiser, schedule, counts and data."""

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preset: str = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str):
            raise JaxlmError(f"preset takes a text; it is {shown(self.preset)}")
        for name in SECTIONS:
            object.__setattr__(self, name, checked(_of_kind(name, getattr(self, name), None)))
        if self.optimizer.averages_after and isinstance(self.schedule, Plateau):
            both = f"nonmonotone {self.optimizer.averages_after} of the optimizer and the schedule plateau both act"
            raise JaxlmError(
                f"{both} when validation stops improving: take nonmonotone 0, or another schedule"
            )
        self.optimizer.check_model(self.model)

    @property
    def recipe(self) -> Recipe:
        """Model, optimiser and schedule, as the step takes them: a pytree."""
        return Recipe(self.model, self.optimizer, self.schedule)

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, by their plain names.

        Args:
            **changes: fields of any section, as in `learning_rate=0.5`; a kind by its name, as in `model="gru"`, which
                begins with its own defaults and the fields that it keeps of the old kind (`taken_over`); whole
                sections, as in `train=TrainConfig()`; or `preset`.

        Raises:
            JaxlmError: a field is unknown, is not one of the kind's, or has a value outside its limits.

        >>> changed = Config().replace(model="gru", optimizer="adamw", epochs=3)
        >>> changed.kinds["model"], changed.train.epochs, changed.optimizer.learning_rate
        ('gru', 3, 0.002)
        """
        sections = {name: getattr(self, name) for name in SECTIONS}
        label = changes.pop("preset", self.preset)
        for name in SECTIONS:
            if name in changes:
                sections[name] = _of_kind(name, changes.pop(name), sections[name])
        for name, value in changes.items():
            section, having = _kinds_with(name)
            part = sections[section]
            if name not in specs(type(part)):
                own = f"the {section} is {KINDS[section].name_of(part)}, whose fields are {', '.join(specs(type(part)))}"
                raise JaxlmError(
                    f"{name} is a field of the {section} {either([*having])}, and {own}"
                )
            sections[section] = replace(part, **{name: value})
        return Config(**sections, preset=label)

    def to_json(self) -> str:
        """The config as JSON, which `from_json` reads back."""
        return (
            json.dumps({"format": FORMAT, "preset": self.preset, **self.sections}, indent=2) + "\n"
        )

    @staticmethod
    def from_json(text: str | bytes) -> "Config":
        """The config of `to_json` or of a run's config.json, whose seal is not checked. JaxlmError for another text."""
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError, TypeError) as error:
            raise JaxlmError(f"expected JSON: {error}") from None
        if not isinstance(tree, dict):
            raise JaxlmError(f"expected a JSON object, found {type(tree).__name__}")
        if tree.pop("format", None) != FORMAT:
            raise JaxlmError(
                f"expected a config of format {FORMAT}, which jaxlm writes; this one has another, or none"
            )
        tree.pop("sha256", None)
        label = tree.pop("preset", "custom")
        sections = {name: _section(name, tree.pop(name, {})) for name in SECTIONS}
        if tree:
            raise JaxlmError(
                f"a config has no {', '.join(sorted(tree))}: its parts are {', '.join(SECTIONS)}"
            )
        return Config(**sections, preset=label)

    def every_field(self) -> Iterator[tuple[str, str, Spec, Any]]:
        """(section, field, spec, value) of all fields of the chosen kinds, in the order of a help page."""
        for section in SECTIONS:
            part = getattr(self, section)
            for name, spec in specs(type(part)).items():
                yield section, name, spec, getattr(part, name)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The value of each field by its section and name; with the name of the section's kind, if it has kinds."""
        return {
            key: ({"kind": self.kinds[key]} if key in KINDS else {}) | vars(getattr(self, key))
            for key in SECTIONS
        }

    @property
    def kinds(self) -> dict[str, str]:
        """The name of each kind chosen: model, optimizer and schedule."""
        return {slot: kinds.name_of(getattr(self, slot)) for slot, kinds in KINDS.items()}


def _refuse_config(*_: Any) -> NoReturn:
    raise JaxlmError("a step takes a recipe, and this is a whole Config: give it config.recipe")


# JAX asks a value for its leaves first, so that a Config given to a jitted step is refused by a sentence.
jax.tree_util.register_pytree_node(Config, _refuse_config, _refuse_config)


def preset(name: str) -> Config:
    """A named recipe, one of PRESETS. Raises JaxlmError if the name is unknown.

    >>> preset("zaremba-medium").model.hidden_sizes
    (650, 650)
    """
    if checked_value("preset", name, str) not in PRESETS:
        raise JaxlmError(f"unknown preset {name!r}{nearest(name, list(PRESETS))}")
    changes = {
        field: value
        for field, value in PRESETS[name].items()
        if field not in ("base", "source", "published")
    }
    base = preset(PRESETS[name]["base"]) if "base" in PRESETS[name] else Config()
    return base.replace(**changes, preset=name)


def all_kinds() -> Iterator[tuple[str, str, type]]:
    """(section, kind's name or "", class) of every kind of every section."""
    return (
        (section, name, kind) for section, kinds in SECTIONS.items() for name, kind in kinds.items()
    )


def spec_of_field(name: str) -> Spec:
    """The spec of a field, or of a slot for a kind (`model`, ...), whichever kind has it. JaxlmError if none has."""
    if name in KINDS:
        return Spec(str, f"the kind of {name}", choices=tuple(KINDS[name]))
    _, having = _kinds_with(name)
    return specs(next(iter(having.values())))[name]


def taken_over(section: Any, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a section that are not at their defaults: those that another kind takes over, and all others.

    A kind takes over fields that mean the same in both kinds, unless each kind has its `own`, as rates and clipping.
    """
    ours = specs(type(section))
    theirs = specs(kind)
    settings = {
        name: value
        for name, value in vars(section).items()
        if value != getattr(type(section), name)
    }
    taken = {
        name: value
        for name, value in settings.items()
        if theirs.get(name) == ours[name] and not ours[name].own
    }
    return taken, {name: value for name, value in settings.items() if name not in taken}


def changed_kinds(before: Config, changes: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind that `before.replace(**changes)` changes, on the settings that it takes over."""
    sentences = []
    for slot, old in before.kinds.items():
        new = changes.get(slot, old)
        if new == old:
            continue
        taken, left = (
            ", ".join(
                f"{name} {setting_text(value)}"
                for name, value in part.items()
                if name not in changes
            )
            for part in taken_over(getattr(before, slot), KINDS[slot][new])
        )
        rest = f"; it has its own defaults in place of {left}" if left else ""
        if taken or left:
            sentences.append(f"the {slot} {new} takes over from {old}: {taken or 'nothing'}{rest}")
    return sentences


def differences(a: Config, b: Config) -> list[str]:
    """One line for each field that differs: `section.field: a's value -> b's value`."""
    left, right = (
        {
            f"{section}.{name}": value
            for section, part in one.sections.items()
            for name, value in part.items()
        }
        for one in (a, b)
    )
    pairs = {name: (left.get(name, "absent"), right.get(name, "absent")) for name in left | right}
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in pairs.items() if old != new]


def conflicts(saved: Config, given: Config) -> list[str]:
    """The differences that change what is trained: a saved run cannot be resumed with one of them."""
    shares = saved.model.sampled_share, saved.model.dropout_ramp
    fixed = {"train.epochs"} if saved.schedule.depends_on_total or shares != (None, None) else set()
    return [
        line for line in differences(saved, given) if line.split(":")[0] not in MAY_CHANGE - fixed
    ]


def _of_kind(slot: str, name: Any, old: Any) -> Any:
    """A section as it is, or one of a named kind with what it takes over from the old section."""
    if type(name) in SECTIONS[slot].values():
        return name
    if slot not in KINDS:
        raise JaxlmError(f"{slot} takes a section of the config; it is {shown(name)}")
    kind = _kind_named(slot, slot, name)
    if kind is type(old):
        return old
    return kind(**(taken_over(old, kind)[0] if old else {}))


def _kind_named(what: str, slot: str, name: Any) -> type:
    if not isinstance(name, str) or name not in KINDS[slot]:
        raise JaxlmError(f"{what} must be {either(list(KINDS[slot]))}; it is {shown(name)}")
    return KINDS[slot][name]


def _kinds_with(name: str) -> tuple[str, dict[str, type]]:
    """The section that has a field, and its kinds that have the field. Raises JaxlmError if there are none."""
    for section, kinds in SECTIONS.items():
        having = {kind: cls for kind, cls in kinds.items() if name in specs(cls)}
        if having:
            return section, having
    known = dict.fromkeys(field for *_, kind in all_kinds() for field in specs(kind))
    raise JaxlmError(f"unknown field {name!r}{nearest(name, [*known, *KINDS])}")


def _section(name: str, values: Any) -> Any:
    if not isinstance(values, dict):
        raise JaxlmError(f"{name} should be a JSON object, not {type(values).__name__}")
    values = dict(values)
    kind = (
        _kind_named(f"{name}.kind", name, values.pop("kind", None))
        if name in KINDS
        else FIXED[name]
    )
    known = specs(kind)
    for key in values:
        if key not in known:
            raise JaxlmError(f"unknown field {name}.{key}{nearest(key, list(known))}")
    return kind(**values)
