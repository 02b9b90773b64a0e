"""Hawk's recurrent block: a gate beside a short convolution and the RG-LRU.

(De et al. 2024, arXiv:2402.19427.)

    n = rms_norm(x)        u = conv(n W_x + b_x)        i, r = sigmoid(u G + g)
    a = exp(-8 r softplus(decay))        h' = a * h + sqrt(1 - a^2) * (i * u)
    y = (gelu(n W_y + b_y) * h') W_o + b_o

A layer is the recurrent block of the paper's Figure 2 and the norm before the block, whose learned
scale is a part of W_x and W_y; the residual connection and the MLP belong to the paper's stack.
There are N heads with D = H / N units each. The published code resets h at a document's first token
and adds i * u there without the root; here a text is one stream, which begins with h = 0.

A layer's parameters: `x_kernel` and `y_kernel` [E, H], `output_kernel` [H, H], `convolution` [4, H]
and `gates` [N, D, 2 * D] (i before r), each with its bias; and `decay` [H].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlm.models.recurrent import (
    MODELS,
    Params,
    Recurrent,
    head_count,
    uniform,
)
from jaxlm.ops.product import contraction, product
from jaxlm.ops.scans import (
    Units,
    last_step,
    linear_recurrence,
    short_convolution,
)

REACH = 4  # steps that the convolution reads


@MODELS.kind("hawk")
class Hawk(Recurrent):
    """Hawk: a real-gated linear recurrent unit behind a convolution (arXiv:2402.19427)."""

    gates = 1
    heads: int = head_count()

    def init_layer(
        self,
        key,
        inputs,
        width,
    ) -> Params:
        of_decay, *keys = jax.random.split(key, 6)
        N = self.heads
        D = width // self.heads
        shapes = {
            "x_kernel": (inputs, width),
            "y_kernel": (inputs, width),
            "output_kernel": (width, width),
            "convolution": (REACH, width),
            "gates": (N, D, 2 * D),
        }
        params = {
            name: uniform(key, self.layer_scale(shape[-2]), *shape)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        biases = {f"{name}_bias": jnp.zeros(width) for name in ("x", "y", "output", "convolution")}
        # At r = 1/8 a lies in 0.9 to 0.999, as in recurrentgemma; in the paper it does at r = 1.
        squares = jax.random.uniform(of_decay, (width,), minval=0.9**2, maxval=0.999**2)
        return {
            **params,
            **biases,
            "gates_bias": jnp.zeros((N, 2 * D)),
            "decay": jnp.log(squares**-0.5 - 1),
        }

    def zero_state(self, zeros, width) -> dict[str, Array]:
        """`h` [B, H], and `inputs` [B, 3, H] of the convolution before the next one."""
        return {"h": zeros(width), "inputs": zeros(REACH - 1, width)}

    def apply_layer(
        self,
        params,
        x,
        state: dict[str, Array],
        noise,
        length,
    ) -> tuple[Units, dict[str, Array]]:
        def linear(name, a):
            return product(a, params[f"{name}_kernel"], x.dtype) + params[f"{name}_bias"]

        n = self.normalized(x, state["h"].dtype, 1e-6)
        v = linear("x", n)
        u, inputs = short_convolution(
            v, params["convolution"], params["convolution_bias"], state["inputs"], length
        )
        # The heads come first, as a product wants the axis of its batch.
        by_head = jnp.moveaxis(u.reshape(*u.shape[:2], self.heads, -1), 2, 0)
        z = contraction("ntbd,nde->ntbe", x.dtype, by_head, params["gates"])
        gates = jax.nn.sigmoid(z + params["gates_bias"][:, None, None])
        i, r = (jnp.moveaxis(gate, 0, 2).reshape(u.shape) for gate in jnp.split(gates, 2, -1))
        log_a = -8 * r * jax.nn.softplus(params["decay"])
        # 1 - a^2, not quite zero: there its root has no finite gradient.
        written = jnp.maximum(-jnp.expm1(2 * log_a), 1e-12)
        h = linear_recurrence(jnp.exp(log_a), jnp.sqrt(written) * i * u, state["h"])
        gate = jax.nn.gelu(linear("y", n))
        y = linear("output", gate * h)
        return y.astype(x.dtype), {"h": last_step(h, length), "inputs": inputs}
