"""The worker processes of a sweep: started, signalled, and what they said where they failed."""

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

from jaxlm.files import write_bytes
from jaxlm.runs.signals import Stop
from jaxlm.sweeps.cores import pin
from jaxlm.terminal import printable

MOST_SAID = 1 << 20  # bytes of standard error that are read
_MEMORY = re.compile("bad_alloc|out of memory|cannot allocate memory|failed to map segment", re.IGNORECASE)


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    workers: int,
    folder: Path,
    stop: Stop,
    show: Callable[[], object],
    say: Callable[[str], object],
    every: float,
) -> str | None:
    """Runs workers until each has ended, and passes a signal on to them.

    What a worker writes on standard error (C++ writes stacks there) is kept from the terminal. Of one that fails a
    sentence is said, and where that is not its own, what it wrote is kept in the sweep's directory.

    Args:
        command: Starts one.
        environment: Its variables.
        workers: How many.
        folder: The sweep's directory.
        stop: The signal that asks to stop, if there is one.
        show: Called `every` so many seconds.
        say: Prints a line.
        every: Seconds.

    Returns:
        Why the last one that failed did; None where none did, or a signal came.
    """
    told, failure = False, None
    with ExitStack() as stack:
        said = {number: stack.enter_context(tempfile.TemporaryFile()) for number in range(workers)}
        running: dict[int, subprocess.Popen] = {}
        stack.callback(lambda: [process.terminate() for process in running.values()])
        for number in said:
            running[number] = subprocess.Popen(command, start_new_session=True, env=environment, stderr=said[number])
        for number, process in running.items():
            pin(process.pid, number, workers)
        while running:
            if stop.signal is not None and not told:
                told = True
                for process in running.values():
                    process.send_signal(stop.signal)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    if process.returncode and stop.signal is None:
                        failure = _reason(process.returncode, _tail(said[number]), folder / f"worker-{number}.log")
                        say(
                            f"!! worker {number} failed: {failure}"
                            + ("; the others take its trials over" if running else "")
                        )
            show()
            time.sleep(every)
    return failure


def _reason(code: int, said: bytes, log: Path) -> str:
    """Why a worker failed: its own sentence, or how it ended and the file that keeps what it wrote."""
    text = said.decode(errors="replace")
    if own := re.findall("^error: (.*)$", text, re.MULTILINE):
        return printable(own[-1])
    why = f"{signal.Signals(-code).name} ended it" if code < 0 else f"it ended with exit code {code}"
    if _MEMORY.search(text):
        why += " for lack of memory: raise the limit (ulimit -v), or use fewer --workers"
    if said:
        with suppress(OSError):
            write_bytes(log, said)
            why += f"; what it wrote is in {log}"
    return why


def _tail(file: IO[bytes]) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_SAID))
    return file.read()
