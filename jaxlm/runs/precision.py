"""The dtype that a run multiplies in: `auto` is bfloat16 where the processor or accelerator multiplies it by itself."""

from pathlib import Path
from typing import Any

import jax

from jaxlm.config.config import Config
from jaxlm.ops.processor import CPUINFO, cpu_flags

# Instructions that multiply bfloat16, as Linux names them in /proc/cpuinfo: Intel's and AMD's; Arm's.
CPU_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
LEAST_CAPABILITY = (8, 0)  # of a CUDA device (Ampere)


def multiplies_bfloat16(device: Any = None, cpuinfo: Path = CPUINFO) -> bool:
    """Whether a device (default: JAX's first) multiplies bfloat16 by itself, faster than float32.

    Without `cpuinfo`, where Linux describes the processor, a CPU counts as one that does not.
    """
    device = device or jax.local_devices()[0]
    if device.platform == "cpu":
        return bool(CPU_FLAGS & cpu_flags(cpuinfo))
    if device.platform in ("gpu", "cuda"):
        try:
            return tuple(map(int, str(getattr(device, "compute_capability", "0.0")).split("."))) >= LEAST_CAPABILITY
        except ValueError:
            return True  # ROCm's names, as gfx90a: every device that JAX supports does
    return True  # TPUs


def resolved(config: Config) -> Config:
    """The config with a dtype in place of `auto`."""
    if config.model.compute_dtype != "auto":
        return config
    return config.replace(compute_dtype="bfloat16" if multiplies_bfloat16() else "float32")


def notes(asked: str, config: Config) -> list[str]:
    """Sentences about the dtype when a run begins: the one that was `asked` for, and the config's, which was taken."""
    platform, taken, native = jax.local_devices()[0].platform, config.model.compute_dtype, multiplies_bfloat16()
    how = f"this {platform} {'multiplies' if native else 'does not multiply'} bfloat16 by itself"
    if asked == "auto":
        return [f"compute_dtype auto: {taken}, since {how}"]
    if taken == "bfloat16" and not native:
        return [f"compute_dtype bfloat16 is likely slower than float32 here: {how}"]
    return []
