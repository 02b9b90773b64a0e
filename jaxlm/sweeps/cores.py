"""How many processes a sweep on CPUs uses by itself, and the cores that each has to itself.

Small products do not fill many cores: members that train side by side, each on a core, are faster in all than one
after the other on all cores (docs/performance.md). A process must first start and compile, which only a longer sweep
repays.
"""

import math
import os
from contextlib import suppress

import jax

from jaxlm.config.config import Config
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.sweeps.plan import Plan

WORTH = 2e13  # multiplications and additions of a process's members, about a minute's: from there on it pays
MOST = 16
MEMORY = 2 << 30  # bytes that a process of its own needs at the least


def useful_workers(config: Config, plan: Plan, tokens: int, free: int) -> int:
    """How many processes are fastest for a sweep's members; 1 where it is short, or not on CPUs.

    Args:
      config: of the sweep.
      plan: its trials and seeds.
      tokens: of the training split.
      free: bytes of memory.
    """
    if jax.default_backend() != "cpu":
        return 1
    members = plan.trials * plan.seeds
    params = shapes_of_state(config).params
    matrices = sum(
        math.prod(leaf.shape)
        for name, part in params.items()
        if name != "embedding" or config.model.tied
        for leaf in jax.tree.leaves(part)
    )
    work = 6 * matrices * tokens * config.train.epochs * members
    return max(1, min(len(_cores()), members, int(work / WORTH), free // MEMORY, MOST))


def pin(process: int, number: int, workers: int) -> None:
    """Gives a process that has just started its share of the cores, where there is one for each of the workers."""
    cores = _cores()
    share = len(cores) // workers
    if share and jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or the system forbids it: then it runs unpinned
            os.sched_setaffinity(process, cores[number * share : (number + 1) * share])


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
