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
from typing import Any

from jaxlm.errors import Diverged, JaxlmError
from jaxlm.terminal import printable, say

FAILED = 1
DIVERGED = 3
SIGNALLED = 128  # (2: arguments that do not parse, by parsing.py)
EXIT_CODES = """\
exit codes: 0 done; 1 a mistake or a damaged file; 2 arguments do not parse;
3 the run diverged; 128 + N ended by signal N (the first saves a run)
JAXLM_TRACEBACK=1 in the environment shows where an error came from."""
MOST_SHOWN = 1000  # characters of an error
LEAST_MEMORY = (
    3 << 29
)  # bytes of address space; with less, a thread that cannot start ends the process
_MEMORY = "there is not enough memory: use a smaller model or batch_size, or raise the limit on memory (ulimit -v)"
_HINTS = {  # what an error says -> what to do
    "MemoryError|RESOURCE_EXHAUSTED|failed to map segment|Cannot allocate memory": _MEMORY,
    "Too many open files": "raise the limit on open files (ulimit -n)",
    "start new thread": "raise the limits on processes and memory (ulimit -u, ulimit -v)",
    "Unable to initialize backend": "unset JAX_PLATFORMS, or set it to cpu",
    "RecursionError": "an input is nested too deeply to be read",
    "OverflowError": "a number is too large",
    "Unicode": "a text or a name is not UTF-8",
    "ImportError|ModuleNotFoundError": "install jaxlm's dependencies again (pip install -e .)",
    "OSError": "check the file or device",
}


def exit_code(action: Callable[[], int | None]) -> int:
    """Acts, says on standard error what was raised, in a sentence, and returns the exit code. Passes SystemExit on."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (closed: else errors would be output)
    with _quiet() as ended:
        try:
            try:
                code = action() or 0
            except Exception as error:
                if any(isinstance(one, KeyboardInterrupt) for one in _causes(error)):
                    raise KeyboardInterrupt from error
                raise
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except JaxlmError as error:
            return fail(str(error), DIVERGED if isinstance(error, Diverged) else FAILED)
        except KeyboardInterrupt:
            return fail("interrupted", SIGNALLED + 2)
        except (
            AssertionError
        ) as error:  # JAX's own, without a message, where there is no GPU of NVIDIA's
            if str(error) or "cuda" not in os.environ.get("JAX_PLATFORMS", ""):
                raise
            return fail(
                "JAX sees no GPU, which JAX_PLATFORMS asks for: unset JAX_PLATFORMS, or set it to cpu"
            )
        except (
            OSError,
            MemoryError,
            OverflowError,
            UnicodeError,
            RuntimeError,
            ImportError,
        ) as error:
            _drop_output(sys.stdout)
            # (RecursionError and JaxRuntimeError are RuntimeErrors. A reader that has left needs no message.)
            if isinstance(error, BrokenPipeError):
                return FAILED
            return fail(_sentence(error))
    if ended and code == 0:
        with suppress(OSError):
            say(
                f"warning: a background thread ended early: {_one_line(_sentence(ended[0]))}",
                file=sys.stderr,
            )
    return code


def check_limits() -> None:
    """Raises JaxlmError where a limit on memory would end JAX without a message, in a library of its own."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_MEMORY:
        needed = f"JAX needs at least {LEAST_MEMORY >> 20:,} MiB of address space"
        raise JaxlmError(
            f"{needed}, and the limit is {limit >> 20:,} MiB: raise it (ulimit -v unlimited)"
        )


def fail(message: str, code: int = FAILED) -> int:
    """Prints an error as one line on standard error; returns the code."""
    with suppress(OSError):  # its reader may be gone, as that of `2>&1 | tee` after Ctrl-C
        if os.environ.get("JAXLM_TRACEBACK") and sys.exc_info()[0]:
            traceback.print_exc()
        say(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from: JAX turns a Ctrl-C that arrives as it compares trees into a ValueError."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException) -> str:
    """What happened and what to do next."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, str | bytes)
        text = error.strerror + (f": {os.fsdecode(error.filename)}" if named else "")
    text = f"{type(error).__name__}: {text}"
    hint = next((hint for said, hint in _HINTS.items() if re.search(said, text)), None)
    return f"{text}; {hint or 'JAXLM_TRACEBACK=1 shows where it came from'}; what was saved before is intact"


def _one_line(text: str) -> str:
    line = printable(" ".join(text.splitlines()))
    if len(line) <= MOST_SHOWN:
        return line
    return f"{line[: MOST_SHOWN // 2]} ... {line[-MOST_SHOWN // 2 :]} ({len(text):,} characters)"


def _drop_output(file: Any) -> None:
    """Drops output that cannot be written: Python would try again, and complain, as it exits."""
    with suppress(OSError, ValueError, AttributeError):
        file.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@contextmanager
def _quiet() -> Iterator[list[BaseException]]:
    """Collects what background threads raise, in place of their tracebacks; a warning is one line.

    A damaged entry of the compilation cache is removed: JAX would warn of it in every process. A Ctrl-C that arrives in
    a destructor or a callback, where Python drops exceptions, is raised again a moment later.
    """
    ended: list[BaseException] = []

    def note(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            ended.append(args.exc_value)

    def dropped(args: "sys.UnraisableHookArgs") -> None:
        if isinstance(args.exc_value, KeyboardInterrupt):
            threading.Timer(
                0.01, os.kill, (os.getpid(), signal.SIGINT)
            ).start()  # to the main thread, also in a wait

    def warn(message: Warning | str, *_: object) -> None:
        program = re.search(
            "reading persistent compilation cache entry for '([^'/]+)'", str(message)
        )
        if program:
            from jaxlm.data.cache import remove_programs

            return remove_programs(
                program[1]
            )  # JAX compiles it now, and writes only entries that do not exist
        with suppress(OSError, ValueError):  # (standard error may be closed)
            say(f"warning: {_one_line(str(message))}", file=sys.stderr)

    before = threading.excepthook, sys.unraisablehook, warnings.showwarning
    if not os.environ.get("JAXLM_TRACEBACK"):
        threading.excepthook = note
        sys.unraisablehook = dropped
        warnings.showwarning = warn
    try:
        yield ended
    finally:
        threading.excepthook, sys.unraisablehook, warnings.showwarning = before
        _drop_output(sys.stderr)
