"""Commands run here, programs in a real pseudo-terminal, and what a person sees there."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

from jaxlm.cli import main

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Session:
    """What a program showed."""

    screens: list[list[str]]  # each distinct one, as lines from the top without blank ends
    lines: list[str]  # all lines in the end, those scrolled away included
    written: bytes
    code: int


def in_terminal(
    command: Sequence[str], columns: int = 80, rows: int = 24, **environment: str
) -> Session:
    """Runs a program until it ends, in a terminal of its own.

    Args:
        command: the program and its arguments.
        columns: the terminal's width.
        rows: its height.
        **environment: variables to set.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    ours |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **environment}
    screen = pyte.HistoryScreen(columns, rows, history=10_000)
    stream = pyte.ByteStream(screen)
    screens = []
    written = b""
    terminal, inner = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = os.posix_spawn(
        command[0],
        list(command),
        ours,
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, inner, number) for number in range(3)),
            (os.POSIX_SPAWN_CLOSE, terminal),
        ],
    )
    os.close(inner)
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the program has closed it
            break
        if not data:
            break
        written += data
        for frame in re.split(rb"(?=\r\x1b\[2K)", data):  # a slow reader gets several at once
            stream.feed(frame)
            shown = "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")
            if not screens or screens[-1] != shown:
                screens.append(shown)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    gone = [
        "".join(line[place].data for place in range(columns)).rstrip()
        for line in screen.history.top
    ]
    return Session(screens, [*gone, *(screens[-1] if screens else [])], written, code)


def jaxlm(*arguments: str, columns: int = 80, rows: int = 24, **environment: str) -> Session:
    """`jaxlm ARGUMENTS` in a terminal."""
    code = "import sys; from jaxlm.cli import main; sys.exit(main())"
    return in_terminal([sys.executable, "-c", code, *arguments], columns, rows, **environment)


def run(arguments: Sequence[str] | None, call: Callable = main):
    """(exit code, standard output, standard error) of a command, in this process."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call(arguments)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()
