"""The minLSTM. A layer's parameters: `kernel` [E, 3H] and `bias` [3H], in the order f, i, candidate.

    f, i, n = x W + b        h' = (sigmoid(f) * h + sigmoid(i) * n) / (sigmoid(f) + sigmoid(i))

It is a minGRU whose gate's logit is log sigmoid(i) - log sigmoid(f).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxlm.models.mingru import MinGRU

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class MinLSTM(MinGRU):
    """Minimal LSTM, whose gates depend on the input alone and sum to one (Feng et al. 2024, arXiv:2410.01201)."""

    gates: ClassVar[int] = 3

    def gate_and_candidate(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        import jax
        import jax.numpy as jnp

        forget, write, candidate = jnp.split(z, 3, -1)
        return jax.nn.log_sigmoid(write) - jax.nn.log_sigmoid(forget), candidate
