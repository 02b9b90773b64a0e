# PYTHON_ARGCOMPLETE_OK
"""`jaxlm` and `python -m jaxlm`. They handle signals before larger imports."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

_DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
}


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code.

    Ctrl-C, SIGTERM and SIGUSR1 raise KeyboardInterrupt, so that unfinished files are removed;
    except within an import, which may turn the exception into another one: there they end the
    process. A process that a signal stopped skips Python's own cleanup, in which threads of XLA can
    crash.
    """
    try:
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) is default:  # It is not ignored, as after `nohup`.
                signal.signal(number, _interrupt)
        from jaxlm.cli import main as run_command_line

        code = run_command_line()
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_IGN)  # All is done.
    except KeyboardInterrupt as error:
        _end(*error.args)
    jax = sys.modules.get("jax")
    joined = jax is not None and jax.distributed.is_initialized()
    if code >= 128 and not joined:  # Many processes take leave of each other.
        os._exit(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt with the signal's number; within an import ends the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(number)
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def _end(number: int = signal.SIGINT) -> NoReturn:
    with suppress(OSError):  # Its reader may be gone.
        os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
