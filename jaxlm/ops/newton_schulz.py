"""The orthogonalised update of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), many matrices at once."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.ops.product import product

# a, b and c of x' = a x + b (x x^T) x + c (x x^T)^2 x: Jordan's quintic, steepest at zero.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: jax.Array, steps: int, dtype: Any = jnp.float32) -> jax.Array:
    """The nearest semi-orthogonal matrix, roughly: all singular values end between about 0.7 and 1.2.

    The iteration runs on the narrow side. Its products take a second factor as it lies and contract the last axes
    where a transpose is wanted, which is what bfloat16 is fast at.

    Args:
      matrices: [G, M, N].
      steps: how often the iteration is applied.
      dtype: what its products multiply in; they sum in float32.

    Returns:
      [G, M, N], in the dtype of `matrices`.
    """
    M, N = matrices.shape[1:]
    x = jnp.swapaxes(matrices, 1, 2) if M > N else matrices
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    a, b, c = COEFFICIENTS

    def each(first: jax.Array, second: jax.Array, transposed: bool = False) -> jax.Array:
        return jax.vmap(lambda a, b: product(a, b, dtype, transposed))(first, second)

    for _ in range(steps):
        gram = each(x, x, transposed=True)
        x = a * x + each(b * gram + c * each(gram, gram), x)
    return (jnp.swapaxes(x, 1, 2) if M > N else x).astype(matrices.dtype)
