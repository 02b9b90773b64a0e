"""Many processes: how one joins the others, and how they agree. The first alone has the run's directory.

They are copies of one command, on one host or many, and run one program over all their devices (`parallel.py`); JAX's
own runtime connects them. So each must come to the same calls in the same order: whatever one alone knows (a signal,
a file, a failure) is told here to all before anything follows from it. With one process all of this is nothing.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from jaxlm.errors import JaxlmError

T = TypeVar("T")

HEARTBEAT = 30  # seconds without a word, after which a process counts as dead and all end

def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> bool:
    """Joins the other processes, before JAX is first used, if the arguments or the environment tell of any.

    The coordinator is HOST:PORT of process 0, which must be free there. Without arguments JAX looks for SLURM, Open
    MPI, Kubernetes or a TPU's hosts, and one process stays alone. Raises JaxlmError.
    """
    given = (coordinator, processes, process)
    if given == (None, None, None):
        if not _cluster():
            return False
    elif processes == 1 and (coordinator, process) in ((None, None), (coordinator, 0)):
        return False
    elif (coordinator is None or processes is None or process is None or not 0 <= process < processes
          or not re.fullmatch(r".+:\d{1,5}", coordinator)):
        raise JaxlmError(f"many processes need --coordinator HOST:PORT, --processes N and --process I from 0 to N - 1, "
                         f"all three and the same first two for each; these are {coordinator}, {processes}, {process}")
    # (Its handler of SIGTERM would come before ours; gloo is how processors talk; other devices have their own ways.)
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*given, initialization_timeout=120, heartbeat_timeout_seconds=HEARTBEAT,
                                   shutdown_timeout_seconds=2 * HEARTBEAT)
    except Exception as error:  # also whatever a cluster's interface raises
        raise JaxlmError(f"the other processes cannot be joined: {_first_line(error)}; start all of them with one "
                         f"--coordinator, or this one alone with --processes 1") from None
    return several()


def _cluster() -> bool:
    """Whether the environment is that of one process among many, which `jax.distributed.initialize` can then find."""
    counts = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return any(count.isdigit() and int(count) > 1 for count in counts) or len(hosts) > 1 or (
        "JOB_COMPLETION_INDEX" in os.environ)  # of an indexed job of Kubernetes


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The largest value, of all processes."""
    if not several():
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.int32(value)).max())


def together(action: Callable[[], T]) -> T:
    """The action's result, where it succeeded in every process. Raises its JaxlmError, or one that another failed."""
    if not several():
        return action()
    try:
        result, failed = action(), None
    except JaxlmError as error:
        result, failed = None, error
    if agreed(failed is not None):
        raise failed or JaxlmError("another process failed, and says why")
    return result  # type: ignore[return-value]


@contextmanager
def guarded() -> Iterator[None]:
    """Raises a JaxlmError where a process that died broke the connection, instead of what XLA makes of it."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not several() or not (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
            raise
        raise JaxlmError(f"process {jax.process_index()} lost the others ({_first_line(error)}): what was saved "
                         f"before is whole; start all of them again with --resume") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
