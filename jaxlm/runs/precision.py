"""The dtype that a run multiplies in: `auto` is bfloat16 where that is measured to be faster.

A processor's instructions say nothing of its rates: with AVX512_BF16 and without AMX bfloat16 may
be the slower one. The rates are measured once for each class of shapes, device and version of JAX,
and lie in the user's cache.
"""

import hashlib
import os
import time
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from jaxlm.config.config import Config
from jaxlm.data.cache import cache_dir, processor
from jaxlm.distributed import hosts
from jaxlm.files import Folder
from jaxlm.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.ops.product import product

DTYPES = ("float32", "bfloat16")
MARGIN = 1.15  # by which `auto` wants bfloat16 to be faster
MOST = (256, 512, 1024)  # of the sizes [M, K] @ [K, N]: larger products run at much the same rate
TURN = 0.005  # seconds that a dtype has at a time
TURNS = 5


class Resolved(NamedTuple):
    """A config whose dtype is chosen."""

    config: Config
    rates: dict[str, float] | None  # {dtype: 1e9 operations a second}, if they were asked for
    notes: list[str]  # for the user


def resolved(config: Config) -> Resolved:
    """The config with a dtype in place of `auto`. Every process must call it; all get the same."""
    dtype = config.model.compute_dtype
    if dtype == "float32":
        return Resolved(config, None, [])
    rates = measured_rates(config)
    plain = rates["float32"]
    narrow = rates["bfloat16"]
    notes = []
    speed = (
        f"this model's products run here at {narrow:,.0f} GFLOP/s in bfloat16 "
        f"and {plain:,.0f} in float32"
    )
    if dtype == "auto":
        chosen = DTYPES[hosts.agreed(narrow >= MARGIN * plain)]
        config = config.replace(compute_dtype=chosen)
        notes.append(f"compute_dtype auto: {chosen}; {speed}")
    elif narrow < plain:
        notes.append(f"compute_dtype bfloat16 is slower than float32: {speed}")
    return Resolved(config, rates, notes)


def measured_rates(config: Config) -> dict[str, float]:
    """The rates of a model's products in each dtype, in 1e9 operations a second."""
    machine = (processor(), os.cpu_count(), jax.__version__, jax.local_devices()[0].device_kind)
    sizes = [[1 << round(np.log2(size)) for size in shape] for shape in shapes(config)]
    key = repr((sizes, config.model.matmul_precision, *machine))
    name = hashlib.sha256(key.encode()).hexdigest()[:16] + ".json"
    folder = cache_dir() / "rates"
    with suppress(OSError, ValueError), Folder.open(folder) as cache:
        return from_hashed_json(cache.read(name, 1000))
    rates = _measured(config)
    with suppress(OSError), Folder.open(folder, create=True) as cache:
        cache.write(name, to_hashed_json(rates).encode())
    return rates


def shapes(config: Config) -> list[tuple[int, int, int]]:
    """(M, K, N) of a window's products: of the widest layer's inputs and state, and the head's."""
    model = config.model
    rows = config.train.rows_of_gradient
    tokens = config.train.longest * rows
    inputs = (model.embedding_size, *model.hidden_sizes)
    layers = zip(inputs, model.hidden_sizes, strict=False)
    width_in, width = max(layers, key=lambda layer: layer[0] * layer[1])
    gates = model.gates * width
    products = (
        (tokens, width_in, gates),
        (rows, width, gates),
        (tokens, model.kernel_width, model.vocab_size),
    )
    return [(min(M, MOST[0]), min(K, MOST[1]), min(N, MOST[2])) for M, K, N in products]


def _measured(config: Config) -> dict[str, float]:
    """Times the products in each dtype by turns; the best turn counts."""
    products = shapes(config)
    operations = 4e-9 * sum(M * K * N for M, K, N in products)
    best = dict.fromkeys(DTYPES, 0.0)
    with jax.default_matmul_precision(config.model.matmul_precision):
        counts = {}
        for dtype in DTYPES:
            _seconds(products, dtype, 1)  # compiles
            counts[dtype] = max(1, int(TURN / _seconds(products, dtype, 1)))
        for _ in range(TURNS):
            for dtype, count in counts.items():
                rate = operations * count / _seconds(products, dtype, count)
                best[dtype] = max(best[dtype], rate)
    return best


def _seconds(products: list[tuple[int, int, int]], dtype: str, count: int) -> float:
    """The time of multiplying every product `count` times."""
    factors = []
    for M, K, N in products:
        # Multiplied by b and by its transpose, a stays as it is, however often.
        a = np.ones((M, K)).astype(dtype)
        b = np.full((K, N), (K * N) ** -0.5).astype(dtype)
        factors.append((a, b))
    factors = jax.block_until_ready(jax.device_put(factors))
    start = time.perf_counter()
    jax.block_until_ready(_steps(np.int32(count), factors, dtype=dtype))
    return time.perf_counter() - start


@partial(jax.jit, static_argnames="dtype")
def _steps(count, factors, *, dtype):
    """Each product, and the product that makes its first factor's gradient, `count` times."""

    def step(_, firsts):
        return [
            product(product(a, b, dtype).astype(dtype), b, dtype, True).astype(dtype)
            for a, (_, b) in zip(firsts, factors, strict=True)
        ]

    return lax.fori_loop(0, count, step, [a for a, _ in factors])
