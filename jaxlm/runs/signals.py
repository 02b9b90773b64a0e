"""Signals that ask a run to stop: the first is noted, the second ends the process at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Ctrl-C; kill, a batch system's or a cloud's notice; and what `sbatch --signal` is often told to send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Which signal asked for the end, if one did."""

    signal: int | None = None


@contextmanager
def noted(together: float = 0.1) -> Iterator[Stop]:
    """The first of `SIGNALS` is noted in what this yields; a second ends the process at once, with exit code 128 + N.

    The same signal within `together` seconds is the same wish: `timeout` sends it twice.

    Python runs its own handlers only between the calls that the main thread makes, and one call of XLA can take
    long. The interpreter's wake-up descriptor knows of a signal at once, and a thread listens to it.
    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    listener = threading.Thread(target=_listen, args=(ear, stop, together), daemon=True)
    listener.start()
    wakeup_before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:  # (not one of Python's, which cannot be put back)
                signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(mouth)
        listener.join()
        os.close(ear)


def _listen(ear: int, stop: Stop, together: float) -> None:
    since = 0.0
    while number := os.read(ear, 1):
        if number[0] in SIGNALS:
            if stop.signal is None:
                stop.signal = number[0]
                since = time.monotonic()
            elif number[0] != stop.signal or time.monotonic() - since > together:
                with suppress(
                    OSError
                ):  # its reader may be gone, as that of `2>&1 | tee` after Ctrl-C
                    os.write(2, b"stopped at once; what was saved is whole\n")
                os._exit(128 + number[0])
