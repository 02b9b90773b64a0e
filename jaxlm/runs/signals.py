"""Signals that ask a run to stop: the first is noted, the second ends the process at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Ctrl-C; kill, a batch system's or a cloud's notice; and what `sbatch --signal` is often told to
# send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Which signal asked for the end.

    Attributes:
        signal: Its number; None until one has come.
    """

    signal: int | None = None


@contextmanager
def noted(together: float = 0.1) -> Iterator[Stop]:
    """Notes the first of `SIGNALS`; a second one ends the process at once, with exit code 128 + N.

    Python runs its own handlers only between the calls that the main thread makes, and one call of
    XLA can take long. The interpreter's wake-up descriptor knows of a signal at once, and a thread
    listens to it. Outside the main thread, where Python allows no handlers, nothing is noted.

    Args:
        together: Seconds within which the same signal counts once: `timeout` sends it twice.

    Yields:
        The signal, once one has come.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = threading.Thread(target=_listen, args=(reader, stop, together), daemon=True)
    listener.start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:  # a handler that is not Python's cannot be put back
                signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(writer)
        listener.join()
        os.close(reader)


def _listen(
    reader: int,
    stop: Stop,
    together: float,
) -> None:
    since = 0.0
    while number := os.read(reader, 1):
        if number[0] in SIGNALS:
            if stop.signal is None:
                stop.signal = number[0]
                since = time.monotonic()
            elif number[0] != stop.signal or time.monotonic() - since > together:
                # The output's reader may be gone, as that of `2>&1 | tee` after Ctrl-C.
                with suppress(OSError):
                    os.write(2, b"stopped at once; what was saved is whole\n")
                os._exit(128 + number[0])
