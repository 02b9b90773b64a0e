"""The Mogrifier LSTM (Melis et al. 2020, arXiv:1909.01792).

A layer's parameters are `kernel`, `bias`, `rounds` and `norms`, as in `ops/mogrifier.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, Scalar

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import choice, count, flag, number, probability
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    longest_memory,
    state_dropout,
    uniform,
    weight_drop,
)
from jaxlm.ops.dropout import Kept
from jaxlm.ops.lstm import LSTMState
from jaxlm.ops.mogrifier import Limits, mogrifier
from jaxlm.ops.scans import Hidden, Units


def rounds(default: int) -> Any:
    """The field `rounds`, for kinds whose input and state gate each other.

    Args:
        default: How often they do by default.
    """
    return count(
        default,
        "how often input and state gate each other, the input first (0: not)",
        "rounds",
        high=100,  # tracing more takes minutes
    )


@dataclass(frozen=True)
class WithRounds(Recurrent):
    """What the LSTMs share whose input and state gate each other, before the gates read them."""

    rounds: int = rounds(0)
    rank: int = count(0, "rank of the matrices of a round, as products of two (0: full matrices)")
    forget_bias: float = number(0.0, "the forget gates' bias at the start; it is trained")
    longest_memory: float | None = longest_memory(excludes=("forget_bias",))

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        super().check()
        widths = {"embedding_size": self.embedding_size, "hidden_sizes": min(self.hidden_sizes)}
        if self.inner_size:
            widths["inner_size"] = self.inner_size
        name = min(widths, key=lambda name: widths[name])
        if self.rank > widths[name]:
            raise JaxlmError(
                f"rank must be at most the width of what a round gates: rank is {self.rank}, and "
                f"{name} has {widths[name]}; rank 0 is full matrices"
            )

    def init_rounds(
        self,
        keys: Sequence[PRNGKeyArray],
        inputs: int,
        width: int,
    ) -> list[Params]:
        """Fresh weights of a layer's rounds: even ones gate the input, odd ones the state.

        Args:
            keys: One a round.
            inputs: E.
            width: H.
        """
        scale = self.layer_scale(width)
        rounds = []
        for place, key in enumerate(keys):
            if place % 2 == 0:
                weights = _init_round(key, scale, self.rank, width, inputs)
            else:
                weights = _init_round(key, scale, self.rank, inputs, width)
            rounds.append(weights)
        return rounds

    zero_state = LSTM.zero_state


@MODELS.kind("mogrifier")
class Mogrifier(WithRounds):
    """LSTM whose input and state gate each other before its gates (arXiv:1909.01792)."""

    rounds: int = rounds(5)
    input_gate: str = choice(
        "free",
        "what the input gate i is, given the forget gate f: free, capped (min(i, 1 - f)) or "
        "coupled (1 - f)",
        ("free", "capped", "coupled"),
    )
    cell_clip: float | None = number(
        None,
        "clips the cell state that is carried to the next step to +-this (none: no clipping)",
        above=0,
    )
    layer_norm: bool = flag(
        False, "normalise the gates and the cell over a layer's units (arXiv:1607.06450)"
    )
    keep_recurrent_weights: float | None = weight_drop()
    keep_state: float | None = state_dropout()
    keep_update: float | None = probability(
        "a unit of what is written to the cell, tanh(j), is kept, drawn once a window (none: no "
        "dropout; arXiv:1603.05118)"
    )

    @property
    def gates(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A coupled input gate has no matrix of its own."""
        if self.input_gate == "coupled":
            return 3
        return 4

    @property
    def head_units(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A norm over one unit leaves at most its sign."""
        if self.layer_norm:
            return 2
        return 1

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        kernel_key, *keys = jax.random.split(key, self.rounds + 1)
        scale = self.layer_scale(width)
        size = self.gates * width
        bias = self.initial_bias(key, self.gates, width)
        forget = self.forget_bias + self.memory_biases(key, width)
        layer = {
            "kernel": uniform(kernel_key, scale, inputs + width, size),
            "bias": bias.at[-2 * width : -width].add(forget),
            "rounds": self.init_rounds(keys, inputs, width),
        }
        if self.layer_norm:
            layer["norms"] = {
                "input": jnp.ones(size),
                "state": jnp.ones(size),
                "cell": jnp.ones(width),
                "cell_bias": jnp.zeros(width),
            }
        return layer

    def apply_layer(
        self,
        params,
        x,
        state: LSTMState,
        noise,
        length,
    ) -> tuple[Units, LSTMState]:
        limits = Limits(
            self.cell_clip,
            scale_of_mask(noise.kept, self.keep_state),
            self.update_scale(noise.updated),
            length,
        )
        return mogrifier(x, params, state, self.input_gate, limits)

    def update_scale(self, updated: Kept) -> Hidden | float | None:
        """The factor on what is written to the cell, given which units are written; None: 1."""
        return scale_of_mask(updated, self.keep_update)


def _init_round(
    key: PRNGKeyArray,
    scale: Scalar | float,
    rank: int,
    inputs: int,
    outputs: int,
) -> Params:
    """One round's weights: a full matrix, or two of `rank`.

    The product of the two has elements of the full matrix's variance.
    """
    if not rank:
        return {"full": uniform(key, scale, inputs, outputs), "bias": jnp.zeros(outputs)}
    of_left, of_right = jax.random.split(key)
    factor = (3 / (rank * scale**2 + 1e-30)) ** 0.25
    left = factor * uniform(of_left, scale, inputs, rank)
    right = factor * uniform(of_right, scale, rank, outputs)
    return {"left": left, "right": right, "bias": jnp.zeros(outputs)}


def scale_of_mask(kept: Kept, keep: Scalar | float | None) -> Hidden | None:
    """The factor that applies a mask: 1 / keep where a unit is kept, else 0; None without a mask.

    Args:
        kept: The mask.
        keep: The probability that a unit is kept.
    """
    if kept is None or keep is None:
        return None
    return jnp.where(kept, 1 / keep, 0)
