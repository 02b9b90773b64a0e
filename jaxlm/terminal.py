"""Text from files on a terminal: control characters become visible escapes."""

import re
import shlex
import sys
from typing import TextIO

# C0, DEL and C1; line and paragraph separators; bidirectional embeddings, overrides and isolates (CVE-2021-42574);
# lone surrogates, which stand for the bytes of file names that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, keep_newlines: bool = False, encoding: str | None = None) -> str:
    r"""Text that a terminal shows and does not obey: `\x1b` in place of an escape character. Idempotent.

    Args:
        text: any text, such as a word of a vocabulary or an error message that quotes a file.
        keep_newlines: whether line feeds stay; otherwise they become `\n`, so that one word stays on one line.
        encoding: the output's encoding; letters that it lacks become escapes too. None: every letter stays.

    Returns:
        The text without control characters, bidirectional overrides, line separators and lone surrogates.
        All other letters stay, backslashes included.

    >>> print(printable("\x1b[2J and \n"))
    \x1b[2J and \n
    """

    def escape(unsafe: re.Match[str]) -> str:
        if keep_newlines and unsafe[0] == "\n":
            return "\n"
        return unsafe[0].encode("unicode_escape").decode()

    text = _UNSAFE.sub(escape, text)
    return text.encode(encoding, "backslashreplace").decode(encoding) if encoding else text


def flag(name: str, value: object) -> str:
    """A flag and its value as one types them into a shell.

    >>> flag("--run-dir", "runs/my run"), flag("--run-dir", "-x")
    ("--run-dir 'runs/my run'", '--run-dir=-x')
    """
    text = shlex.quote(str(value))
    return f"{name}{'=' if str(value).startswith('-') else ' '}{text}"


def say(
    text: object = "", *, file: TextIO | None = None, end: str = "\n", flush: bool = False, exact: bool = False
) -> None:
    """Prints text that may contain parts of files: the only printer of the command line.

    Line feeds are kept: a part that must stay on its line goes through `printable` first.

    Args:
        text: what to print.
        file: where to (default: standard output; nothing happens where the process has none).
        end: printed after the text.
        flush: whether to flush the file.
        exact: whether control characters are kept; letters that the file's encoding lacks become escapes in any case.

    Raises:
        OSError: The file cannot be written.
    """
    file = sys.stdout if file is None else file
    if file is not None:
        encoding = getattr(file, "encoding", None) or "utf-8"
        shown = str(text) if exact else printable(str(text), keep_newlines=True)
        print(shown.encode(encoding, "backslashreplace").decode(encoding), end=end, file=file, flush=flush)


def say_line(text: object, file: TextIO | None = None) -> None:
    """Prints text that may contain parts of files, such as names, as one line. Raises OSError."""
    say(printable(str(text)), file=file)


def is_terminal(file: TextIO | None) -> bool:
    """Whether a file of the process, if it has one, is a terminal."""
    return file is not None and file.isatty()
