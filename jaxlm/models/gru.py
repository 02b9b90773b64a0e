"""The GRU. A layer's parameters: `kernel` [E, 3H], `recurrent_kernel` [H, 3H], `bias` [3H] and `recurrent_bias` [H].

The gates' order is r, z, n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxlm.models.recurrent import CellNoise, Params, Recurrent, torch_biases, uniform, weight_drop

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class GRU(Recurrent):
    """Gated recurrent unit, the variant of cuDNN and PyTorch (Cho et al. 2014, arXiv:1406.1078)."""

    gates: ClassVar[int] = 3
    keep_recurrent_weights: float | None = weight_drop()

    def init_layer(self, key: jax.Array, inputs: int, width: int) -> Params:
        import jax
        import jax.numpy as jnp

        from_input, from_state = jax.random.split(key)
        scale, bias, recurrent_bias = self.layer_scale(width), jnp.zeros(3 * width), jnp.zeros(width)
        if self.torch_init:  # h's bias of the candidate, which the reset gate multiplies, is one of its own
            of_x, of_h = torch_biases(key, scale, 3 * width)
            bias, recurrent_bias = of_x + of_h.at[-width:].set(0), of_h[-width:]
        return {
            "kernel": uniform(from_input, scale, inputs, 3 * width),
            "bias": bias,
            "recurrent_kernel": uniform(from_state, scale, width, 3 * width),
            "recurrent_bias": recurrent_bias,
        }

    def apply_layer(
        self, params: Params, x: jax.Array, state: jax.Array, noise: CellNoise, length: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        from jaxlm.ops.gru import gru

        return gru(x, **params, h=state, length=length)

    def change_recurrent(self, params: Params, width: int, change: Callable[[jax.Array], jax.Array]) -> Params:
        return {**params, "recurrent_kernel": change(params["recurrent_kernel"])}
