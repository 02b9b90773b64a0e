# PYTHON_ARGCOMPLETE_OK
"""`jaxlm` and `python -m jaxlm`. Ctrl-C is handled before anything large is imported."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code.

    Ctrl-C raises KeyboardInterrupt, except within an import, which may turn the exception into another one: there it
    ends the process. A process that a signal stopped skips Python's own cleanup, in which threads of XLA can crash.
    """
    try:
        if (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):  # else it is ignored, as after `nohup`
            signal.signal(signal.SIGINT, _interrupt)
        from jaxlm.cli import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
    except KeyboardInterrupt:
        _end()
    jax = sys.modules.get("jax")
    if code >= 128 and not (
        jax and jax.distributed.is_initialized()
    ):  # many processes take leave of each other
        os._exit(code)
    sys.exit(code)


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> NoReturn:
    with suppress(OSError):  # its reader may be gone
        os.write(2, b"error: interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
