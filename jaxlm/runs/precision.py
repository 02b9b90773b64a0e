"""The dtype that a run multiplies in: `auto` is bfloat16 where it is measured to multiply the model's products faster.

A processor's instructions say nothing of its rates: with AVX512_BF16 and without AMX bfloat16 may be the slower one.
"""

import hashlib
import os
import time
from contextlib import suppress
from functools import partial

import jax
import numpy as np
from jax import lax

from jaxlm.config.config import Config
from jaxlm.data.cache import cache_dir, processor, recall, remember
from jaxlm.distributed import hosts
from jaxlm.files import Folder
from jaxlm.ops.product import product

DTYPES = "float32", "bfloat16"
MARGIN = 1.15  # by which `auto` wants bfloat16 to be faster
MOST = 256, 512, 1024  # of a product's sizes [M, K] @ [K, N]: larger ones run at much the same rate
TURN = 0.005
TURNS = 5  # seconds, and how often each dtype has its turn


def resolved(config: Config) -> Config:
    """The config with a dtype in place of `auto`, the same in all processes. Every process must call it."""
    if config.model.compute_dtype != "auto":
        return config
    found = rates(config)
    faster = hosts.agreed(found["bfloat16"] >= MARGIN * found["float32"])
    return config.replace(compute_dtype="bfloat16" if faster else "float32")


def notes(asked: str, config: Config) -> list[str]:
    """Sentences about the dtype when a run begins: the one that was `asked` for, and the config's, which was taken."""
    if asked == "float32":
        return []
    found = rates(config)
    plain = found["float32"]
    narrow = found["bfloat16"]
    speed = (
        f"this model's products run here at {narrow:,.0f} GFLOP/s in bfloat16 and {plain:,.0f} in"
    )
    if asked == "auto":
        return [f"compute_dtype auto: {config.model.compute_dtype}; {speed} float32"]
    if narrow < plain:
        return [f"compute_dtype bfloat16 is slower than float32: {speed} float32"]
    return []


def rates(config: Config) -> dict[str, float]:
    """The rates at which a model's products are multiplied in each dtype, in 1e9 operations a second.

    They are measured once for each class of shapes, device and version of JAX.
    """
    found = known(config)
    if found:
        return found
    measured, (name, key) = _measured(config), _key(config)
    with suppress(OSError), Folder.open(cache_dir() / "rates", create=True) as folder:
        remember(folder, name, key, measured, np.zeros(0, np.int32))
    return measured


def known(config: Config) -> dict[str, float] | None:
    """The rates, if they have been measured; for a run's record."""
    with suppress(OSError), Folder.open(cache_dir() / "rates") as folder:
        found = recall(folder, *_key(config))
        if found:
            return found[0]
        return None
    return None


def shapes(config: Config) -> list[tuple[int, int, int]]:
    """(M, K, N) of products as a window has them: the widest layer's of its inputs and of its state, and the head's."""
    model = config.model
    counts = config.train
    rows = counts.longest * counts.rows_of_gradient
    widths = (model.embedding_size, *model.hidden_sizes)
    inputs, width = max(
        zip(widths, model.hidden_sizes, strict=False), key=lambda pair: pair[0] * pair[1]
    )
    found = (
        (rows, inputs, model.gates * width),
        (counts.rows_of_gradient, width, model.gates * width),
        (rows, model.kernel_width, model.vocab_size),
    )
    return [(min(M, MOST[0]), min(K, MOST[1]), min(N, MOST[2])) for M, K, N in found]


def _key(config: Config) -> tuple[str, str]:
    """The name of the file of a model's rates, and what they depend on: shapes to the nearest power of two."""
    classes = [[1 << round(np.log2(size)) for size in shape] for shape in shapes(config)]
    machine = processor(), os.cpu_count(), jax.__version__, jax.local_devices()[0].device_kind
    key = repr((classes, config.model.matmul_precision, *machine))
    return hashlib.sha256(key.encode()).hexdigest()[:16], key


def _measured(config: Config) -> dict[str, float]:
    """Takes the products in turns, in each dtype as often as fits into TURN; the best turn counts."""
    products = shapes(config)
    factors = {  # The second factors leave the first as they are, however often they multiply.
        dtype: [
            (np.ones((M, K)).astype(dtype), np.full((K, N), (K * N) ** -0.5).astype(dtype))
            for M, K, N in products
        ]
        for dtype in DTYPES
    }
    factors = jax.device_put(factors)

    def seconds(count: int, dtype: str) -> float:
        start = time.perf_counter()
        jax.block_until_ready(_steps(np.int32(count), factors[dtype], dtype=dtype))
        return (time.perf_counter() - start) / count

    with jax.default_matmul_precision(config.model.matmul_precision):
        once = {dtype: min(seconds(1, dtype) for _ in range(2)) for dtype in DTYPES}
        counts = {dtype: max(1, int(TURN / taken)) for dtype, taken in once.items()}
        turns = [
            {dtype: seconds(count, dtype) for dtype, count in counts.items()} for _ in range(TURNS)
        ]
    operations = 4e-9 * sum(M * K * N for M, K, N in products)
    return {dtype: operations / min(turn[dtype] for turn in turns) for dtype in counts}


@partial(jax.jit, static_argnames="dtype")
def _steps(count, factors, *, dtype):
    """Each product, and the product that makes its first factor's gradient, `count` times."""

    def step(_, first):
        z = [product(a, b, dtype).astype(dtype) for a, (_, b) in zip(first, factors, strict=True)]
        return [
            product(one, b, dtype, True).astype(dtype)
            for one, (_, b) in zip(z, factors, strict=True)
        ]

    return lax.fori_loop(0, count, step, [a for a, _ in factors])
