"""Files of stimuli, which strangers wrote: lines of text, JSON lines and CSV, each error with its file and line."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm import files
from jaxlm.errors import DataError

LONGEST_LINE = 1 << 24  # bytes
MOST_BYTES = 1 << 30  # of a file that is read whole
READ = 1 << 16  # bytes at a time: what a pipe holds


@dataclass(frozen=True)
class Table:
    """A CSV file: the column of sentences, and all others.

    Attributes:
        sentences: one a row.
        columns: the names of the other columns.
        rows: their cells, for each sentence.
        lines: on which line of the file each row ends, from 1.
    """

    sentences: list[str]
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]


def lines_of(file: BinaryIO, name: str) -> Iterator[list[str]]:
    """The lines of an open file as they come, in lists of what one read of at most 64 KiB ends; constant memory.

    A line ends with LF, CR LF or CR.

    Args:
        file: a regular file or a pipe.
        name: what errors call it.

    Raises:
        DataError: it is empty, not UTF-8, binary, or has a line of over 16 MiB.
    """
    rest, done, carriage = bytearray(), 0, False
    while chunk := _read_some(file):
        chunk = chunk[1:] if carriage and chunk.startswith(b"\n") else chunk  # the rest of a CR LF
        carriage = chunk.endswith(b"\r")
        chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        rest += chunk
        if b"\n" in chunk:
            *whole, rest = rest.split(b"\n")
            yield [_text(line, name, done + place) for place, line in enumerate(whole, 1)]
            done += len(whole)
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{name}, line {done + 1} is longer than {LONGEST_LINE:,} bytes: expected lines of text")
    if rest.strip():
        yield [_text(rest, name, done + 1)]
    elif not done:
        raise DataError(f"{name} is empty: expected a line for each sentence")


def open_text(path: str | Path) -> BinaryIO:
    """Opens a regular file. Raises DataError where there is none; never waits for a FIFO."""
    try:
        return files.reader(path)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {files.reason(error)}") from None


def read_text(path: str | Path) -> str:
    """A whole file of UTF-8. Raises DataError where it cannot be read, is empty or is not UTF-8."""
    with open_text(path):
        pass
    try:
        text = files.read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} cannot be decoded; convert it to UTF-8") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {files.reason(error)}") from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, line N", object) of each line of a file of JSON objects. Raises DataError with line and column."""
    with open_text(path) as file:
        number = 0
        for block in lines_of(file, str(path)):
            for line in block:
                number += 1
                if line.strip():
                    yield f"{path}, line {number}", parsed_object(line, f"{path}, line {number}")


def parsed_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text holds. Raises DataError, with the place of what is wrong."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "line" not in where.rpartition(",")[2] else ""
        raise DataError(f"{where}, {line}column {error.colno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{where} is not JSON that can be read: it is nested too deeply, or a number is too long"
        ) from None
    if not isinstance(tree, dict):
        raise DataError(f"{where}, column 1: expected a JSON object, found {type(tree).__name__}")
    return tree


def text_field(tree: dict[str, Any], name: str, where: str) -> str:
    """A string of an object, with words in it. Raises DataError."""
    value = tree.get(name)
    if not isinstance(value, str) or not value.split():
        found = "nothing" if name not in tree else "no words" if isinstance(value, str) else type(value).__name__
        raise DataError(f"{where}: expected text in {name!r}, found {found}")
    return value


def read_table(path: str | Path, column: str) -> Table:
    """The stimuli of a CSV file (of tabs, where its header has a tab and no comma).

    Raises:
        DataError: there is no such column, a row has another number of cells than the header or no words, or the file
            is not CSV.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in header and "," not in header else ","
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    (_, names), *body = rows
    if column not in names:
        raise DataError(f"{path} has no column {column!r}: its columns are {', '.join(map(repr, names))}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}, line 1 names a column twice: {', '.join(map(repr, names))}")
    if not body:
        raise DataError(f"{path} has a header and no rows")
    place = names.index(column)
    for line, row in body:
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: expected {len(names)} cells, as in the header, found {len(row)}")
        if not row[place].split():
            raise DataError(f"{path}, line {line} has no words in column {column!r}")
    others = [index for index in range(len(names)) if index != place]
    return Table(
        [row[place] for _, row in body],
        _pick(names, others),
        [_pick(row, others) for _, row in body],
        [line for line, _ in body],
    )


def _pick(cells: list[str], places: Iterable[int]) -> list[str]:
    return [cells[place] for place in places]


def _read_some(file: BinaryIO) -> bytes:
    """What can be read now, at most; b"" at the end."""
    return file.read1(READ) if hasattr(file, "read1") else file.read(READ)  # pyright: ignore[reportAttributeAccessIssue]


def _text(line: bytes | bytearray, name: str, number: int) -> str:
    if b"\0" in line:
        raise DataError(f"{name}, line {number} is not text: it has a zero byte, as binary files have")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, line {number}, byte {error.start + 1} is not UTF-8: convert the file to UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if number == 1 else text
