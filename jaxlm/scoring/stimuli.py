"""Files of stimuli, which strangers wrote: lines of text, JSON lines and CSV, each error with its file and line."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jaxlm import files
from jaxlm.data.text import decode, read_errors
from jaxlm.errors import DataError
from jaxlm.fields import checked_value
from jaxlm.hashed_json import strict_json
from jaxlm.terminal import is_terminal, say

LONGEST_LINE = 1 << 24  # bytes
READ = 1 << 16  # bytes at a time: what a pipe holds
DELIMITERS = ",\t;"


@dataclass(frozen=True)
class StimulusTable:
    """A CSV file: the column of sentences, and all other columns."""

    name: str  # of the file, in errors
    sentences: list[str]
    columns: dict[str, list[str]]  # the cells of each other column
    lines: list[int]  # on which line of the file each row ends, from 1

    def where(self, sentence: int) -> str:
        """Where a sentence stands, by its number from 1, in errors."""
        return f"{self.name}, line {self.lines[sentence - 1]}"

    def cells(self, column: str) -> list[str]:
        """The cells of another column. Raises DataError where there is none."""
        if column not in self.columns:
            known = ", ".join(map(repr, self.columns)) or "none"
            raise DataError(
                f"{self.name} has no column {column!r} beside that of sentences: it has {known}"
            )
        return self.columns[column]

    def numbers(self, column: str) -> list[int]:
        """The cells of another column as whole numbers. Raises DataError."""
        for number, cell in enumerate(cells := self.cells(column), 1):
            if not re.fullmatch("[0-9]{1,9}", cell.strip()):
                what = f"expected a whole number in column {column!r}, found {cell!r:.40}"
                raise DataError(f"{self.where(number)}: {what}")
        return [*map(int, cells)]


def source(path: str | Path) -> str:
    """The name of a text in errors, of which "-" is standard input."""
    checked_value("a file of stimuli", path, Path)
    if str(path) == "-":
        return "standard input"
    return str(path)


def lines_of(path: str | Path, longest: int = LONGEST_LINE) -> Iterator[list[str]]:
    """The lines of a text as they come, with their ends, in lists of what one read of at most 64 KiB ends.

    The text is a regular file, or standard input ("-"). A line ends with LF, CR LF or CR. Memory is constant.

    Raises DataError where there is no such text, or it is empty, not UTF-8, binary, or has a line of over `longest`
    bytes.
    """
    name = source(path)
    rest = bytearray()
    done = 0
    if str(path) == "-" and sys.stdin is None:
        raise DataError("standard input is closed: name a file, or use a pipe")
    if str(path) == "-" and is_terminal(sys.stdin):
        say("reading standard input until its end (Ctrl-D)", file=sys.stderr)
    with (
        read_errors(name),
        nullcontext(sys.stdin.buffer) if str(path) == "-" else files.reader(path) as file,
    ):
        read = getattr(file, "read1", file.read)  # what can be read now, at most
        while chunk := read(READ):
            rest += chunk
            if b"\n" in chunk or (
                len(rest) > READ and b"\r" in chunk[:-1]
            ):  # a text without LF is cut too
                lines = rest.splitlines(keepends=True)
                rest = bytearray() if lines[-1].endswith(b"\n") else lines.pop()
                yield [
                    decode(bytes(line), f"{name}, line {number}")
                    for number, line in enumerate(lines, done + 1)
                ]
                done += len(lines)
            if len(rest) > longest:
                raise DataError(
                    f"{name}, line {done + 1} is longer than {longest:,} bytes: give lines of text"
                )
    if rest.strip():
        lines = rest.splitlines(keepends=True)
        yield [
            decode(bytes(line), f"{name}, line {number}")
            for number, line in enumerate(lines, done + 1)
        ]
    elif not done:
        raise DataError(f"{name} is empty: expected lines of text")


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object of a text, which `where` names in an error. Raises DataError."""
    try:
        tree = strict_json(text.rstrip())
        if "\\u" in text:
            json.dumps(
                tree, ensure_ascii=False
            ).encode()  # half of a surrogate pair could be written nowhere
    except (ValueError, RecursionError) as error:
        why = str(error).replace(": line 1 column", ": column")
        raise DataError(f"{where} is not JSON to be read: {why}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(tree).__name__}")
    return tree


def read_table(path: str | Path, column: str) -> StimulusTable:
    """The stimuli of a CSV file, whose cells are separated by commas, tabs or semicolons, as its header shows.

    Raises DataError where there is no such column of sentences, a row has another number of cells than the header or no
    words, or the file is not CSV.
    """
    name = source(path)
    lines = chain.from_iterable(lines_of(path))
    header = next(lines)
    if not header.strip():
        raise DataError(f"{name} is empty: expected a header with a column {column!r}")
    reader = csv.reader(
        chain([header], lines), strict=True, delimiter=max(DELIMITERS, key=header.count)
    )
    try:
        (_, names), *body = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num} is not CSV: {error}") from None
    if column not in names:
        raise DataError(
            f"{name} has no column {column!r}: its columns are {', '.join(map(repr, names))}"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{name}, line 1 names a column twice: {', '.join(map(repr, names))}")
    place = names.index(column)
    for line, row in body:
        if len(row) != len(names):
            raise DataError(
                f"{name}, line {line}: expected {len(names)} cells, as in the header, found {len(row)}"
            )
        if not row[place].split():
            raise DataError(f"{name}, line {line} has no words in column {column!r}")
    columns = {title: [row[at] for _, row in body] for at, title in enumerate(names)}
    return StimulusTable(name, columns.pop(column), columns, [line for line, _ in body])
