"""A short causal convolution over time, of each unit by itself (arXiv:2402.19427 §2.3; arXiv:2412.06464)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxlm.ops.scans import Length


def short_convolution(
    x: Float[Array, "T B H"],
    kernel: Float[Array, "K H"],
    bias: Float[Array, " H"] | float,
    state: Float[Array, "B K-1 H"],
    length: Length = None,
) -> tuple[Float[Array, "T B H"], Float[Array, "B K-1 H"]]:
    """y_t = kernel_(K-1) * x_t + kernel_(K-2) * x_(t-1) + ... + kernel_0 * x_(t-K+1) + bias.

    The state is the K - 1 inputs before x, the oldest first; the new state is the one after the last step that counts.

    >>> x, kernel = jnp.array([1.0, 2.0, 3.0])[:, None, None], jnp.array([[10.0], [1.0]])
    >>> y, state = short_convolution(x, kernel, 0.0, jnp.full((1, 1, 1), 7.0))
    >>> y.ravel().tolist(), state.ravel().tolist()
    ([71.0, 12.0, 23.0], [3.0])
    """
    T, K = len(x), len(kernel)
    inputs = jnp.concatenate([jnp.moveaxis(state, 1, 0), x.astype(state.dtype)])
    y = sum((kernel[k] * inputs[k : k + T] for k in range(K)), bias)
    last = lax.dynamic_slice_in_dim(inputs, T if length is None else length, K - 1)
    return jnp.asarray(y), jnp.moveaxis(last, 0, 1)
