"""The orthogonalised update of Muon, for many matrices at once.

Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.ops.product import product

Quintic = tuple[float, float, float]  # a, b and c of x' = a x + b (x x^T) x + c (x x^T)^2 x
JORDAN: Quintic = (3.4445, -4.7750, 2.0315)  # steepest at zero
# For each iteration the quintic that brings all singular values closest to one, on the interval in
# which those before it leave the values; at first this is 0.01 to 1 (Amsel et al. 2025,
# arXiv:2505.16932; found by Remez's exchange). The last one serves for all later iterations too.
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.093368512548258, -23.620430328824277, 17.44615174983625),
    (3.636585554259041, -2.7219267466089088, 0.5365462883273615),
    (2.661299985777098, -1.9771545218846247, 0.45261640699640115),
    (1.9561716388844543, -1.3375077459440736, 0.3838527013298804),
    (1.8751655627364436, -1.2501839462936057, 0.37501839510566143),
    (15 / 8, -10 / 8, 3 / 8),
)


def orthogonalized(
    matrices: Float[Array, "G M N"],
    steps: int,
    dtype: Any = jnp.float32,
    rule: str = "jordan",
) -> Float[Array, "G M N"]:
    """Roughly the nearest semi-orthogonal matrix of each; its singular values are 0.7 to 1.2.

    No factor of a product is transposed in memory, so that bfloat16 is fast (`ops/product.py`).

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
    quintics = POLAR_EXPRESS if rule == "polar-express" else (JORDAN,)
    for step in range(steps):
        a, b, c = quintics[min(step, len(quintics) - 1)]
        gram = grams(x)
        if quintics is POLAR_EXPRESS and step == 0:
            square = jnp.linalg.norm(gram, axis=(1, 2), keepdims=True) + 1e-7
            x = x / jnp.sqrt(square)
            gram = gram / square
        x = a * x + products(b * gram + c * products(gram, gram), x)
    return (jnp.swapaxes(x, 1, 2) if M > N else x).astype(matrices.dtype)
