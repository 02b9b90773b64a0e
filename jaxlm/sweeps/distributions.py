"""What a field of a space is drawn from: listed values, or an interval.

Values are kept as JSON has them; a tuple of widths is the text 256x128. Nothing here builds a list of all values: an
interval knows how many it has, which is the nth, and how to draw one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Values:
    """One of the listed values."""

    values: tuple[Any, ...]

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that are within a field's limits only if all are."""
        return self.values

    def nth(self, place: int) -> Any:
        """The value at a place, from 0."""
        return self.values[place]

    def draw(self, random: np.random.Generator) -> Any:
        """A value, each equally probable."""
        return self.values[int(random.integers(len(self.values)))]

    def to_json(self) -> Any:
        """JSON's form, which `read_space` reads."""
        return list(self.values)

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


@dataclass(frozen=True)
class Interval:
    """A number from low to high, both included: whole where they are; with `log`, uniform in the logarithm.

    `high` is a whole number of steps above `low` where there is a step. Whole numbers have the step 1 at least.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """How many values there are; None where a grid has no end."""
        if self.log or self.step is None:
            return None
        return (
            (int(self.high) - int(self.low)) // int(self.step) + 1
            if self.whole
            else round((self.high - self.low) / self.step) + 1
        )

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that are within a field's limits only if all are."""
        return self.low, self.high

    def nth(self, place: int) -> int | float:
        """The value at a place, from 0, of those that `count` counts."""
        value = self.low + place * (self.step or 0)
        return value if self.whole else max(self.low, min(self.high, float(f"{value:.12g}")))

    def draw(self, random: np.random.Generator) -> int | float:
        """A value, drawn uniformly from the numbers, from the steps, or from the logarithms."""
        if self.log:
            half = 0.5 if self.whole else 0.0
            value = math.exp(random.uniform(math.log(self.low - half), math.log(self.high + half)))
            return max(self.low, min(self.high, round(value) if self.whole else value))
        if (count := self.count) is not None:
            return self.nth(int(random.integers(count)))
        return max(self.low, min(self.high, random.uniform(self.low, self.high)))

    def to_json(self) -> Any:
        """JSON's form, which `read_space` reads."""
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}

    def __str__(self) -> str:
        how = "log" if self.log else "uniform" if self.step is None else "range"
        return f"{how}:{self.low:g}:{self.high:g}" + ("" if how != "range" else f":{self.step:g}")


Distribution = Values | Interval
Space = dict[str, Distribution]
