"""What a run is: a recipe of a model, an optimiser and a schedule; counts; and a text."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import (
    Spec,
    checked,
    checked_value,
    either,
    nearest,
    setting_text,
    shown,
    specs,
)
from jaxlm.base.kinds import Kinds
from jaxlm.config.recipe import Recipe
from jaxlm.config.settings import DataConfig, TrainConfig
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import MODELS, Recurrent
from jaxlm.optimizers.descent import SGD
from jaxlm.optimizers.optimizer import OPTIMIZERS, Optimizer
from jaxlm.published import awd_lstm, lamb  # noqa: F401 (their kinds stand in the tables too)
from jaxlm.schedules import SCHEDULES, Piecewise, Plateau, Schedule

FORMAT = 2  # of config.json

KINDS: dict[str, Kinds] = {"model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
# The classes of each section by the kind's name; a section without kinds has one, named "".
SECTIONS: dict[str, dict[str, type]] = {
    **KINDS,
    "train": {"": TrainConfig},
    "data": {"": DataConfig},
}
# Named recipes: the base, the fields that differ from it, and where they come from.
PRESETS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("presets.json").read_text()
)

# Fields that do not change what is trained. The corpus is compared by its name and hash instead.
MAY_CHANGE = {
    "train.epochs",
    "train.windows_per_call",
    "train.baseline_order",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_checkpoints",
    "train.on_nonfinite",
    "data.corpus",
    "data.lines",
}
# Fields in which a run of a preset may differ and still count as a run of that preset.
_NO_PRESET_CHANGE = {name.partition(".")[2] for name in MAY_CHANGE - {"train.epochs"}} | {
    "seed",
    "length_seed",
    "vocab_size",  # a corpus may have fewer words
    "compute_dtype",
    "matmul_precision",
}


@dataclass(frozen=True)
class Config:
    """The config of a run.

    Attributes:
        model: A kind of `MODELS`.
        optimizer: A kind of `OPTIMIZERS`.
        schedule: A kind of `SCHEDULES`.
        train: Batches, windows, epochs, checkpoints and seeds.
        data: The text, and how it becomes tokens.
        preset: The preset that the config began with, or another label.
    """

    model: Recurrent = field(default_factory=LSTM)
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Piecewise)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preset: str = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str):
            raise JaxlmError(f"preset takes a text; it is {shown(self.preset)}")
        for slot in SECTIONS:
            section = getattr(self, slot)
            if not _is_section(slot, section):
                object.__setattr__(self, slot, _kind_named(slot, slot, section)())
            else:
                object.__setattr__(self, slot, checked(section))
        if self.optimizer.averages_after and isinstance(self.schedule, Plateau):
            raise JaxlmError(
                f"nonmonotone {self.optimizer.averages_after} of the optimizer and the schedule "
                "plateau both act when validation stops improving: take nonmonotone 0, or another "
                "schedule"
            )
        self.optimizer.check_model(self.model)

    @property
    def recipe(self) -> Recipe:
        """Model, optimiser and schedule, as the step takes them: a pytree."""
        return Recipe(self.model, self.optimizer, self.schedule)

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, by their plain names.

        Args:
            **changes: Fields of any section, as in `learning_rate=0.5`; a kind by its name, as in
                `model="gru"`, which has its own defaults but for the fields that it carries over
                from the old kind (`carried_over`); whole sections, as in `train=TrainConfig()`; or
                `preset`.

        Returns:
            The changed config. Sections without a change are the same objects.

        Raises:
            JaxlmError: A field is unknown, is not one of the kind's, or has a value outside its
                limits.

        >>> changed = Config().replace(model="gru", optimizer="adamw", epochs=3)
        >>> changed.kinds["model"], changed.train.epochs, changed.optimizer.learning_rate
        ('gru', 3, 0.002)
        """
        label = changes.pop("preset", self.preset)
        sections = {slot: getattr(self, slot) for slot in SECTIONS}
        for slot, section in sections.items():
            if slot in changes:
                sections[slot] = _chosen_section(slot, changes.pop(slot), section)
        values: dict[str, dict[str, Any]] = defaultdict(dict)  # by section, of those that change
        for name, value in changes.items():
            slot, owners = _owners_of_field(name)
            section = sections[slot]
            if name not in specs(type(section)):
                raise JaxlmError(
                    f"{name} is a field of the {slot} {either(owners)}, and the {slot} is "
                    f"{section.kind_name}, whose fields are {', '.join(specs(type(section)))}"
                )
            values[slot][name] = value
        for slot, changed in values.items():
            sections[slot] = replace(sections[slot], **changed)
        return Config(**sections, preset=label)

    def to_json(self) -> str:
        """The config as JSON, which `from_json` reads back."""
        tree = {"format": FORMAT, "preset": self.preset, **self.sections}
        return json.dumps(tree, indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Config":
        """Reads the JSON of `to_json`, or of a run's config.json, whose seal is not checked.

        Raises:
            JaxlmError: The text is no such JSON, or a field is unknown or not allowed.
        """
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError, TypeError) as error:
            raise JaxlmError(f"expected JSON: {error}") from None
        if not isinstance(tree, dict):
            raise JaxlmError(f"expected a JSON object, found {type(tree).__name__}")
        if tree.pop("format", None) != FORMAT:
            raise JaxlmError(
                f"expected a config of format {FORMAT}, which jaxlm writes; "
                "this one has another, or none"
            )
        tree.pop("sha256", None)
        label = tree.pop("preset", "custom")
        sections = {slot: _section_of_json(slot, tree.pop(slot, {})) for slot in SECTIONS}
        if tree:
            raise JaxlmError(
                f"a config has no {', '.join(sorted(tree))}: its parts are {', '.join(SECTIONS)}"
            )
        return Config(**sections, preset=label)

    def every_field(self) -> Iterator[tuple[str, str, Spec, Any]]:
        """Yields (section, field, spec, value) of all fields, in the order of help."""
        for slot in SECTIONS:
            section = getattr(self, slot)
            for name, spec in specs(type(section)).items():
                yield slot, name, spec, getattr(section, name)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Each section's values by field, and its `kind` where it has kinds."""
        trees = {}
        for slot in SECTIONS:
            section = getattr(self, slot)
            name = {"kind": section.kind_name} if slot in KINDS else {}
            trees[slot] = name | vars(section)
        return trees

    @property
    def kinds(self) -> dict[str, str]:
        """The name of each kind chosen: model, optimizer and schedule."""
        return {slot: getattr(self, slot).kind_name for slot in KINDS}

    @property
    def preset_changes(self) -> dict[str, Any]:
        """The kinds and fields, by name, in which the recipe differs from its preset's.

        Seeds, where the text lies, what is saved, and the precision of products do not count. Empty
        for a label that is no preset.
        """
        if self.preset not in PRESETS:
            return {}
        changes = self.changes_from(preset(self.preset))
        return {name: value for name, value in changes.items() if name not in _NO_PRESET_CHANGE}

    def changes_from(self, base: "Config") -> dict[str, Any]:
        """The kinds and fields, by name, with which `base.replace` makes this config."""
        changes = {}
        for slot in SECTIONS:
            old = getattr(base, slot)
            new = getattr(self, slot)
            usual = vars(old)
            if type(new) is not type(old):
                changes[slot] = new.kind_name
                usual = starting_values(old, type(new))
            changes |= {name: value for name, value in vars(new).items() if value != usual[name]}
        return changes

    @property
    def title(self) -> str:
        """The preset's name, and what is changed: `zaremba-small, changed: hidden_sizes 10`."""
        changes = [f"{name} {setting_text(value)}" for name, value in self.preset_changes.items()]
        if changes:
            return f"{self.preset}, changed: {', '.join(changes)}"
        return self.preset


def _refuse_config(*_: Any) -> NoReturn:
    raise JaxlmError("a step takes a recipe, and this is a whole Config: give it config.recipe")


# JAX asks for the leaves of a jitted step's arguments, so that it raises the error above.
jax.tree_util.register_pytree_node(Config, _refuse_config, _refuse_config)


def preset(name: str) -> Config:
    """Returns a named recipe, one of `PRESETS`.

    Raises:
        JaxlmError: The name is unknown.

    >>> preset("zaremba-medium").model.hidden_sizes
    (650, 650)
    """
    if checked_value("preset", name, str) not in PRESETS:
        raise JaxlmError(f"unknown preset {name!r}{nearest(name, list(PRESETS))}")
    changes = dict(PRESETS[name])
    for key in ("source", "published"):
        changes.pop(key, None)
    base = Config()
    if "base" in changes:
        base = preset(changes.pop("base"))
    return base.replace(**changes, preset=name)


def all_kinds() -> Iterator[tuple[str, str, type]]:
    """Yields (section, kind's name or "", class) of every kind of every section."""
    for slot, kinds in SECTIONS.items():
        for name, kind in kinds.items():
            yield slot, name, kind


def spec_of_field(name: str) -> Spec:
    """The spec of a field, whichever kind has it, or of the choice of a kind (`model`, ...).

    Raises:
        JaxlmError: No kind has such a field.
    """
    if name in KINDS:
        return Spec(str, f"the kind of {name}", choices=tuple(KINDS[name]))
    slot, owners = _owners_of_field(name)
    return specs(SECTIONS[slot][owners[0]])[name]


def carried_over(section: Any, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a section that another kind carries over.

    Fields are carried over that mean the same in both kinds, unless their defaults are
    `kind_specific`, as those of rates and clipping are.

    Args:
        section: The section that is replaced.
        kind: The kind that replaces it.

    Returns:
        The fields of the section that are not at their defaults: those that are carried over, and
            all others.
    """
    old_specs = specs(type(section))
    new_specs = specs(kind)
    carried = {}
    dropped = {}
    for name, value in vars(section).items():
        if value == getattr(type(section), name):
            continue
        spec = old_specs[name]
        if new_specs.get(name) == spec and not spec.kind_specific:
            carried[name] = value
        else:
            dropped[name] = value
    return carried, dropped


def starting_values(section: Any, kind: type) -> dict[str, Any]:
    """The values of a kind that replaces a section: its own defaults, and what it carries over.

    Args:
        section: The section that is replaced.
        kind: The kind that replaces it.

    Returns:
        All of the kind's values by field; together they may be refused.
    """
    defaults = {name: getattr(kind, name) for name in specs(kind)}
    return defaults | carried_over(section, kind)[0]


def changed_kinds(before: Config, changes: Mapping[str, Any]) -> list[str]:
    """Says which settings the kinds that a change chooses take over from the kinds before.

    Args:
        before: The config that is changed.
        changes: What `before.replace` is given.

    Returns:
        A sentence for each kind that changes, if the old kind had settings of its own.
    """

    def settings(values: Mapping[str, Any]) -> str:
        return ", ".join(
            f"{name} {setting_text(value)}" for name, value in values.items() if name not in changes
        )

    sentences = []
    for slot, old in before.kinds.items():
        new = changes.get(slot, old)
        if new == old:
            continue
        carried, dropped = map(settings, carried_over(getattr(before, slot), KINDS[slot][new]))
        if carried or dropped:
            sentence = f"the {slot} {new} takes over from {old}: {carried or 'nothing'}"
            if dropped:
                sentence += f"; it has its own defaults in place of {dropped}"
            sentences.append(sentence)
    return sentences


def differences(a: Config, b: Config) -> list[str]:
    """Compares two configs.

    Args:
        a: A config.
        b: Another one.

    Returns:
        One line for each field that differs: `section.field: a's value -> b's value`.
    """
    old, new = (
        {
            f"{slot}.{name}": repr(value)
            for slot, values in config.sections.items()
            for name, value in values.items()
        }
        for config in (a, b)
    )
    return different(old, new)


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Compares two tables.

    Args:
        old: The values before, by name.
        new: The values now. A value that one table lacks is shown as None.

    Returns:
        `name: old -> new` for each value that differs.
    """
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def conflicts(saved: Config, given: Config) -> list[str]:
    """The differences that change what is trained, with which a saved run cannot be resumed.

    Args:
        saved: The run's config.
        given: The config to resume it with.

    Returns:
        Lines of `differences`. The number of epochs is among them where something depends on it.
    """
    may_change = MAY_CHANGE
    ramps = (saved.model.sampled_share, saved.model.dropout_ramp)
    if saved.schedule.depends_on_total or ramps != (None, None):
        may_change = MAY_CHANGE - {"train.epochs"}
    return [line for line in differences(saved, given) if line.split(":")[0] not in may_change]


def _chosen_section(
    slot: str,
    choice: Any,
    section: Any,
) -> Any:
    """What `Config.replace` puts in place of a section.

    Args:
        slot: The section's name.
        choice: Another section; or a kind's name, which carries over fields of the old section.
        section: The old section.
    """
    if _is_section(slot, choice):
        return choice
    kind = _kind_named(slot, slot, choice)
    if kind is type(section):
        return section
    return kind(**carried_over(section, kind)[0])


def _is_section(slot: str, value: Any) -> bool:
    """Whether a value is a section of the slot, of one of its kinds."""
    with suppress(KeyError):
        return type(value) is SECTIONS[slot][getattr(value, "kind_name", "")]
    return False


def _kind_named(
    label: str,
    slot: str,
    name: Any,
) -> type:
    """The kind with a name.

    Args:
        label: What an error calls the name.
        slot: The section.
        name: The name, which may be anything.

    Raises:
        JaxlmError: There is no such kind, or the section has no kinds.
    """
    if slot not in KINDS:
        raise JaxlmError(f"{label} takes a section of the config; it is {shown(name)}")
    if isinstance(name, str):
        with suppress(KeyError):
            return KINDS[slot][name]
    hint = ""
    if KINDS[slot].of_several:
        hint = " (for several kinds of layer: names with only commas between)"
    raise JaxlmError(f"{label} must be {either(list(KINDS[slot]))}; it is {shown(name)}{hint}")


def _owners_of_field(name: str) -> tuple[str, list[str]]:
    """The section and the names of its kinds that have a field. Raises JaxlmError for no field."""
    for slot, kinds in SECTIONS.items():
        owners = [kind_name for kind_name, kind in kinds.items() if name in specs(kind)]
        if owners:
            return slot, owners
    known = dict.fromkeys(field for *_, kind in all_kinds() for field in specs(kind))
    raise JaxlmError(f"unknown field {name!r}{nearest(name, [*known, *KINDS])}")


def _section_of_json(slot: str, tree: Any) -> Any:
    """A section from its part of a config's JSON. Raises JaxlmError."""
    if not isinstance(tree, dict):
        raise JaxlmError(f"{slot} should be a JSON object, not {type(tree).__name__}")
    values = dict(tree)
    if slot in KINDS:
        kind = _kind_named(f"{slot}.kind", slot, values.pop("kind", None))
    else:
        kind = SECTIONS[slot][""]
    for name in values:
        if name not in specs(kind):
            raise JaxlmError(f"unknown field {slot}.{name}{nearest(name, list(specs(kind)))}")
    return kind(**values)
