"""The orthogonalised update of Muon, for many matrices at once.

Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlm.ops.product import product

Quintic = tuple[float, float, float]  # a, b and c of x' = a x + b (x x^T) x + c (x x^T)^2 x
JORDAN: Quintic = (3.4445, -4.7750, 2.0315)  # steepest at zero
SMALLEST = 0.01  # `polar_express` brings singular values from here to 1 close to one


def polar_express(steps: int) -> list[Quintic]:
    """For each iteration the quintic that brings all singular values closest to one.

    Each is the best on the interval in which those before it leave the values (Amsel et al. 2025,
    arXiv:2505.16932), found by Remez's exchange.

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
    matrices: Float[Array, "G M N"],
    steps: int,
    dtype: Any = jnp.float32,
    rule: str = "jordan",
) -> Float[Array, "G M N"]:
    """The nearest semi-orthogonal matrix of each, roughly: singular values of about 0.7 to 1.2.

    Products take a second factor as it lies, and contract the last axes where a transpose is
    wanted: bfloat16 is fast at both.

    Args:
        matrices: The matrices.
        steps: How many iterations run, on the narrow side.
        dtype: What products multiply in; they sum in float32.
        rule: `jordan` divides by the Frobenius norm and repeats one quintic. `polar-express` has a
            quintic for each iteration, and divides by the fourth root of the sum of the singular
            values' fourth powers, which the first product gives: they begin larger.

    Returns:
        The orthogonalised matrices, in the dtype of `matrices`.
    """
    M, N = matrices.shape[1:]
    x = jnp.swapaxes(matrices, 1, 2) if M > N else matrices
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)

    products = jax.vmap(lambda a, b: product(a, b, dtype))
    grams = jax.vmap(lambda a: product(a, a, dtype, transposed=True))
    polar = rule == "polar-express"
    for step, (a, b, c) in enumerate(polar_express(steps) if polar else [JORDAN] * steps):
        gram = grams(x)
        if polar and step == 0:
            square = jnp.linalg.norm(gram, axis=(1, 2), keepdims=True) + 1e-7
            x = x / jnp.sqrt(square)
            gram = gram / square
        x = a * x + products(b * gram + c * products(gram, gram), x)
    return (jnp.swapaxes(x, 1, 2) if M > N else x).astype(matrices.dtype)
