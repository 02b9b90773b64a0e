"""The worker processes of a sweep: how many are useful, their cores, how they are started, stopped and reported.

Small matrix products do not fill many cores: members that train side by side, each on its own core, are faster
altogether than one after the other on all cores (docs/performance.md). But a process must first start and compile, so
only a long sweep is worth several.
"""

import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import jax

from jaxlm.config.config import Config
from jaxlm.files import Folder
from jaxlm.runs.signals import Stop
from jaxlm.runs.state_arrays import shapes_of_state
from jaxlm.sweeps.plan import Plan
from jaxlm.terminal import printable

WORTH = 2e13  # multiplications and additions of a process's members, about a minute: from there on it pays
MOST = 16
MEMORY = 2 << 30  # bytes that a process needs at least
MOST_SAID = 1 << 20  # bytes of standard error that are read
POLL = 0.5  # seconds between two looks at the workers


def useful_workers(config: Config, plan: Plan, tokens: int, free: int) -> int:
    """How many processes train a sweep's members fastest; 1 for a short sweep, or on accelerators.

    `tokens` counts the training split's, and `free` bytes of memory.
    """
    if jax.default_backend() != "cpu":
        return 1
    members, params = plan.trials * plan.seeds, dict(shapes_of_state(config).params)
    if not config.model.tied:
        del params["embedding"]  # which is looked up, not multiplied
    matrices = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    work = 6 * matrices * tokens * config.train.epochs * members
    return max(1, min(len(cores()), members, int(work / WORTH), free // MEMORY, MOST))


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin(process: int, number: int, workers: int) -> None:
    """Pins a process that has just started to its share of the cores, if there is one for each of the workers."""
    own = cores()
    share = len(own) // workers
    if share and jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or the system forbids it: then it runs unpinned
            os.sched_setaffinity(process, own[number * share : (number + 1) * share])


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    workers: int,
    folder: Path,
    stop: Stop,
    show: Callable[[], object],
    say: Callable[[str], object],
) -> str | None:
    """Runs workers until each has ended, and passes a signal on to them; calls `show` every `POLL` seconds.

    A worker's standard error (where C++ writes stacks) is kept from the terminal. For one that fails a sentence is
    printed: its own, or how it ended and the file of the sweep's directory that keeps its standard error. Returns why
    the last failed worker failed; None if none did, or a signal came.
    """
    told, failure = False, None
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        running: dict[int, subprocess.Popen] = {}
        stack.callback(lambda: [process.terminate() for process in running.values()])
        for number in range(workers):
            running[number] = subprocess.Popen(command, start_new_session=True, env=environment, stderr=said[number])
            pin(running[number].pid, number, workers)
        while running:
            if stop.signal is not None and not told:
                told = True
                for process in running.values():
                    process.send_signal(stop.signal)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    if process.returncode and stop.signal is None:
                        failure = _reason(process.returncode, said[number], folder / f"worker-{number}.log")
                        others = "; the others take its trials over" if running else ""
                        say(f"!! worker {number} failed: {failure}{others}")
            show()
            time.sleep(POLL)
    return failure


def _reason(code: int, file: IO[bytes], log: Path) -> str:
    """Why a worker failed: its own sentence, or how it ended and the file that keeps its standard error."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_SAID))
    said = file.read()
    if own := re.findall("^error: (.*)$", said.decode(errors="replace"), re.MULTILINE):
        return printable(own[-1])
    why = f"{signal.Signals(-code).name} ended it" if code < 0 else f"it ended with exit code {code}"
    if said:
        with suppress(OSError), Folder.open(log.parent) as folder:
            folder.write(log.name, said)
            why += f"; what it wrote is in {log}"
    return why
