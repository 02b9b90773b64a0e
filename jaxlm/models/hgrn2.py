"""The HGRN2 (Qin et al. 2024, arXiv:2404.07904).

    q, f, v = rms_norm(x) W        a = bound + (1 - bound) sigmoid(f)
    S' = diag(a) S + (1 - a) v^T        y = rms_norm(S'^T silu(q)), S head by head

The layer has the activations and norms of the paper's language models. Their output projection is
left to the next layer's kernel; residual connection and GLU belong to the paper's stack. The
paper's lower bounds are learned and grow from layer to layer, from zero; here the bound is one
number.

A layer's parameter is `kernel` [E, 3H], of q, f and v.
"""

import jax
import jax.numpy as jnp

from jaxlm.base.fields import number
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    head_count,
)
from jaxlm.ops.activations import rms_norm
from jaxlm.ops.linear_attention import KeyValues, linear_attention
from jaxlm.ops.product import product
from jaxlm.ops.scans import Units


@MODELS.kind("hgrn2")
class HGRN2(Recurrent):
    """Gated linear RNN; a head's state is a matrix, decayed row by row (arXiv:2404.07904)."""

    gates = 3
    heads: int = head_count()
    lower_bound: float = number(
        0.0, "least share of the state that each step keeps", low=0, below=1
    )

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        return {"kernel": self.matrix(key, inputs, 3 * width)}

    def zero_state(self, zeros, width) -> KeyValues:
        """S, gates by values, of N heads with D = H / N units."""
        return zeros(self.heads, width // self.heads, width // self.heads)

    def apply_layer(
        self,
        params,
        x,
        state: KeyValues,
        noise,
        length,
    ) -> tuple[Units, KeyValues]:
        z = product(self.normalized(x, state.dtype), params["kernel"], x.dtype)
        q, f, v = jnp.split(z.reshape(*x.shape[:2], 3 * self.heads, -1), 3, 2)
        log_a = jnp.logaddexp(
            jnp.log(self.lower_bound), jnp.log1p(-self.lower_bound) + jax.nn.log_sigmoid(f)
        )
        k = (1 - self.lower_bound) * jax.nn.sigmoid(-f)
        y, state = linear_attention(
            jax.nn.silu(q), k, v, log_a, state, length=length, dtype=x.dtype
        )
        return rms_norm(y.reshape(*x.shape[:2], -1)).astype(x.dtype), state
