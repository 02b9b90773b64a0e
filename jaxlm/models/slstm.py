"""xLSTM's sLSTM. A layer's parameters: `kernel` [E, 4H], `recurrent_kernel` [D, 4H], `bias` [4H] and `norm` [H].

The gates' order is i, f, z, o. Within a gate the N heads of D = H / N units lie side by side; a head sees its own h.

    c_t = f_t c_(t-1) + i_t tanh(z_t)        n_t = f_t n_(t-1) + i_t        h_t = sigmoid(o_t) c_t / n_t

where i_t and f_t are exp and sigmoid of their parts of x_t W + h_(t-1) R + b. The carry holds c and n over exp(m), so
that nothing overflows. The output is norm * layer_norm(h), head by head. The layer is the paper's without what its
block has around it: residual, convolution and feed-forward layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxlm.models.recurrent import CellNoise, Params, Recurrent, head_count, uniform

if TYPE_CHECKING:
    import jax

    from jaxlm.ops.slstm import SLSTMState


@dataclass(frozen=True)
class SLSTM(Recurrent):
    """xLSTM's LSTM with exponential gates and a normaliser (Beck et al. 2024, arXiv:2405.04517)."""

    gates: ClassVar[int] = 4
    head_units: ClassVar[int] = 2
    heads: int = head_count()

    def init_layer(self, key: jax.Array, inputs: int, width: int) -> Params:
        import jax
        import jax.numpy as jnp

        from_input, from_state = jax.random.split(key)
        D = width // self.heads
        return {
            "kernel": uniform(from_input, self.layer_scale(inputs), inputs, 4 * width),
            "recurrent_kernel": uniform(from_state, self.layer_scale(width), D, 4 * width),
            "bias": jnp.zeros((4, self.heads, D)).at[1].set(jnp.linspace(3, 6, D)).ravel(),  # as the authors begin f
            "norm": jnp.ones(width),
        }

    def zero_state(self, rows: int, width: int, dtype: Any) -> SLSTMState:
        import jax.numpy as jnp

        from jaxlm.ops.slstm import SLSTMState

        return SLSTMState(*jnp.zeros((4, rows, width), dtype))

    def apply_layer(
        self, params: Params, x: jax.Array, state: SLSTMState, noise: CellNoise, length: jax.Array | None
    ) -> tuple[jax.Array, SLSTMState]:
        from jaxlm.ops.norm import layer_norm
        from jaxlm.ops.slstm import slstm

        h, state = slstm(x, params["kernel"], params["recurrent_kernel"], params["bias"], state, length)
        heads = layer_norm(h.reshape(*h.shape[:2], self.heads, -1))
        return (params["norm"] * heads.reshape(h.shape)).astype(x.dtype), state
