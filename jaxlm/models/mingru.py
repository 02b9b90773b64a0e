"""The minGRU. A layer's parameters: `kernel` [E, 2H] and `bias` [2H], in the order z, candidate.

    z, n = x W + b        h' = (1 - sigmoid(z)) * h + sigmoid(z) * n

No gate depends on h, so that the whole layer is one associative scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxlm.models.recurrent import CellNoise, Params, Recurrent, torch_biases, uniform

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class MinGRU(Recurrent):
    """Minimal GRU, whose gates depend on the input alone (Feng et al. 2024, arXiv:2410.01201)."""

    gates: ClassVar[int] = 2

    def init_layer(self, key: jax.Array, inputs: int, width: int) -> Params:
        import jax.numpy as jnp

        scale = self.layer_scale(inputs)  # in PyTorch the layer is a Linear, with one bias
        size = self.gates * width
        bias = torch_biases(key, scale, size)[0] if self.torch_init else jnp.zeros(size)
        return {"kernel": uniform(key, scale, inputs, size), "bias": bias}

    def apply_layer(
        self, params: Params, x: jax.Array, state: jax.Array, noise: CellNoise, length: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        import jax

        from jaxlm.ops.bounded_scan import last_step
        from jaxlm.ops.linear_recurrence import linear_recurrence
        from jaxlm.ops.product import product

        gate, candidate = self.gate_and_candidate(product(x, params["kernel"], x.dtype) + params["bias"])
        y = linear_recurrence(jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * candidate, state)
        return y.astype(x.dtype), last_step(y, length)

    def gate_and_candidate(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x W + b [..., gates * H] -> the logit of the gate that writes, and the candidate, [..., H] each."""
        import jax.numpy as jnp

        gate, candidate = jnp.split(z, 2, -1)
        return gate, candidate
