"""How a command ends: one sentence for whatever it raised, and an exit code."""

import errno
import os
import resource
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from jaxlm.errors import Diverged, JaxlmError
from jaxlm.terminal import printable, say

FAILED, DIVERGED, SIGNALLED = 1, 3, 128  # (2: arguments that do not parse, by parsing.py)
EXIT_CODES = """\
exit codes: 0 done; 1 a mistake or a damaged file; 2 arguments do not parse;
3 the run diverged; 128 + N stopped by signal N, saved and ready for --resume

JAXLM_TRACEBACK=1 in the environment shows where an error came from.
"""
MOST_SHOWN = 1000  # characters of an error
LEAST_MEMORY = 3 << 29  # bytes of address space; with less, a thread that cannot start ends the process


def exit_code(action: Callable[[], int | None]) -> int:
    """Acts, prints a sentence on standard error for what was raised, and returns the exit code.

    Args:
        action: returns an exit code, or None for 0.

    Raises:
        SystemExit: the action raised it.
    """
    with _quiet() as ended:
        try:
            code = _guarded(action)
        finally:
            flushed = _flush()
    if ended and code == 0:
        say(f"warning: a background thread ended early: {_one_line(_sentence(ended[0]))}", file=sys.stderr)
    return code if flushed or code else FAILED


def check_limits() -> None:
    """Raises JaxlmError where JAX would be ended by the limit on memory without a word, in a library of its own."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_MEMORY:
        raise JaxlmError(
            f"JAX needs at least {LEAST_MEMORY >> 20:,} MiB of address space, and the limit is "
            f"{limit >> 20:,} MiB: raise it (ulimit -v unlimited)"
        )


def fail(message: str, code: int = FAILED) -> int:
    """Prints an error as one line on standard error; returns the code."""
    if os.environ.get("JAXLM_TRACEBACK") and sys.exc_info()[0]:
        traceback.print_exc()
    say(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _guarded(action: Callable[[], int | None]) -> int:
    try:
        stop = None
        try:
            code = action() or 0
        except SystemExit as raised:  # after --help, or by arguments that do not parse
            code, stop = 0, raised
        if sys.stdout is not None:
            sys.stdout.flush()
        if stop is not None:
            raise stop
        return code
    except Diverged as error:
        return fail(str(error), DIVERGED)
    except JaxlmError as error:
        return fail(str(error))
    except BrokenPipeError:  # the reader of the output has ended
        return FAILED
    except KeyboardInterrupt:
        return fail("interrupted", SIGNALLED + 2)
    except (OSError, MemoryError, OverflowError, UnicodeError, RuntimeError, ImportError) as error:
        # The last resort. (RecursionError and JaxRuntimeError are RuntimeErrors.)
        return fail(_sentence(error))


def _sentence(error: BaseException) -> str:
    """What happened and what to do next."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, OSError):
        where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        hint = {errno.EMFILE: "; raise the limit on open files (ulimit -n)", errno.ENOMEM: f"; {_MEMORY}"}
        return f"{error.strerror or text}{where}{hint.get(error.errno or 0, '')}; what was saved before is intact"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "failed to map segment" in text:
        return f"there is not enough memory{f' ({text})' if text else ''}; {_MEMORY}; what was saved before is intact"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read"
    if isinstance(error, OverflowError):
        return f"a number is too large: {text}"
    if isinstance(error, UnicodeError):
        return f"a text or a name is not UTF-8: {text}"
    if isinstance(error, ImportError):
        return f"a library cannot be loaded: {text}; install jaxlm's dependencies again (pip install -e .)"
    if text.startswith("Unable to initialize backend"):
        return (
            f"JAX cannot use the devices that JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} names: {text}; "
            f"unset JAX_PLATFORMS, or set it to cpu"
        )
    if "start new thread" in text:
        return "no thread can be started; raise the limits on processes and memory (ulimit -u, ulimit -v)"
    return f"{type(error).__name__}: {text}; JAXLM_TRACEBACK=1 shows where it came from"


_MEMORY = "use a smaller model or batch_size, or raise the limit on memory (ulimit -v)"


def _one_line(text: str) -> str:
    text = printable(" ".join(text.splitlines()))
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} ... {text[-MOST_SHOWN // 2 :]}"


def _flush() -> bool:
    """Whether all output was written. What cannot be is dropped, or Python would say so once more as it exits."""
    output = sys.stdout
    if output is None:  # the process was started without
        return True
    try:
        output.flush()
        return True
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return False


@contextmanager
def _quiet() -> Iterator[list[BaseException]]:
    """Collects what background threads raise, in place of their tracebacks and of those from destructors.

    A warning is one line, without the place in the code that it came from.
    """
    ended: list[BaseException] = []

    def note(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            ended.append(args.exc_value)

    def warn(message: Warning | str, *_: object) -> None:
        with suppress(OSError, ValueError):  # (standard error may be closed)
            say(f"warning: {_one_line(str(message))}", file=sys.stderr)

    before = threading.excepthook, sys.unraisablehook, warnings.showwarning
    if not os.environ.get("JAXLM_TRACEBACK"):
        threading.excepthook, sys.unraisablehook, warnings.showwarning = note, lambda _: None, warn
    try:
        yield ended
    finally:
        threading.excepthook, sys.unraisablehook, warnings.showwarning = before
