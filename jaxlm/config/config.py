"""What a run is: a recipe (model, optimiser and schedule, each of a kind chosen by name), counts and a text.

The recipe is a pytree once `config/pytrees.py` is imported: its numbers are traced leaves, all else is static. Nothing
here imports JAX, so that a command line can show its help at once.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxlm.config.optimizers import OPTIMIZERS, SGD, Descent, Optimizer
from jaxlm.config.schedules import SCHEDULES, Piecewise, Plateau, Schedule
from jaxlm.config.settings import DataConfig, TrainConfig
from jaxlm.errors import JaxlmError
from jaxlm.fields import Spec, check, check_relations, checked, either, nearest, shown, specs
from jaxlm.models.kinds import MODELS
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Recurrent

FORMAT = 2  # of config.json

KINDS: dict[str, Mapping[str, type]] = {"model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
FIXED: dict[str, type] = {"train": TrainConfig, "data": DataConfig}
SECTIONS = (*KINDS, *FIXED)

# These do not change what is trained. (The corpus is compared by its hash, wherever it was found.)
MAY_CHANGE = {
    "train.epochs",
    "train.windows_per_call",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.on_nonfinite",
    "data.corpus",
}


@dataclass(frozen=True)
class Recipe:
    """What the step takes: every number of it may be traced."""

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)


@dataclass(frozen=True)
class Config:
    """A whole run but for its corpus's bytes."""

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preset: str = "custom"

    def __post_init__(self) -> None:
        for name in SECTIONS:
            section = checked(getattr(self, name))
            check_relations(section)
            section.check()
            object.__setattr__(self, name, section)
        self._check_together()

    def _check_together(self) -> None:
        """Raises JaxlmError where fields of two sections contradict each other."""
        optimizer = self.optimizer
        if optimizer.averages_after and isinstance(self.schedule, Plateau):
            raise JaxlmError(
                f"nonmonotone {optimizer.averages_after} of the optimizer and the schedule plateau "
                f"both act when validation stops improving: take nonmonotone 0, or another schedule"
            )
        if isinstance(optimizer, Descent) and optimizer.compatibility == "awd-lstm" and type(self.model) is not LSTM:
            raise JaxlmError(
                f"compatibility awd-lstm repeats the two biases of an LSTM, and model is "
                f"{kind_of('model', self.model)}: set compatibility to none, or take the model lstm"
            )

    @property
    def depends_on_total(self) -> bool:
        """Whether other epochs in all change what a window trains."""
        shares = self.model.sampled_share, self.model.dropout_ramp
        return self.schedule.depends_on_total or any(share is not None for share in shares)

    @property
    def recipe(self) -> Recipe:
        """The part that the step takes."""
        return Recipe(self.model, self.optimizer, self.schedule)

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, by their plain names.

        Args:
          **changes: fields of whichever section, as in `learning_rate=0.5`; a kind by its name, as in `model="gru"`,
            which keeps the fields that both kinds have in common and are not at the old kind's defaults; whole
            sections, as in `train=TrainConfig()`; or `preset`.

        Raises:
          JaxlmError: a field is unknown, is not one of the kind's, or has a value outside its limits.

        >>> changed = Config().replace(model="gru", optimizer="adamw", epochs=3, learning_rate=0.01)
        >>> changed.kinds["model"], changed.train.epochs, changed.optimizer.learning_rate
        ('gru', 3, 0.01)
        """
        sections = {name: getattr(self, name) for name in SECTIONS}
        label = changes.pop("preset", self.preset)
        for name in SECTIONS:
            if name in changes:
                sections[name] = _of_kind(name, changes.pop(name), sections[name])
        values: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            values.setdefault(_section_with(name, sections), {})[name] = value
        for section, changed in values.items():
            sections[section] = replace(sections[section], **changed)
        return Config(**sections, preset=label)

    def to_json(self) -> str:
        """The config as JSON, which `from_json` reads back."""
        tree: dict[str, Any] = {"format": FORMAT, "preset": self.preset}
        for name in SECTIONS:
            section = getattr(self, name)
            kind = {"kind": kind_of(name, section)} if name in KINDS else {}
            tree[name] = {**kind, **{item.name: getattr(section, item.name) for item in fields(section)}}
        return json.dumps(tree, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The config that `to_json` wrote.

        Raises:
          JaxlmError: the text is anything else, or a value is outside its limits.
        """
        tree = _object(text)
        if tree.pop("format", None) != FORMAT:
            raise JaxlmError(f"expected a config of format {FORMAT}, which jaxlm writes; this one has another, or none")
        preset = tree.pop("preset", "custom")
        sections = {name: _section(name, tree.pop(name, {})) for name in SECTIONS}
        if tree or not isinstance(preset, str):
            raise JaxlmError(
                f"a config has the parts {', '.join(SECTIONS)} and preset (a name); "
                f"this one also has {', '.join(sorted(tree)) or repr(preset)}"
            )
        return Config(**sections, preset=preset)

    def every_field(self) -> Iterator[tuple[str, str, Spec, Any]]:
        """(section, field, spec, value) of all fields of the chosen kinds, in the order that a help page shows them."""
        for section in SECTIONS:
            part = getattr(self, section)
            for name, spec in specs(type(part)).items():
                yield section, name, spec, getattr(part, name)

    @property
    def kinds(self) -> dict[str, str]:
        """The name of each kind chosen: model, optimizer and schedule."""
        return {slot: kind_of(slot, getattr(self, slot)) for slot in KINDS}


def kind_of(slot: str, section: Any) -> str:
    """The name of a section's kind."""
    return next(name for name, kind in KINDS[slot].items() if kind is type(section))


def all_kinds() -> Iterator[tuple[str, str, type]]:
    """(section, kind's name or "", class) of every kind of every section."""
    for slot, kinds in KINDS.items():
        for name, kind in kinds.items():
            yield slot, name, kind
    for section, kind in FIXED.items():
        yield section, "", kind


def spec_of_field(name: str) -> Spec:
    """The spec of a field, or of a slot for a kind (`model`, ...), whichever kind has it. JaxlmError if none has."""
    if name in KINDS:
        return Spec(str, f"the kind of {name}", choices=tuple(KINDS[name]))
    for _, _, kind in all_kinds():
        if name in (found := specs(kind)):
            return found[name]
    raise JaxlmError(f"unknown field {name!r}{nearest(name, _every_name())}")


def is_number(name: str) -> bool:
    """Whether a field is a traced number, so that changing it compiles nothing."""
    return spec_of_field(name).type is float


def differences(a: Config, b: Config) -> list[str]:
    """One line for each field that differs: `section.field: a's value -> b's value`."""
    left, right = (
        {
            **{f"{slot}.kind": kind for slot, kind in one.kinds.items()},
            **{f"{section}.{name}": value for section, name, _, value in one.every_field()},
        }
        for one in (a, b)
    )
    return [
        f"{name}: {left.get(name, 'absent')!r} -> {right.get(name, 'absent')!r}"
        for name in dict.fromkeys([*left, *right])
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    ]


def conflicts(saved: Config, given: Config) -> list[str]:
    """Those differences with which a saved run cannot be resumed, since they change what is trained."""
    fixed = {"train.epochs"} if saved.depends_on_total else set()
    return [line for line in differences(saved, given) if line.split(":")[0] not in MAY_CHANGE - fixed]


_ABSENT = object()


def _of_kind(slot: str, name: Any, old: Any) -> Any:
    """A section as it is, or one of a named kind, with the old one's values of fields that both have."""
    kinds = KINDS.get(slot, {"": FIXED.get(slot)})
    if type(name) in kinds.values():
        return name
    if slot not in KINDS:
        raise JaxlmError(f"{slot} takes a section of the config; it is {shown(name)}")
    if not isinstance(name, str) or name not in KINDS[slot]:
        raise JaxlmError(f"{slot} must be {either(list(KINDS[slot]))}; it is {shown(name)}{_did_you_mean(name, slot)}")
    kind = KINDS[slot][name]
    if kind is type(old):
        return old
    changed = {item.name: value for item in fields(old) if (value := getattr(old, item.name)) != item.default}
    return kind(**{name: value for name, value in changed.items() if name in specs(kind)})


def _did_you_mean(name: Any, slot: str) -> str:
    found = nearest(str(name), list(KINDS[slot])) if isinstance(name, str) else ""
    return found if "did you mean" in found else ""


def _section_with(name: str, sections: Mapping[str, Any]) -> str:
    """The section that has a field. Raises JaxlmError, naming the kinds that have it or the fields there are."""
    for section, part in sections.items():
        if name in specs(type(part)):
            return section
    for slot, kinds in KINDS.items():
        if having := [kind for kind, cls in kinds.items() if name in specs(cls)]:
            chosen = sections[slot]
            raise JaxlmError(
                f"{name} is a field of the {slot} {either(having)}, and the {slot} is "
                f"{kind_of(slot, chosen)}, whose fields are {', '.join(specs(type(chosen)))}"
            )
    known = [found for part in sections.values() for found in specs(type(part))]
    raise JaxlmError(f"unknown field {name!r}{nearest(name, [*known, *KINDS])}")


def _every_name() -> list[str]:
    return list(dict.fromkeys([*KINDS, *(name for _, _, kind in all_kinds() for name in specs(kind))]))


def _object(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JaxlmError(f"expected JSON: {error}") from None
    if not isinstance(tree, dict):
        raise JaxlmError(f"expected a JSON object, found {type(tree).__name__}")
    return tree


def _section(name: str, values: Any) -> Any:
    if not isinstance(values, dict):
        raise JaxlmError(f"{name} should be a JSON object, not {type(values).__name__}")
    values = dict(values)
    if name in KINDS:
        chosen = values.pop("kind", None)
        if not isinstance(chosen, str) or chosen not in KINDS[name]:
            raise JaxlmError(f"{name}.kind must be {either(list(KINDS[name]))}; it is {chosen!r}")
        kind = KINDS[name][chosen]
    else:
        kind = FIXED[name]
    known = specs(kind)
    for key in values:
        if key not in known:
            raise JaxlmError(f"unknown field {name}.{key}{nearest(key, list(known))}")
    return kind(**{key: check(f"{name}.{key}", known[key], value) for key, value in values.items()})
