"""How a command ends: one sentence for whatever it raised, and an exit code."""

import os
import re
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from jaxlm.base.errors import Diverged, JaxlmError
from jaxlm.base.terminal import printable, say

FAILED = 1
UNPARSED = 2
DIVERGED = 3
SIGNALLED = 128  # plus the signal's number
EXIT_CODES = """\
exit codes: 0 done; 1 a mistake or a damaged file; 2 arguments do not parse;
3 diverged; 128 + N by signal N. JAXLM_TRACEBACK=1 shows where errors come from."""
MOST_SHOWN = 1000  # characters of an error
LEAST_MEMORY = 3 << 29  # bytes of address space: with less, JAX cannot start its threads
_REMEDIES = {  # a pattern in an error's text -> what to do
    "MemoryError|RESOURCE_EXHAUSTED|failed to map segment|Cannot allocate memory": (
        "there is not enough memory: use a smaller model or batch_size, "
        "or raise the limit on memory (ulimit -v)"
    ),
    "Too many open files": "raise the limit on open files (ulimit -n)",
    "start new thread": "raise the limits on processes and memory (ulimit -u, ulimit -v)",
    "Unable to initialize backend": "unset JAX_PLATFORMS, or set it to cpu",
    "RecursionError": "an input is nested too deeply to be read",
    "OverflowError": "a number is too large",
    "Unicode": "a text or a name is not UTF-8",
    "ImportError|ModuleNotFoundError": (
        "install jaxlm and its dependencies again (in a clone: pip install -e .; "
        "otherwise: pip install --force-reinstall jaxlm)"
    ),
    "OSError": "check the file or device",
}
# What a mistake of the user or the machine raises, beside JaxlmError. RecursionError and
# JaxRuntimeError are RuntimeErrors. Anything else is a mistake in jaxlm, and keeps its traceback.
_EXPECTED = (OSError, MemoryError, OverflowError, UnicodeError, RuntimeError, ImportError)


def exit_code(action: Callable[[], int | None]) -> int:
    """Acts, and says in a sentence on standard error what was raised.

    Args:
        action: What to do; returns an exit code, or None for 0.

    Returns:
        The exit code.

    Raises:
        SystemExit: The action raised it.
    """
    if sys.stderr is None:  # It was closed; without a file errors would go to the output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with _warnings_as_lines() as thread_errors:
        try:
            try:
                code = action() or 0
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            code = _failure(error)
        if thread_errors and code == 0:
            with suppress(OSError):
                reason = _one_line(_sentence(thread_errors[0]))
                say(f"warning: a background thread ended early: {reason}", file=sys.stderr)
    return code


def check_limits() -> None:
    """Raises JaxlmError where a limit on memory would end JAX without a message."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_MEMORY:
        raise JaxlmError(
            f"JAX needs at least {LEAST_MEMORY >> 20:,} MiB of address space, "
            f"and the limit is {limit >> 20:,} MiB: raise it (ulimit -v unlimited)"
        )


def fail(message: str, code: int = FAILED) -> int:
    """Prints an error as one line on standard error.

    Args:
        message: What was expected, what came, what to do.
        code: The exit code.

    Returns:
        The exit code.
    """
    with suppress(OSError):  # Its reader may be gone, as that of `2>&1 | tee` after Ctrl-C.
        if os.environ.get("JAXLM_TRACEBACK") and sys.exc_info()[0]:
            traceback.print_exc()
        say(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _failure(error: BaseException) -> int:
    """Says what a command raised, and returns its exit code; raises jaxlm's own mistakes again."""
    for cause in _causes(error):
        if isinstance(cause, KeyboardInterrupt):  # `__main__` raises it with a signal's number.
            return fail("interrupted", SIGNALLED + (cause.args or (signal.SIGINT,))[0])
    if isinstance(error, Diverged):
        return fail(str(error), DIVERGED)
    if isinstance(error, JaxlmError):
        return fail(str(error))
    if (
        isinstance(error, AssertionError)
        and not str(error)
        and "cuda" in os.environ.get("JAX_PLATFORMS", "")
    ):  # JAX's own, without a message, where there is no GPU of NVIDIA's
        return fail(
            "JAX sees no GPU, which JAX_PLATFORMS asks for: unset JAX_PLATFORMS, or set it to cpu"
        )
    if not isinstance(error, _EXPECTED):
        raise error
    _drop_output(sys.stdout)
    if isinstance(error, BrokenPipeError):  # The output's reader has left, and needs no message.
        return FAILED
    return fail(_sentence(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from.

    JAX turns a Ctrl-C that arrives while it compares trees into a ValueError.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException) -> str:
    """What happened and what to do next."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if isinstance(error.filename, str | bytes):
            text += f": {os.fsdecode(error.filename)}"
    text = f"{type(error).__name__}: {text}"
    remedy = "JAXLM_TRACEBACK=1 shows where it came from"
    for pattern, known_remedy in _REMEDIES.items():
        if re.search(pattern, text):
            remedy = known_remedy
            break
    return f"{text}; {remedy}; what was saved before is intact"


def _one_line(text: str) -> str:
    line = printable(" ".join(text.splitlines()))
    if len(line) <= MOST_SHOWN:
        return line
    return f"{line[: MOST_SHOWN // 2]} ... {line[-MOST_SHOWN // 2 :]} ({len(text):,} characters)"


def _drop_output(file: TextIO | None) -> None:
    """Drops output that cannot be written: Python would try again, and complain, as it exits."""
    if file is None:
        return
    with suppress(OSError, ValueError):
        file.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@contextmanager
def _warnings_as_lines() -> Iterator[list[BaseException]]:
    """Shows a warning as one line, and collects what background threads raise.

    A damaged entry of the compilation cache is removed: JAX would warn of it in every process. A
    Ctrl-C that arrives in a destructor or a callback, where Python drops exceptions, is raised
    again a moment later.
    """
    thread_errors: list[BaseException] = []

    def collect(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            thread_errors.append(args.exc_value)

    def raise_later(args: "sys.UnraisableHookArgs") -> None:
        if isinstance(args.exc_value, KeyboardInterrupt):
            number = (args.exc_value.args or (signal.SIGINT,))[0]
            # `os.kill` reaches the main thread, also while it waits.
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()

    def warn(message: Warning | str, *_: object) -> None:
        program = re.search(
            "reading persistent compilation cache entry for '([^'/]+)'", str(message)
        )
        if program:
            from jaxlm.data.cache import remove_programs

            # JAX compiles it now, and writes only entries that do not exist.
            remove_programs(program[1])
            return
        with suppress(OSError, ValueError):  # Standard error may be closed.
            say(f"warning: {_one_line(str(message))}", file=sys.stderr)

    hooks = (threading.excepthook, sys.unraisablehook, warnings.showwarning)
    if not os.environ.get("JAXLM_TRACEBACK"):
        threading.excepthook = collect
        sys.unraisablehook = raise_later
        warnings.showwarning = warn
    try:
        yield thread_errors
    finally:
        threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
        _drop_output(sys.stderr)
