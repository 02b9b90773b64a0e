"""Compiles jaxlm's programs for an H100 and for TPUs on any machine, and tells their memory and
least time.

    # The plugins of jaxlib's version
    pip install libtpu && pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt
    # Every program, for one H100 and one v5e: an hour
    python experiments/accelerators.py
    # One program, printed
    python experiments/accelerators.py small --target h100

A compiled program tells its memory and how many kernels a window launches; no time is measured. The
least time of a window is the largest of three: operations at the device's peak rate, bytes at the
memory's rate, and launches at LAUNCH each. Operations are those of the matrix products, counted by
jaxlm's shapes; bytes are the parameters, their gradients and the activations, each written and read
once.
"""

import argparse
import csv
import math
import os
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.distributed.mesh import DATA, MODEL, spec_of
from jaxlm.runs.run import window_plan
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.training.step import train_windows

# (Nothing but a compiler is loaded: several processes may.)
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

ROWS = Path(__file__).resolve().parents[1] / "docs" / "lab" / "accelerators.csv"
LAUNCH = {
    "cuda": 2.5e-6,
    "tpu": 0.5e-6,
}  # seconds a kernel takes at the least, by common measurements elsewhere


class Target(NamedTuple):
    """A device that is not here: its topology's name, memory, bytes a second, and multiplications
    and additions a second in float32 (on a TPU six passes of bfloat16) and bfloat16.
    """

    platform: str
    topology: str
    memory: float
    bandwidth: float
    float32: float
    bfloat16: float
    slices: int = 1


TARGETS = {
    "h100": Target("cuda", "1x1x1", 80e9, 3.35e12, 67e12, 989e12),
    "v5e": Target("tpu", "v5e:2x2", 16e9, 0.82e12, 197e12 / 6, 197e12),
    "v5e-8": Target("tpu", "v5e:2x4", 16e9, 0.82e12, 197e12 / 6, 197e12),
    "v5e-64": Target("tpu", "v5e:8x8", 16e9, 0.82e12, 197e12 / 6, 197e12),
    "v5e-512": Target("tpu", "v5e:16x16", 16e9, 0.82e12, 197e12 / 6, 197e12, slices=2),
}
# An H100's description as XLA wants it, by NVIDIA's data sheet and the CUDA programming guide.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072 l2_cache_size: 52428800
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
OPTIONS = {
    "cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
    "tpu": {},
}  # what needs a device


@lru_cache
def devices(target: str) -> list[Any]:
    """The devices of a target. Raises JaxlmError where its plugin is not installed, or knows no
    such topology.
    """
    accelerator = TARGETS[target]
    try:
        if accelerator.platform == "cuda":
            return topologies.get_topology_desc(
                platform="cuda", target_config=H100, topology=accelerator.topology
            ).devices
        slices = {"num_slices": accelerator.slices} if accelerator.slices > 1 else {}
        return topologies.get_topology_desc(
            platform="tpu", topology_name=accelerator.topology, **slices
        ).devices
    except (RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise JaxlmError(
            f"no program can be compiled for {target}: {str(error).splitlines()[0]:.200} "
            "(see .ci/nightly)"
        ) from None


def described(tree: Any, target: str, mesh: Any = None, spec: jax.P | None = None) -> Any:
    """A tree's arrays as their shapes on a target's first device, or where
    `jaxlm.distributed.mesh.place` puts them.

    Args:
        tree: arrays.
        target: a name of `TARGETS`.
        mesh: the devices that share the tree; None: one device has it.
        spec: how every array is shared; None: each as `spec_of` has it.
    """

    def one(path: Any, leaf: Any) -> Any:
        shape = [*jnp.shape(leaf)]
        lies = jax.sharding.SingleDeviceSharding(devices(target)[0])
        if mesh is not None:
            where = spec_of(path) if spec is None else spec
            if MODEL in where:
                shape[where.index(MODEL)] += -shape[where.index(MODEL)] % mesh.shape[MODEL]
            lies = jax.NamedSharding(mesh, where)
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf), sharding=lies)

    return jax.tree_util.tree_map_with_path(one, tree)


def training(config: Any, target: str, rows: int = 1, words: int = 1) -> Any:
    """`train_windows` of a config, lowered for a target.

    Args:
        config: the run's config.
        target: a name of `TARGETS`.
        rows: devices that share the rows of a batch.
        words: devices that share the words.
    """
    counts = config.train
    height = 40 * config.train.longest
    if counts.batch_size % rows:
        raise JaxlmError(
            f"the {counts.batch_size} rows of a batch do not divide over {rows} devices: "
            "ask for others"
        )
    mesh = None
    there = devices(target)
    if len(there) < rows * words:
        raise JaxlmError(
            f"{target} has {len(there)} devices, and {rows} x {words} were asked for: ask for fewer"
        )
    if rows * words > 1:  # as `jaxlm train --devices --model-devices` makes it
        chosen = np.array(there[: rows * words]).reshape(rows, words)
        mesh = Mesh(chosen, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)
    everywhere = (
        jax.tree.map(np.float32, config.recipe),
        window_plan(config, height).windows(0, 4, 4),
        np.int32(4),
    )
    recipe, windows, count = described(everywhere, target, mesh, jax.P())
    state = described(shapes_of_state(config), target, mesh)
    tokens = described(
        jax.ShapeDtypeStruct((height, counts.batch_size), np.int32), target, mesh, jax.P(None, DATA)
    )
    sizes = {"bptt_length": counts.longest, "small_batch": counts.small_batch}
    return train_windows.lower(recipe, state, tokens, windows, count, mesh=mesh, **sizes)


def compiled(lowered: Any, target: str) -> Any:
    """The program, compiled for the target it is lowered for.

    Args:
        lowered: what `training` returns.
        target: a name of `TARGETS`.
    """
    return lowered.compile(compiler_options=OPTIONS[TARGETS[target].platform])


COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
# What launches no kernel of its own.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "opt-barrier",
}


def computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """{name: [(opcode, line)]} of a compiled program's computations, and the entry's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    inside = []
    entry = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            inside = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif part := re.match(r"\s+(?:ROOT )?%[\w.\-]+ = (?:\([^=]*?\)|\S+) ([\w\-]+)\(", line):
            inside.append((part[1], line))
    return found, entry


def per_window(text: str, weight: Callable[[str, str], int]) -> int:
    """The sum of the weights, of (opcode, line), of what one window of a compiled `train_windows`
    executes.

    That is its loop's body, with inner loops in full, and of branches the heaviest. A loop has the
    turns that XLA notes, or that its condition compares with.

    Args:
        text: the compiled program's text.
        weight: the weight of an instruction: (opcode, line) -> number.
    """
    found, entry = computations(text)

    def named(attribute: str, line: str) -> str:
        match = re.search(rf"{attribute}=%?([\w.\-]+)", line)
        if match:
            return match[1]
        return ""

    def turns(line: str) -> int:
        noted = re.search(r"known_trip_count\W+n\W+(\d+)", line)
        condition = "\n".join(line for _, line in found[named("condition", line)])
        constants = re.findall(r"s32\[\]\S* constant\((\d+)\)", condition)
        if noted:
            return int(noted[1])
        return max(map(int, constants), default=1)

    def total(name: str) -> int:
        added = 0
        for opcode, line in found[name]:
            if opcode == "while":
                added += turns(line) * (
                    total(named("body", line)) + total(named("condition", line))
                )
            elif opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", line)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                added += max(
                    map(
                        total,
                        names
                        or [named("true_computation", line), named("false_computation", line)],
                    )
                )
            elif opcode == "call":
                added += total(named("to_apply", line))
            else:
                added += weight(opcode, line)
        return added

    windows = [line for opcode, line in found[entry] if opcode == "while"]
    return total(named("body", windows[0]))


def launched(opcode: str, line: str) -> int:
    """One for a kernel.

    Args:
        opcode: an instruction's kind, such as `fusion`.
        line: the instruction's line.
    """
    return int(opcode not in FREE and not opcode.endswith("-done"))


def sent(opcode: str, line: str) -> int:
    """The bytes of a collective's result.

    Args:
        opcode: an instruction's kind, such as `fusion`.
        line: the instruction's line, which names the shapes of its result.
    """
    if opcode.removesuffix("-start") not in COLLECTIVES:
        return 0
    arrays = re.findall(r"(f32|bf16|s32|u32|pred)\[([\d,]*)\]", line.split(f" {opcode}(")[0])
    sizes = [
        WIDTHS[dtype] * math.prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in arrays
    ]
    if opcode.endswith("-start"):
        return max(sizes, default=0)
    return sum(sizes)


def work(config: Any, rows: int = 1, words: int = 1) -> tuple[float, float]:
    """(operations, bytes) of a window on each of rows x words devices, by the model's shapes: the
    least there is to do.

    Devices that share the words compute all layers, and all words that are drawn.

    Args:
        config: the run's config.
        rows: devices that share the rows of a batch.
        words: devices that share the words.
    """
    model = config.model
    tokens = config.train.longest * config.train.batch_size / rows
    params = shapes_of_state(config).params
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim == 2)
    kernel = model.kernel_width * (model.sampled_words or model.vocab_size / words)
    touched = matrices + kernel + tokens * model.embedding_size
    activations = tokens * (model.embedding_size + 7 * sum(model.hidden_sizes))
    wide = 4 if model.compute_dtype == "float32" else 2
    return 6 * tokens * (
        matrices + max(model.experts, 1) * kernel
    ), 3 * 4 * touched + 2 * wide * activations


PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("small", {}),
    "small, bfloat16": ("small", {"compute_dtype": "bfloat16"}),
    "zaremba-medium, bfloat16": ("zaremba-medium", {"compute_dtype": "bfloat16"}),
    "zaremba-large": ("zaremba-large", {}),
    "zaremba-large, bfloat16": ("zaremba-large", {"compute_dtype": "bfloat16"}),
    "gru": ("small", {"model": "gru"}),
    "mingru": ("small", {"model": "mingru"}),
    "awd-lstm, bfloat16": ("awd-lstm", {"compute_dtype": "bfloat16"}),
    "mogrifier, bfloat16": ("mogrifier", {"compute_dtype": "bfloat16"}),
    "800,000 words, sampled, bfloat16": (
        "small",
        {
            "vocab_size": 800_000,
            "embedding_size": 1024,
            "hidden_sizes": (2048, 1024),
            "batch_size": 64,
            "sampled_words": 8192,
            "compute_dtype": "bfloat16",
        },
    ),
}


def row_of(name: str, target: str, rows: int = 1, words: int = 1) -> dict[str, Any]:
    """Compiles a program for a target, and tells what is known of it.

    Args:
        name: a program of `PROGRAMS`.
        target: a name of `TARGETS`.
        rows: devices that share the rows of a batch.
        words: devices that share the words.
    """
    preset, fields = PROGRAMS[name]
    config = jaxlm.preset(preset).replace(**fields)
    accelerator = TARGETS[target]
    lowered = training(config, target, rows, words)
    start = time.perf_counter()
    program = compiled(lowered, target)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    text = program.as_text()
    launches = per_window(text, launched)
    operations, moved = work(config, rows, words)
    rate = accelerator.float32 if config.model.compute_dtype == "float32" else accelerator.bfloat16
    least = {
        "operations": operations / rate,
        "bytes": moved / accelerator.bandwidth,
        "launches": launches * LAUNCH[accelerator.platform],
    }
    by = max(least, key=lambda part: least[part])
    return {
        "program": name,
        "target": target,
        "devices": f"{rows} x {words}",
        "compile, s": round(seconds),
        "arguments, MB": round(memory.argument_size_in_bytes / 1e6),
        "temporary, MB": round(memory.temp_size_in_bytes / 1e6),
        "GFLOP a window": float(f"{operations / 1e9:.3g}"),
        "kernels a window": launches,
        "sent, MB": float(f"{per_window(text, sent) / 1e6:.3g}"),
        "least time, ms": float(f"{1e3 * least[by]:.2g}"),
        "by": by,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", help=f"of {'; '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: h100 and v5e")
    parser.add_argument("--devices", type=whole(1), default=1, help="devices that share the rows")
    parser.add_argument(
        "--model-devices", type=whole(1), default=1, help="devices that share the words"
    )
    parser.add_argument("--write", action="store_true", help=f"add the rows to {ROWS.name}")
    args = parser.parse_args()
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    unknown = [name for name in args.programs if name not in PROGRAMS]
    if unknown:
        parser.error(f"there is no program {unknown[0]!r}; expected one of {'; '.join(PROGRAMS)}")
    for name in args.programs or PROGRAMS:
        for target in args.target or ("h100", "v5e"):
            row = row_of(name, target, args.devices, args.model_devices)
            print(row, flush=True)
            if args.write:
                with open(ROWS, "a", newline="", encoding="utf-8") as file:
                    csv.writer(file, lineterminator="\n").writerow(row.values())


if __name__ == "__main__":
    sys.exit(exit_code(main))
