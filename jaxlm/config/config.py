"""What a run is: shapes, counts and numbers, with their presets, their limits and their JSON.

Shapes and counts are static (frozen dataclasses, one compile each); the numbers in `Hyper` are
traced, so that changing one compiles nothing. Imports nothing of ours and no JAX: a command line
can show its help at once. (`optim.py` registers `Hyper` as a pytree.)
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from jaxlm.errors import JaxlmError


def _field(default: Any, help: str, unit: str = "", low: float = -math.inf, high: float = math.inf,
           above: float = -math.inf) -> Any:
    """A documented field with low <= value <= high and value > above."""
    limits = {"low": low, "high": high, "above": above}
    return field(default=default, metadata={"help": help, "unit": unit, **limits})


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of the model. A mechanism that is absent here costs nothing."""

    vocab_size: int = _field(10_000, "most words to keep; the model takes the corpus's own number if smaller",
                             "words", low=2)
    embedding_size: int = _field(200, "width of the word embedding", "units", low=1)
    hidden_sizes: tuple[int, ...] = _field((256, 128), "width of each LSTM layer, first to last", "units", low=1)
    dropout: bool = _field(False, "drop activations (see the keep probabilities); off costs nothing")
    compute_dtype: str = _field("float32", "what training multiplies in: float32, or bfloat16 for accelerators; sums, "
                                           "parameters, loss and evaluation stay float32")
    recurrent_op: str = _field("scan", "what trains the layers: scan, or cudnn on a CUDA device (not timed yet)")

    def __post_init__(self):
        _check(self)
        _check_choice("recurrent_op", self.recurrent_op, ("scan", "cudnn"))
        if (self.recurrent_op, self.compute_dtype) == ("cudnn", "bfloat16"):
            raise JaxlmError("recurrent_op cudnn computes in float32, and compute_dtype is bfloat16: take scan")
        _check_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))


@dataclass(frozen=True)
class TrainConfig:
    """Counts of the training."""

    batch_size: int = _field(60, "rows B that the token stream is cut into", "rows", low=1)
    bptt_length: int = _field(20, "steps T that a gradient flows back through", "tokens", low=1)
    epochs: int = _field(15, "passes over the training split", "epochs", low=0)
    seed: int = _field(0, "seed of the initial parameters and of dropout", low=0, high=2**32 - 1)
    windows_per_call: int = _field(16, "most windows that one jitted call trains", "windows", low=1)
    checkpoint_every: int = _field(0, "save each so many windows too, besides each epoch (0: never)",
                                   "windows", low=0)
    keep_last: int = _field(2, "newest checkpoints to keep; the best on validation is kept besides", "checkpoints",
                            low=1)
    keep_every: int = _field(0, "keep a checkpoint of each so many epochs for good too (0: none)", "epochs", low=0)
    on_nonfinite: str = _field("stop", "at a window whose cost or gradient is not finite: stop (exit code 3), or skip "
                                       "it and count it")

    def __post_init__(self):
        _check(self)
        _check_choice("on_nonfinite", self.on_nonfinite, ("stop", "skip"))


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes words."""

    corpus: str = _field("auto", "auto, ptb, embedded, embedded-tiny, or a path: a folder of train/valid/test "
                                 "text, one file (split 90/5/5 by lines), or a folder that `jaxlm prepare` made")
    min_count: int = _field(1, "rarer words become <unk>", "occurrences", low=1)
    lowercase: bool = _field(False, "lower-case the text")

    def __post_init__(self):
        _check(self)


@dataclass(frozen=True)
class Hyper:
    """Every number that a sweep may change: a pytree of scalars, traced by the step."""

    learning_rate: float = _field(1.0, "SGD's rate in the first epochs", "", above=0)
    decay: float = _field(0.5, "factor on the rate, each epoch after `hold`", "per epoch", above=0, high=1)
    hold: float = _field(4.0, "epochs before the rate decays", "epochs", low=0)
    schedule_offset: float = _field(1.0, "epoch i (from 0) has rate * decay**max(i + offset - hold, 0); older "
                                         "copies of the tutorial use 0", "epochs")
    clip_norm: float = _field(5.0, "largest global norm of the gradient", "", above=0)
    init_scale: float = _field(0.1, "parameters begin uniform in +-this", "", low=0)
    forget_bias: float = _field(0.0, "added to the forget gate before its sigmoid")
    keep_embedding: float = _field(1.0, "probability that an embedded input is kept", "", above=0, high=1)
    keep_output: float = _field(1.0, "probability that a layer's output is kept", "", above=0, high=1)


SECTIONS: dict[str, type] = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig, "hyper": Hyper}


@dataclass(frozen=True)
class Config:
    """A whole run but for its corpus's bytes: four sections and the preset's name."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    hyper: Hyper = field(default_factory=Hyper)
    preset: str = "custom"

    def __post_init__(self):
        _check(self.hyper)
        if not self.model.dropout and (_below_one(self.hyper.keep_embedding) or _below_one(self.hyper.keep_output)):
            raise JaxlmError("keep probabilities below 1 need dropout=True, and dropout is False: set it too")

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, whichever section they live in; unknown names are refused.

        Setting a keep probability below 1 turns dropout on, unless `dropout` is given too.
        """
        if any(_below_one(changes.get(name)) for name in ("keep_embedding", "keep_output")):
            changes.setdefault("dropout", True)
        sections: dict[str, dict] = {name: {} for name in SECTIONS}
        whole = {name: changes.pop(name) for name in ("preset", *SECTIONS) if name in changes}
        for name, value in changes.items():
            sections[section_of(name)][name] = value
        changed = {name: replace(whole.pop(name, getattr(self, name)), **values)
                   for name, values in sections.items()}
        return replace(self, **changed, **whole)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The config that `to_json` wrote. Raises JaxlmError where the text is anything else."""
        tree = _object(text)
        sections = {name: _section(kind, tree.pop(name, {}), name) for name, kind in SECTIONS.items()}
        preset = tree.pop("preset", "custom")
        if tree or not isinstance(preset, str):
            raise JaxlmError(f"a config has the fields {', '.join(SECTIONS)} and preset (a name); "
                             f"this one also has {sorted(tree) or repr(preset)}")
        return Config(**sections, preset=preset)


def hyper_to_json(hyper: Hyper) -> str:
    """`Hyper` alone as JSON."""
    return json.dumps({name: float(value) for name, value in asdict(hyper).items()}, indent=2) + "\n"


def hyper_from_json(text: str) -> Hyper:
    """The `Hyper` that `hyper_to_json` wrote. Raises JaxlmError where the text is anything else."""
    hyper = _section(Hyper, _object(text), "hyper")
    _check(hyper)
    return hyper


def every_field() -> Iterator[tuple[str, Field]]:
    """(section, field) of all fields, in the order that a help page shows them."""
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            yield section, item


def section_of(name: str) -> str:
    """The section that holds a field. Raises JaxlmError for an unknown one, with the nearest name."""
    for section, item in every_field():
        if item.name == name:
            return section
    raise JaxlmError(f"unknown field {name!r}{_nearest(name, [item.name for _, item in every_field()])}")


def differences(a: Config, b: Config) -> list[str]:
    """One line for each field that differs: `section.field: a's value -> b's value`."""
    return [f"{section}.{item.name}: {left!r} -> {right!r}" for section, item in every_field()
            if (left := getattr(getattr(a, section), item.name))
            != (right := getattr(getattr(b, section), item.name))]


def preset(name: str) -> Config:
    """A named recipe: small, zaremba-small, zaremba-medium, zaremba-large, test. JaxlmError if unknown."""
    if name not in PRESETS:
        raise JaxlmError(f"unknown preset {name!r}{_nearest(name, list(PRESETS))}")
    return PRESETS[name]


def _preset(name: str, *, init: float, hidden: tuple[int, ...], embedding: int, keep: float = 1.0, decay: float,
            hold: int, epochs: int, batch: int = 20, steps: int = 20, clip: float = 5.0) -> Config:
    return Config(
        model=ModelConfig(embedding_size=embedding, hidden_sizes=hidden, dropout=keep < 1),
        train=TrainConfig(batch_size=batch, bptt_length=steps, epochs=epochs),
        hyper=Hyper(decay=decay, hold=float(hold), clip_norm=clip, init_scale=init,
                    keep_embedding=keep, keep_output=keep),
        preset=name)


def _below_one(keep: Any) -> bool:
    return isinstance(keep, int | float) and keep < 1


def _check(section: Any) -> None:
    """Type and range of every field; a traced or batched number (not a Python one) passes."""
    for item in fields(section):
        value = getattr(section, item.name)
        if isinstance(item.default, tuple):
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
            object.__setattr__(section, item.name, value)
            if not value:
                raise JaxlmError(f"{item.name} needs at least one number, as in {item.default}; it is empty")
            for one in value:
                _check_scalar(item, int, one)
        elif not isinstance(item.default, float) or isinstance(value, _PYTHON):
            _check_scalar(item, type(item.default), value)


def _check_scalar(item: Field, kind: type, value: Any) -> None:
    if not isinstance(value, (int, float) if kind is float else kind) or (type(value) is bool and kind is not bool):
        raise JaxlmError(f"{item.name} takes {_KINDS[kind]}, as in {item.default!r}; it is {value!r}")
    limits = item.metadata
    if kind in (int, float) and not (abs(value) < math.inf and limits["low"] <= value <= limits["high"]
                                     and value > limits["above"]):
        raise JaxlmError(f"{item.name} must be {_range(limits)}; it is {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise JaxlmError(f"{name} must be {' or '.join(choices)}; it is {value!r}")


_PYTHON = (int, float, bool, str, list, tuple, dict, type(None))
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _range(limits: Mapping[str, Any]) -> str:
    parts = [f"{word} {limits[name]:g}" for name, word in (("above", "above"), ("low", "at least"),
                                                           ("high", "at most")) if math.isfinite(limits[name])]
    return " and ".join(parts) or "finite"


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _object(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JaxlmError(f"expected JSON: {error}") from None
    if not isinstance(tree, dict):
        raise JaxlmError(f"expected a JSON object, found {type(tree).__name__}")
    return tree


def _section(kind: type, values: Any, name: str) -> Any:
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict):
        raise JaxlmError(f"{name} should be a JSON object, not {type(values).__name__}")
    for key in values:
        if key not in known:
            raise JaxlmError(f"unknown field {name}.{key}{_nearest(key, known)}")
    return kind(**values)


PRESETS: dict[str, Config] = {config.preset: config for config in (
    _preset("small", init=0.1, hidden=(256, 128), embedding=200, decay=0.5, hold=4, epochs=15, batch=60),
    _preset("zaremba-small", init=0.1, hidden=(200, 200), embedding=200, decay=0.5, hold=4, epochs=13),
    _preset("zaremba-medium", init=0.05, hidden=(650, 650), embedding=650, keep=0.5, decay=0.8, hold=6,
            epochs=39, steps=35),
    _preset("zaremba-large", init=0.04, hidden=(1500, 1500), embedding=1500, keep=0.35, decay=1 / 1.15, hold=14,
            epochs=55, steps=35, clip=10.0),
    _preset("test", init=0.1, hidden=(2,), embedding=2, decay=0.5, hold=1, epochs=1, steps=2, clip=1.0),
)}
