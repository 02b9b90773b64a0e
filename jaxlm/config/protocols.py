"""The evaluation protocols, each a frozen dataclass of its numbers (traced) and counts (static).

A protocol says how a trained model turns a stream of tokens into probabilities. It belongs to an
evaluation, not to a run, so that it is no part of the config. (`lambda` is a word of Python: its
field is `lambda_`, its flag `--lambda`.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import (
    Section,
    checked,
    choice,
    count,
    either,
    nearest,
    number,
    setting_text,
    specs,
    text,
)
from jaxlm.base.kinds import Kinds

Grid = Mapping[str, tuple[float, ...]]  # the values that tuning tries, by field


PROTOCOLS = Kinds[Any]()


@PROTOCOLS.kind("plain")
class Plain(Section):
    """The model's own probabilities.

    Attributes:
        grid: The values that tuning tries, by field.
    """

    grid: ClassVar[Grid] = {}


@dataclass(frozen=True, kw_only=True)
class Mixable(Plain):
    """A protocol of a network that others may join: p = (1 - sum_k w_k) p + sum_k w_k p_k.

    The cache looks as without the others; dynamic evaluation changes each network.
    """

    with_: str = text(
        "", "directories, with commas between, of n-gram models or runs to interpolate with"
    )
    weight: tuple[float, ...] = number(
        (0.2,),
        "weight of each of them, with commas between; the network has the rest",
        low=0,
        high=1,
    )

    @property
    def others(self) -> tuple[str, ...]:
        """The directories of the other models."""
        return tuple(filter(None, self.with_.split(",")))

    @property
    def mixes(self) -> bool:
        """Whether another model is named."""
        return self.with_ != ""

    def check(self) -> None:
        """Raises JaxlmError for weights of no model, or of more than the whole."""
        if not self.mixes and self.weight != Mixable.weight:
            raise JaxlmError("weight is that of another model: name its directory by `with` too")
        if sum(self.weight) > 1 + 1e-6:
            raise JaxlmError(
                f"the weights of other models sum to {sum(self.weight):g}: at most 1, of which the "
                "network has the rest"
            )


@PROTOCOLS.kind("cache")
class Cache(Mixable):
    """Neural cache: recent words after similar features are likelier (arXiv:1612.04426)."""

    grid: ClassVar[Grid] = {
        "theta": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
        "lambda_": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
    }
    cache_window: int = count(500, "words that the cache remembers", "words", low=1, high=2**20)
    theta: float = number(
        1.0, "sharpness of the likeness: factor of the features' inner product", low=0, high=10**6
    )
    lambda_: float = number(0.1, "weight of the cache; the model has the rest", low=0, below=1)
    compatibility: str = choice(
        "none", "awd-lstm repeats the quirks of awd-lstm-lm's pointer.py", ("none", "awd-lstm")
    )
    cache_chunk: int = count(
        5000, "tokens that pointer.py reads at a time (--compatibility awd-lstm)", "tokens", low=1
    )


@PROTOCOLS.kind("interpolation")
class Interpolation(Mixable):
    """The network interpolated with models of the same tokens: n-grams (`jaxlm ngram`) or runs."""

    # Tuning finds the weights of the whole mixture by expectation maximisation on valid.
    grid: ClassVar[Grid] = {"weight": (0.0, 1.0)}

    @property
    def mixes(self) -> bool:
        """True: where no other model is named, the reader asks for one."""
        return True


@PROTOCOLS.kind("dynamic")
class Dynamic(Mixable):
    """Dynamic evaluation: learn from each segment once it is scored (arXiv:1709.07432)."""

    RMS_GRID: ClassVar[Grid] = {
        "learning_rate": (1e-5, 2e-5, 3e-5, 5e-5, 7e-5, 1e-4),
        "lambda_": (1e-3, 2e-3, 3e-3, 5e-3),
    }
    SGD_GRID: ClassVar[Grid] = {
        "learning_rate": (0.01, 0.03, 0.1, 0.3, 1.0),
        "lambda_": (0.0, 1e-3, 3e-3, 1e-2),
    }
    rule: str = choice(
        "rms",
        "rms divides by the size of the training text's gradients, sgd does not",
        ("rms", "sgd"),
    )
    learning_rate: float = number(
        5e-5, "rate of a step; by rms minGRU's blocks learn best at 2e-5", low=0
    )
    lambda_: float = number(
        0.002, "rate of the decay back to the trained parameters", low=0, high=1
    )
    epsilon: float = number(2e-5, "added to the gradients' size (rms)", above=0)
    segment_length: int = count(
        5, "tokens that are scored, then learnt", "tokens", low=1, high=2**16
    )
    statistics_rows: int = count(
        100, "rows of the training text, read for the gradients' size (rms)", "rows", low=1
    )
    statistics_windows: int = count(
        0, "most windows read for the gradients' size (rms; 0: all)", "windows"
    )
    compatibility: str = choice(
        "none",
        "krause repeats the quirks of the paper's code, lamb those of the Mogrifier's",
        ("none", "krause", "lamb"),
    )

    def check(self) -> None:
        """Raises JaxlmError, also for rule sgd with the quirks of a code that has no such rule."""
        super().check()
        if self.rule == "sgd" and self.compatibility != "none":
            raise JaxlmError(
                f"compatibility {self.compatibility} repeats a code that has no rule sgd: leave "
                "one out"
            )

    @property
    def as_krause(self) -> bool:
        """Whether parameters are learnt tensor by tensor, as PyTorch's layers have them."""
        return self.compatibility == "krause"

    @property
    def grid(self) -> Grid:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The values that tuning tries: rates of the rule, and decays."""
        if self.rule == "sgd":
            return self.SGD_GRID
        return self.RMS_GRID


@PROTOCOLS.kind("temperature")
class Temperature(Mixable):
    """The softmax at another temperature: p^(1 / temperature), normalised (arXiv:1706.04599)."""

    grid: ClassVar[Grid] = {"temperature": (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)}
    temperature: float = number(1.0, "divides the logits", low=1e-6)


@PROTOCOLS.kind("mc")
class MCDropout(Mixable):
    """Monte Carlo dropout: the mean of networks with dropout (arXiv:1512.05287)."""

    grid: ClassVar[Grid] = {"dropout_factor": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    samples: int = count(10, "networks drawn", "networks", low=1, high=2**16)
    seed: int = count(0, "seed of the dropout masks", high=2**32 - 1)
    dropout_factor: float = number(
        1.0, "factor of the rates of dropout that masks are drawn with", above=0, high=1000
    )


def protocol_of(protocol: "str | Plain | None" = None, **values: Any) -> Plain:
    """Returns a protocol with some fields changed.

    Args:
        protocol: A protocol, or the name of one; None: plain.
        **values: Fields of the protocol, and their values.

    Returns:
        The protocol, its values checked.

    Raises:
        JaxlmError: The name or a field is unknown, or a value is outside its limits.
    """
    chosen = "plain" if protocol is None else protocol
    if isinstance(chosen, str) and chosen in PROTOCOLS:
        chosen = PROTOCOLS[chosen]()
    if isinstance(chosen, str) or type(chosen) not in PROTOCOLS.values():
        raise JaxlmError(
            f"protocol must be {either(list(PROTOCOLS))}, or an object of theirs, such as Cache(); "
            f"it is {chosen!r:.200}"
        )
    known = specs(type(chosen))
    for name in values:
        owners = [owner for owner, kind in PROTOCOLS.items() if name in specs(kind)]
        if name not in known and owners:
            raise JaxlmError(
                f"{name.rstrip('_')} belongs to the protocol {either(owners)}, and the protocol is "
                f"{chosen.kind_name}: leave it out, or choose that protocol"
            )
        if name not in known:
            near = nearest(name, list(known))
            raise JaxlmError(f"the protocol {chosen.kind_name} has no {name!r}{near}")
    return checked(replace(chosen, **values))


def described(protocol: Plain) -> str:
    """The protocol and all of its fields in words, as in `cache (window 500, ...)`."""
    fields = {name: value for name, value in vars(protocol).items() if value != "none"}
    if not fields.get("with_"):
        fields.pop("with_", None)
        fields.pop("weight", None)
    values = [f"{name.rstrip('_')} {setting_text(value)}" for name, value in fields.items()]
    if values:
        return f"{protocol.kind_name} ({', '.join(values)})"
    return protocol.kind_name
