"""The orthogonalised update of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), many matrices at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlm.ops.product import product

Quintic = tuple[float, float, float]  # a, b and c of x' = a x + b (x x^T) x + c (x x^T)^2 x
JORDAN: Quintic = (3.4445, -4.7750, 2.0315)  # steepest at zero
SMALLEST = (
    0.01  # the singular value from which on `polar_express` aims at one; the largest is at most one
)


def polar_express(steps: int) -> list[Quintic]:
    """For each iteration the quintic that brings all singular values closest to one (Amsel et al. 2025).

    Each is the best on the interval in which those before it leave the values, found by Remez's exchange
    (arXiv:2505.16932).

    >>> [tuple(round(number, 2) for number in quintic) for quintic in polar_express(3)]
    [(8.09, -23.62, 17.45), (3.64, -2.72, 0.54), (2.66, -1.98, 0.45)]
    """
    quintics = []
    low = SMALLEST
    high = 1.0
    for _ in range(steps):
        if high - low < 1e-3:  # the limit of a narrow interval, whose equations are singular
            quintics.append((15 / 8, -10 / 8, 3 / 8))
            continue
        inner = low + (high - low) * np.array([1 / 4, 3 / 4])
        for _ in range(50):  # it has converged after some ten
            points = np.array([low, *inner, high])
            powers = np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1)
            a, b, c, error = np.linalg.solve(powers, np.ones(4))
            inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))  # where the quintic is level
        quintics.append((float(a), float(b), float(c)))
        low = 1 - error
        high = 1 + error
    return quintics


def orthogonalized(
    matrices: Float[Array, "G M N"], steps: int, dtype: Any = jnp.float32, rule: str = "jordan"
) -> Float[Array, "G M N"]:
    """The nearest semi-orthogonal matrix, roughly: all singular values end between about 0.7 and 1.2.

    The iteration runs `steps` times, on the narrow side. Its products multiply in `dtype` and sum in float32; they take
    a second factor as it lies and contract the last axes where a transpose is wanted, which is what bfloat16 is fast
    at. The rule polar-express (the other is jordan) also begins with larger singular values: it divides them by the
    fourth root of the sum of their fourth powers, which the first product gives, in place of the Frobenius norm.
    """
    M, N = matrices.shape[1:]
    x = jnp.swapaxes(matrices, 1, 2) if M > N else matrices
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)

    def each(
        first: Float[Array, "G _ _"], second: Float[Array, "G _ _"], transposed: bool = False
    ) -> Array:
        return jax.vmap(lambda a, b: product(a, b, dtype, transposed))(first, second)

    for place, (a, b, c) in enumerate(
        polar_express(steps) if rule == "polar-express" else [JORDAN] * steps
    ):
        gram = each(x, x, transposed=True)
        if rule == "polar-express" and place == 0:
            square = jnp.linalg.norm(gram, axis=(1, 2), keepdims=True) + 1e-7
            x = x / jnp.sqrt(square)
            gram = gram / square
        x = a * x + each(b * gram + c * each(gram, gram), x)
    return (jnp.swapaxes(x, 1, 2) if M > N else x).astype(matrices.dtype)
