"""Many processes: joining them, and agreeing on values. Only the first writes the run's directory.

The processes are copies of one command, on one host or many, and run one program over all their
devices (`mesh.py`), connected by JAX's runtime. All must make the same calls in the same order. So
a value that one process alone has (a signal, a file, a failure) is shared through these functions
before anything depends on it. With one process each function is the identity.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.base.errors import JaxlmError, reason

T = TypeVar("T")

WAIT = 120  # seconds for the other processes to come
HEARTBEAT = 30  # seconds without a heartbeat, after which a process counts as dead and all end


def join_processes(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> bool:
    """Joins the other processes, if any are named. Call it before JAX is first used.

    Without arguments, JAX looks for SLURM, Open MPI, Kubernetes or the hosts of a TPU.

    Args:
        coordinator: HOST:PORT of process 0; the port must be free there.
        processes: How many there are; 1 trains alone inside a cluster.
        process: The index of this one, from 0.

    Returns:
        Whether there are other processes.

    Raises:
        JaxlmError: Only a part of the arguments is given, or the other processes cannot be reached.
    """
    given = (coordinator, processes, process)
    match given:
        case (None, 1, None) | (_, 1, 0):
            return False
        case None, None, None:
            if not _cluster():
                return False
        case str(address), int(count), int(index) if (
            0 <= index < count and 0 < _port(address) < 1 << 16
        ):
            if index:
                _reach(address)
        case _:
            raise JaxlmError(
                "many processes need --coordinator HOST:PORT, --processes N and --process I from 0 "
                "to N - 1, all three and the same first two for each; these are "
                f"{coordinator}, {processes}, {process}"
            )
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM before us
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=WAIT,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=2 * HEARTBEAT,
        )
    except Exception as error:  # also whatever a cluster's interface raises
        raise JaxlmError(
            f"the other processes cannot be joined: {_first_line(error)}; start all of them with "
            "one --coordinator, or this one alone with --processes 1"
        ) from None
    return jax.process_count() > 1


def _port(address: str) -> int:
    """The port of HOST:PORT; -1 where there is none."""
    port = re.fullmatch(r".+:(\d{1,5})", address)
    return int(port[1]) if port else -1


def _reach(address: str) -> None:
    """Waits until process 0 listens: without it JAX would abort this one. Raises JaxlmError."""
    until = time.monotonic() + WAIT
    host = address.rpartition(":")[0].strip("[]")
    while True:
        try:
            socket.create_connection((host, _port(address)), timeout=5).close()
            return
        except (OSError, UnicodeError) as error:  # UnicodeError of a host such as a..b
            if time.monotonic() > until:
                raise JaxlmError(
                    f"no process answers at {address} ({reason(error)}): start the one of "
                    "--process 0 there, or give all of them another --coordinator"
                ) from None
        time.sleep(0.1)


def _cluster() -> bool:
    """Whether the environment is that of many processes, which JAX can then find by itself."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            return True
    kubernetes_job = "JOB_COMPLETION_INDEX" in os.environ
    return kubernetes_job or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def agreed(value: int) -> int:
    """The largest of the values that the processes give. Every process must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def together(action: Callable[[], T]) -> T:
    """Runs an action, and fails in all processes if it failed in one. Each must call it.

    Args:
        action: What to run; it may raise JaxlmError.

    Returns:
        This process's result.

    Raises:
        JaxlmError: The action failed here, or in another process.
    """
    try:
        result = action()
    except JaxlmError:
        agreed(True)
        raise
    if agreed(False):
        raise JaxlmError("another process failed; see its log")
    return result


@contextmanager
def guarded() -> Iterator[None]:
    """Turns XLA's error about a connection that a dead process broke into a JaxlmError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        of_connection = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if jax.process_count() == 1 or not of_connection:
            raise
        raise JaxlmError(
            f"process {jax.process_index()} lost the others ({_first_line(error)}): what was saved "
            "before is whole; start all of them again with --resume"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
