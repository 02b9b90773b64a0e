"""The dtype that a run multiplies in: `auto` is bfloat16 where that is measured to be faster.

A processor's instructions say nothing of its rates: with AVX512_BF16 and without AMX bfloat16 may
be the slower one.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Scalar

from jaxlm.config.config import Config
from jaxlm.distributed import hosts
from jaxlm.ops.product import product

DTYPES = ("float32", "bfloat16")
MARGIN = 1.15  # by which `auto` wants bfloat16 to be faster
MOST = (256, 512, 1024)  # of a product's sizes [M, K] @ [K, N]: larger ones run at the same rate
TURN = 0.005  # seconds of float32 at a time
TURNS = 5


def resolved(
    config: Config,
    resumed: Config | None = None,
) -> tuple[Config, dict[str, float] | None, list[str]]:
    """Chooses the dtype in place of `auto`. Every process must call it; all choose the same.

    Args:
        config: The run's config.
        resumed: The saved config of a run that is resumed, whose dtype stays.

    Returns:
        The config with its dtype; and where it was chosen by them, the rates (`measured_rates`) and
        a note for the user.
    """
    if config.model.compute_dtype != "auto":
        return config, None, []
    if resumed is not None:
        return config.replace(compute_dtype=resumed.model.compute_dtype), None, []
    rates = measured_rates(config)
    float32 = rates["float32"]
    bfloat16 = rates["bfloat16"]
    dtype = DTYPES[hosts.agreed(bfloat16 >= MARGIN * float32)]
    note = (
        f"compute_dtype auto: {dtype}; this model's products run here at {bfloat16:,.0f} GFLOP/s "
        f"in bfloat16 and {float32:,.0f} in float32"
    )
    return config.replace(compute_dtype=dtype), rates, [note]


def measured_rates(config: Config) -> dict[str, float]:
    """The rates of a model's largest product in each dtype, in 1e9 operations a second."""
    with jax.default_matmul_precision(config.model.matmul_precision):
        return _measured(*largest_product(config))


def largest_product(config: Config) -> tuple[int, int, int]:
    """(M, K, N) of a window's largest product, of a layer's inputs or the head; at most `MOST`."""
    model = config.model
    tokens = config.train.longest * config.train.rows_of_gradient
    products = [(tokens, model.kernel_width, model.vocab_size)]
    inputs = model.embedding_size
    for layer, width in zip(model.layers, model.cell_sizes, strict=True):
        products.append((tokens, inputs, layer.gates * width))
        inputs = width
    products.append((tokens, inputs, model.feed_forward_size))
    M, K, N = max(products, key=math.prod)
    return min(M, MOST[0]), min(K, MOST[1]), min(N, MOST[2])


def _measured(
    M: int,
    K: int,
    N: int,
) -> dict[str, float]:
    """Times a product in each dtype by turns; the best turn counts."""

    def seconds(dtype: str, count: int) -> float:
        # The numbers stay of one size, however often they are multiplied: a b b^T is about a.
        a = jnp.ones((M, K), dtype)
        b = jnp.full((K, N), (K * N) ** -0.5, dtype)
        start = time.perf_counter()
        jax.block_until_ready(_multiply(np.int32(count), *jax.block_until_ready((a, b))))
        return time.perf_counter() - start

    for dtype in DTYPES:
        seconds(dtype, 1)  # compiles
    count = max(1, int(TURN / seconds("float32", 1)))
    turns = [{dtype: seconds(dtype, count) for dtype in DTYPES} for _ in range(TURNS)]
    operations = 4 * M * K * N * count
    return {dtype: operations / 1e9 / min(turn[dtype] for turn in turns) for dtype in DTYPES}


@jax.jit
def _multiply(
    count: Scalar,
    a: Float[Array, "M K"],
    b: Float[Array, "K N"],
) -> Array:
    """The product, and the product that makes the gradient of `a`, `count` times."""
    dtype = str(a.dtype)

    def step(_: Scalar, a: Array) -> Array:
        y = product(a, b, dtype).astype(dtype)
        return product(y, b, dtype, True).astype(dtype)

    return lax.fori_loop(0, count, step, a)
