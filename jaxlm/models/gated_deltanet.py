"""Gated DeltaNet.

x is rms_norm of the input. The kernel's order is q, k, v, output gate; that of the gates, one each
a head, alpha, beta. q, k and v pass a convolution over time and SiLU; q and k have unit length in
each head. With D = H / N units a head:

    S_t = alpha_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T        h_t = S_t^T q_t / sqrt(D)
    y = norm * rms_norm(h) * SiLU(gate), head by head

where log alpha = -exp(rate) softplus(x W_alpha + time_step) and beta = sigmoid(x W_beta). The layer
is the paper's, with the norm of its block and without its output projection: the next layer's
kernel or the softmax multiplies the outputs in any case.

A layer's parameters: the kernels of `MatrixMemory`, `convolution` [4, C] of q, k and v, `gate`
[E, 2 * N], `rate` [N], `time_step` [N] and `norm` [H].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.base.fields import flag
from jaxlm.models.matrix_memory import MatrixMemory
from jaxlm.models.recurrent import MODELS, Params, uniform
from jaxlm.ops.activations import rms_norm, unit_norm
from jaxlm.ops.linear_attention import linear_attention
from jaxlm.ops.product import product
from jaxlm.ops.scans import Units, short_convolution

TAPS = 4  # steps that the convolution sees


class DeltaState(NamedTuple):
    """S, keys by values, and the last inputs of the convolution."""

    S: Float[Array, "B N K D"]
    inputs: Float[Array, "B 3 C"]


@MODELS.kind("gated-deltanet")
class GatedDeltaNet(MatrixMemory):
    """A matrix as memory, decayed by a gate, written by the delta rule (arXiv:2412.06464)."""

    negative_eigenvalues: bool = flag(
        False,
        "beta reaches up to 2, so that a step's matrix has eigenvalues down to -1 "
        "(arXiv:2411.12537)",
    )

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        keys = jax.random.split(key, 5)
        N = self.heads
        convolved = 2 * self.key_size(width) + width
        # The decay begins as Mamba-2's.
        step = 10 ** jax.random.uniform(keys[0], (N,), minval=-3.0, maxval=-1.0)
        return {
            **self.init_kernels(keys[1], inputs, width),
            "convolution": uniform(keys[2], TAPS**-0.5, TAPS, convolved),  # as PyTorch's
            "gate": self.matrix(keys[3], inputs, 2 * N),
            "rate": jnp.log(jax.random.uniform(keys[4], (N,), minval=1.0, maxval=16.0)),
            "time_step": jnp.log(jnp.expm1(step)),
            "norm": jnp.ones(width),
        }

    def zero_state(self, zeros, width) -> DeltaState:
        D = width // self.heads
        return DeltaState(
            zeros(self.heads, self.key_units or D, D),
            zeros(TAPS - 1, 2 * self.key_size(width) + width),
        )

    def apply_layer(
        self,
        params,
        x,
        state: DeltaState,
        noise,
        length,
    ) -> tuple[Units, DeltaState]:
        n = self.normalized(x, state.S.dtype)
        H = len(params["norm"])
        K = self.key_size(H)
        projected = product(n, self.whole_kernel(params), x.dtype)
        qkv, gate = jnp.split(projected, [2 * K + H], -1)
        convolved, inputs = short_convolution(qkv, params["convolution"], 0.0, state.inputs, length)
        q, k, v = map(self.by_head, jnp.split(jax.nn.silu(convolved), [K, 2 * K], -1))
        alpha, beta = jnp.split(product(n, params["gate"], x.dtype)[..., None], 2, 2)
        log_decay = -jnp.exp(params["rate"])[:, None] * jax.nn.softplus(
            alpha + params["time_step"][:, None]
        )
        q = unit_norm(q) * q.shape[-1] ** -0.5
        k = unit_norm(k)
        beta = jax.nn.sigmoid(beta)
        if self.negative_eigenvalues:
            beta = 2 * beta
        h, S = linear_attention(q, k, v, log_decay, state.S, beta, length, x.dtype)
        epsilon = 1e-5 if self.block == "plain" else 1e-6
        y = params["norm"] * rms_norm(h, epsilon).reshape(gate.shape) * jax.nn.silu(gate)
        return y.astype(x.dtype), DeltaState(S, inputs)
