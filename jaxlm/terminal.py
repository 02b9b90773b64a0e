"""Text that is printed or kept: control characters of files become visible escapes, passwords of URLs `***`."""

import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

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


def printable(text: str, *, keep_newlines: bool = False, encoding: str | None = None) -> str:
    r"""Text that a terminal shows and does not obey: `\x1b` in place of an escape character. Idempotent.

    Line feeds become `\n` too, unless `keep_newlines`; with an `encoding`, so do letters that it
    lacks.

    >>> print(printable("\x1b[2J and \n"))
    \x1b[2J and \n
    """
    kept = "\n" if keep_newlines else ""
    text = _UNSAFE.sub(
        lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(),
        text,
    )
    if encoding:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def flag_text(name: str, value: object) -> str:
    """A flag and its value as one types them into a shell.

    >>> flag_text("--run-dir", "runs/my run"), flag_text("--run-dir", "-x")
    ("--run-dir 'runs/my run'", '--run-dir=-x')
    """
    text = shlex.quote(str(value))
    return f"{name}{'=' if str(value).startswith('-') else ' '}{text}"


def say(
    text: object = "",
    *,
    file: TextIO | None = None,
    end: str = "\n",
    flush: bool = False,
    exact: bool = False,
) -> None:
    """Prints text that may contain parts of files, on standard output or into another file.

    Line feeds are kept: a part that must stay on its line goes through `printable` first. With
        `exact` so are control
    characters. Letters that the file's encoding lacks become escapes. A process without a standard
    output prints nothing. Raises OSError if the file cannot be written.
    """
    file = sys.stdout if file is None else file
    if file is not None:
        encoding = getattr(file, "encoding", None) or "utf-8"
        shown = str(text) if exact else printable(str(text), keep_newlines=True)
        print(
            shown.encode(encoding, "backslashreplace").decode(encoding),
            end=end,
            file=file,
            flush=flush,
        )


def say_line(text: object, file: TextIO | None = None) -> None:
    """Prints text that may contain parts of files, such as names, as one line. Raises OSError."""
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
    """The URL with `***` for its password, in the user's part or the query; any other text as it is."""
    for pattern in _PASSWORDS:
        url = pattern.sub(r"\1***", url)
    return url


def scrubbed(text: str, url: str) -> str:
    """A text, such as a driver's error, without the URL's password, however it is quoted."""
    text = text.replace(url, without_password(url))
    found = [match[2] for pattern in _PASSWORDS for match in pattern.finditer(url)]
    for secret in sorted({*found, *map(unquote, found)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
