"""xLSTM's sLSTM.

The gates' order is i, f, z, o. Within a gate the N heads of D = H / N units lie side by side; a head sees its own h.

    c_t = f_t c_(t-1) + i_t tanh(z_t)        n_t = f_t n_(t-1) + i_t        h_t = sigmoid(o_t) c_t / n_t

where i_t and f_t are exp and sigmoid of their parts of x_t W + h_(t-1) R + b. The carry holds c and n over exp(m), so
that nothing overflows. The output is norm * layer_norm(h), head by head. The layer is the paper's without what its
block has around it: residual, convolution and feed-forward layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict

from jaxlm.models.recurrent import CellNoise, Recurrent, head_count, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PRNGKeyArray

    from jaxlm.ops.recurrence import Linear
    from jaxlm.ops.scans import Length

    class Layer(TypedDict):  # its parameters
        kernel: Float[Array, "E 4*H"]
        recurrent_kernel: Float[Array, "D 4*H"]
        bias: Float[Array, " 4*H"]
        norm: Float[Array, " H"]


class SLSTMState(NamedTuple):
    """Cell and normaliser, each over exp(m), the stabiliser m, and the output h."""

    c: Float[Array, "B H"]
    n: Float[Array, "B H"]
    m: Float[Array, "B H"]
    h: Float[Array, "B H"]


@dataclass(frozen=True)
class SLSTM(Recurrent):
    """xLSTM's LSTM with exponential gates and a normaliser (Beck et al. 2024, arXiv:2405.04517)."""

    gates: ClassVar[int] = 4
    head_units: ClassVar[int] = 2
    heads: int = head_count()

    def init_layer(self, key: PRNGKeyArray, inputs: int, width: int) -> Layer:
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

        return SLSTMState(*jnp.zeros((4, rows, width), dtype))

    def apply_layer(
        self, params: Layer, x: Float[Array, "T B E"], state: SLSTMState, noise: CellNoise, length: Length
    ) -> tuple[Float[Array, "T B H"], SLSTMState]:
        import jax.numpy as jnp

        from jaxlm.ops.activations import layer_norm
        from jaxlm.ops.product import product
        from jaxlm.ops.recurrence import recurrence

        D = len(params["recurrent_kernel"])
        of_heads = jnp.moveaxis(params["recurrent_kernel"].reshape(D, 4, -1, D), 2, 0).reshape(-1, D, 4 * D)
        matrices = {str(head): matrix for head, matrix in enumerate(of_heads)}
        z = product(x, params["kernel"], x.dtype) + params["bias"]
        h, state = recurrence(partial(_cell, self.heads), z, matrices, None, state, length, x.dtype)
        heads = layer_norm(h.reshape(*h.shape[:2], self.heads, -1))
        return (params["norm"] * heads.reshape(h.shape)).astype(x.dtype), state


def _cell(
    heads: int, linear: Linear, state: SLSTMState, projected: Float[Array, "B 4*H"], _: None
) -> tuple[SLSTMState, Float[Array, "B H"]]:
    import jax
    import jax.numpy as jnp

    from jaxlm.ops.activations import sigmoid

    c, n, m, h = state
    of_heads = [linear(str(head), part) for head, part in enumerate(jnp.split(h, heads, -1))]
    recurrent = jnp.stack(of_heads, 1).reshape(h.shape[0], heads, 4, -1).swapaxes(1, 2).reshape(projected.shape)
    i, f, z, o = jnp.split(projected + recurrent, 4, -1)
    f = jnp.where(n == 0, -jnp.inf, jax.nn.log_sigmoid(f) + m)  # before the first step there is nothing to keep
    m = jax.lax.stop_gradient(jnp.maximum(i, f))  # it scales both sides of c / n, so that it has no gradient
    i, f = jnp.exp(i - m), jnp.exp(f - m)
    c, n = f * c + i * jnp.tanh(z), f * n + i
    h = sigmoid(o) * c / n
    return SLSTMState(c, n, m, h), h
