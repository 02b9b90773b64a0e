"""Tables, and where they go: to standard output, or to a file that appears whole at the end."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.terminal import printable


@contextmanager
def written(path: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text; on a terminal the text appears at once.

    Args:
        path: the file, as `files.output` takes it; None: standard output.

    Raises:
        JaxlmError: the file cannot be written.
    """
    if path is None:
        yield _print
        return
    from jaxlm import files

    try:
        with files.output(path) as file:
            yield lambda text: _write(file.write, text)
    except OSError as error:
        raise JaxlmError(f"{path} cannot be written: {files.reason(error)}") from None


def table_text(args: argparse.Namespace, default: str = "tsv") -> Callable[..., str]:
    """How columns become lines, by --format and --output: (columns, header=True) -> text."""
    from jaxlm.scoring.layouts import TextTable

    table = TextTable(args.format or default, cleaner(args.output, args.format or default))

    def text(columns: Mapping[str, Sequence[Any]], header: bool = True) -> str:
        return (table.header(list(columns)) if header else "") + "".join(table.rows(columns))

    return text


def cleaner(path: Path | None, format: str) -> Callable[[str], str]:
    """What a cell's text goes through: control characters become escapes, except in CSV that no terminal shows."""
    encoding = None if path is not None else getattr(sys.stdout, "encoding", None)
    if format == "csv" and (path is not None or not (sys.stdout and sys.stdout.isatty())):
        return lambda text: text if encoding is None else text.encode(encoding, "backslashreplace").decode(encoding)
    return lambda text: printable(text, keep_newlines=format == "csv", encoding=encoding)


def _print(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.write(text)
        if sys.stdout.isatty():
            sys.stdout.flush()


def _write(write: Callable[[bytes], object], text: str) -> None:
    write(text.encode("utf-8", "surrogateescape"))
