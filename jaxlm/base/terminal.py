"""Text that is printed or kept: control characters become visible escapes, passwords `***`."""

import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

from jaxlm.base.packaged import as_named

# C0, DEL and C1; line and paragraph separators; bidirectional embeddings, overrides and isolates
# (CVE-2021-42574); lone surrogates, which stand for the bytes of file names that are not UTF-8; and
# two letters that XML forbids.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# A URL's password, in the user's part (up to the last @, for a password may hold one; a third
# slash: no user) or query.
_PASSWORDS = (
    re.compile(r"(://(?!/)[^:@\s]*:)(.*)(?=@)", re.DOTALL),
    re.compile(r"([?&][^=&#\s]*(?:pass|pwd|secret|token)[^=&#\s]*=)([^&#\s]*)", re.IGNORECASE),
)


def printable(
    text: str,
    *,
    keep_newlines: bool = False,
    encoding: str | None = None,
) -> str:
    r"""Text that a terminal shows and does not obey: `\x1b` in place of an escape character.

    >>> print(printable("\x1b[2J and \n"))
    \x1b[2J and \n

    Args:
        text: Any text. What this function returned is returned unchanged.
        keep_newlines: Whether line feeds stay; else they become `\n` too.
        encoding: The terminal's: letters that it lacks become escapes too.

    Returns:
        The text with escapes.
    """

    def visible(match):
        if keep_newlines and match[0] == "\n":
            return match[0]
        return match[0].encode("unicode_escape").decode()

    text = _UNSAFE.sub(visible, text)
    if encoding:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def flag_text(name: str, value: object) -> str:
    """A flag and its value as one types them into a shell.

    >>> flag_text("--run-dir", "runs/my run"), flag_text("--run-dir", "-x")
    ("--run-dir 'runs/my run'", '--run-dir=-x')

    Args:
        name: The flag.
        value: Its value.

    Returns:
        Both, with quotes where the shell needs them.
    """
    separator = "=" if str(value).startswith("-") else " "
    return f"{name}{separator}{shlex.quote(str(value))}"


def say(
    text: object = "",
    *,
    file: TextIO | None = None,
    end: str = "\n",
    flush: bool = False,
    exact: bool = False,
) -> None:
    """Prints text that may contain parts of files.

    Args:
        text: The text. Line feeds are kept: a part that must stay on its line goes through
            `printable` first. Letters that the file's encoding lacks become escapes.
        file: Where it is printed; standard output by default, nowhere if the process has none.
        end: What follows the text.
        flush: Whether the text is written at once.
        exact: Whether control characters are kept.

    Raises:
        OSError: The file cannot be written.
    """
    file = sys.stdout if file is None else file
    if file is None:
        return
    encoding = getattr(file, "encoding", None) or "utf-8"
    shown = str(text) if exact else printable(as_named(str(text)), keep_newlines=True)
    encodable = shown.encode(encoding, "backslashreplace").decode(encoding)
    print(encodable, end=end, file=file, flush=flush)


def say_line(text: object, file: TextIO | None = None) -> None:
    """Prints text that may contain parts of files, such as names, as one line.

    Args:
        text: The text.
        file: Where it is printed; standard output by default.

    Raises:
        OSError: The file cannot be written.
    """
    say(printable(str(text)), file=file)


def say_written(path: str | Path, text: object) -> None:
    """Says something about an output that was written, on one line.

    Args:
        path: Where it was written. If that is the process's standard output, the line goes to
            standard error.
        text: The line.

    Raises:
        OSError: The line cannot be printed.
    """
    say_line(text, sys.stderr if _is_standard_output(path) else None)


def _is_standard_output(path: str | Path) -> bool:
    if sys.stdout is None:
        return False
    with suppress(OSError, ValueError):  # There is no such file, or standard output is none.
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return False


def is_terminal(file: TextIO | None) -> bool:
    """Whether a file of the process, if it has one, is a terminal."""
    return file is not None and file.isatty()


def without_password(url: str) -> str:
    """The URL with `***` for a password in the user's part or the query; other texts unchanged."""
    for pattern in _PASSWORDS:
        url = pattern.sub(r"\1***", url)
    return url


def scrubbed(text: str, url: str) -> str:
    """Removes a URL's password from a text.

    Args:
        text: A text such as a driver's error, which may quote the password in some way.
        url: The URL.

    Returns:
        The text with `***` for the password.
    """
    text = text.replace(url, without_password(url))
    quoted = [match[2] for pattern in _PASSWORDS for match in pattern.finditer(url)]
    secrets = {*quoted, *map(unquote, quoted)} - {""}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
