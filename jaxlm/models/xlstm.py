"""xLSTM's cells, the sLSTM and the mLSTM, of N heads with D = H / N units.

(Beck et al. 2024, arXiv:2405.04517.)

The sLSTM. The gates' order is i, f, z, o. Within a gate the heads lie side by side; a head sees its
own h.

    c_t = f_t c_(t-1) + i_t tanh(z_t)        n_t = f_t n_(t-1) + i_t
    h_t = sigmoid(o_t) c_t / n_t

where i_t and f_t are exp and sigmoid of their parts of x_t W + h_(t-1) R + b. The output is norm *
layer_norm(h), head by head. A layer's parameters: `kernel` [E, 4H], `recurrent_kernel` [D, 4H],
`bias` [4H] and `norm` [H].

The mLSTM. The kernel's order is q, k, v, o; that of the gates, one each a head, i, f.

    C_t = f_t C_(t-1) + i_t k_t v_t^T        n_t = f_t n_(t-1) + i_t k_t        p_t = q_t / sqrt(D)
    h_t = C_t^T p_t / max(|n_t . p_t|, 1)        y = sigmoid(o) * norm * layer_norm(h), head by head

where i = exp(x W_i + b_i) and f = sigmoid(x W_f + b_f). A layer's parameters: the kernels of
`MatrixMemory` and their `bias`, `gate` [E, 2 * N], `gate_bias` [2 * N] and `norm` [H].

The carry holds c or C, and n, over exp(m), so that nothing overflows. A layer is the paper's
without what its block has around it: residual, convolution, and feed-forward layer or projections.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.base.fields import number
from jaxlm.models.matrix_memory import MatrixMemory
from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    head_count,
    uniform,
)
from jaxlm.ops.activations import layer_norm, sigmoid
from jaxlm.ops.linear_attention import linear_attention
from jaxlm.ops.product import product
from jaxlm.ops.recurrence import recurrence
from jaxlm.ops.scans import Hidden, Units, last_step


class SLSTMState(NamedTuple):
    """Cell and normaliser, each over exp(m), the stabiliser m, and the output h."""

    c: Hidden
    n: Hidden
    m: Hidden
    h: Hidden


@MODELS.kind("slstm")
class SLSTM(Recurrent):
    """xLSTM's LSTM with exponential gates and a normaliser (Beck et al. 2024, arXiv:2405.04517)."""

    gates = 4
    head_units = 2
    reads_both = True
    heads: int = head_count()

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        from_input, from_state = jax.random.split(key)
        D = width // self.heads
        return {
            "kernel": self.matrix(from_input, inputs, 4 * width),
            "recurrent_kernel": uniform(from_state, self.layer_scale(width), D, 4 * width),
            # As the authors begin f.
            "bias": jnp.zeros((4, self.heads, D)).at[1].set(jnp.linspace(3, 6, D)).ravel(),
            "norm": jnp.ones(width),
        }

    def zero_state(self, zeros, width) -> SLSTMState:
        return SLSTMState(*(zeros(width) for _ in SLSTMState._fields))

    def apply_layer(
        self,
        params,
        x,
        state: SLSTMState,
        noise,
        length,
    ) -> tuple[Units, SLSTMState]:
        D = len(params["recurrent_kernel"])
        by_gate_and_head = params["recurrent_kernel"].reshape(D, 4, -1, D)
        by_head = jnp.moveaxis(by_gate_and_head, 2, 0).reshape(-1, D, 4 * D)
        matrices = {str(head): matrix for head, matrix in enumerate(by_head)}
        z = product(x, params["kernel"], x.dtype) + params["bias"]
        h, state = recurrence(
            partial(_slstm_cell, self.heads), z, matrices, None, state, length, x.dtype
        )
        normed = layer_norm(h.reshape(*h.shape[:2], self.heads, -1)).reshape(h.shape)
        return (params["norm"] * normed).astype(x.dtype), state


def _slstm_cell(
    heads,
    linear,
    state,
    projected,
    _,
):
    c, n, m, h = state
    products = []  # [B, 4 * D] of each head
    for head, h_of_head in enumerate(jnp.split(h, heads, -1)):
        products.append(linear(str(head), h_of_head))
    by_head_and_gate = jnp.stack(products, 1).reshape(len(h), heads, 4, -1)
    recurrent = by_head_and_gate.swapaxes(1, 2).reshape(projected.shape)
    i, f, z, o = jnp.split(projected + recurrent, 4, -1)
    # Before the first step there is nothing to keep.
    f = jnp.where(n == 0, -jnp.inf, jax.nn.log_sigmoid(f) + m)
    # It scales both sides of c / n, so that it has no gradient.
    m = jax.lax.stop_gradient(jnp.maximum(i, f))
    i = jnp.exp(i - m)
    f = jnp.exp(f - m)
    c = f * c + i * jnp.tanh(z)
    n = f * n + i
    h = sigmoid(o) * c / n
    return SLSTMState(c, n, m, h), h


class MLSTMState(NamedTuple):
    """C, keys by values, n and m."""

    C: Float[Array, "B N K D"]
    n: Float[Array, "B N K"]
    m: Float[Array, "B N"]


@MODELS.kind("mlstm")
class MLSTM(MatrixMemory):
    """xLSTM's layer with a matrix as memory and exponential gates (arXiv:2405.04517)."""

    reads_both = True
    gate_cap: float | None = number(
        15.0,
        "i and f before their exponentials stay within +-this, by a tanh (none: no limit; "
        "arXiv:2503.13427)",
        above=0,
        optional=True,
    )

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        of_kernel, of_gate = jax.random.split(key)
        N = self.heads
        return {
            **self.init_kernels(of_kernel, inputs, width),
            "bias": jnp.zeros(2 * self.key_size(width) + 2 * width),
            "gate": self.matrix(of_gate, inputs, 2 * N),
            # As the authors begin f.
            "gate_bias": jnp.concatenate([jnp.zeros(N), jnp.linspace(3, 6, N)]),
            "norm": jnp.ones(width),
        }

    def zero_state(self, zeros, width) -> MLSTMState:
        D = width // self.heads
        K = self.key_units or D
        return MLSTMState(zeros(self.heads, K, D), zeros(self.heads, K), zeros(self.heads))

    def apply_layer(
        self,
        params,
        x,
        state: MLSTMState,
        noise,
        length,
    ) -> tuple[Units, MLSTMState]:
        H = len(params["norm"])
        K = self.key_size(H)
        projected = product(x, self.whole_kernel(params), x.dtype) + params["bias"]
        *qkv, o = jnp.split(projected, [K, 2 * K, 2 * K + H], -1)
        q, k, v = map(self.by_head, qkv)
        gates = product(x, params["gate"], x.dtype) + params["gate_bias"]
        if self.gate_cap is not None:
            gates = self.gate_cap * jnp.tanh(gates / self.gate_cap)
        i, f = jnp.split(gates, 2, -1)
        f = jax.nn.log_sigmoid(f)
        # m_t = max(f_t + m_(t-1), i_t). It scales both sides of the quotient: no gradient.
        summed = jnp.cumsum(f, 0)
        m = jax.lax.stop_gradient(summed + jnp.maximum(state.m, jax.lax.cummax(i - summed)))
        decay = f + jnp.concatenate([state.m[None], m[:-1]]) - m
        q = q * q.shape[-1] ** -0.5
        k = k * jnp.exp(i - m)[..., None]
        # n is what C would hold of one more value, which is always 1: the last column of S.
        ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
        S = jnp.concatenate([state.C, state.n[..., None]], -1)
        v = jnp.concatenate([v, ones], -1)
        h, S = linear_attention(q, k, v, decay[..., None], S, None, length, x.dtype)
        h = h[..., :-1] / (jnp.maximum(jnp.abs(h[..., -1:]), jnp.exp(-m)[..., None]) + 1e-6)
        y = jax.nn.sigmoid(o) * params["norm"] * layer_norm(h).reshape(o.shape)
        return y.astype(x.dtype), MLSTMState(S[..., :-1], S[..., -1], last_step(m, length))
