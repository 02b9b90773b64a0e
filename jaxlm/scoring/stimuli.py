"""Files of stimuli, which strangers wrote: lines of text, JSON lines and CSV."""

import csv
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.hashed_json import strict_json
from jaxlm.data.text import lines_of, source

DELIMITERS = ",\t;"
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", ".", "--")  # cells without a number
QUOTED = re.compile(r'"[^"]*("|$)')


@dataclass(frozen=True, eq=False)
class StimulusTable:
    """A CSV file: the column of sentences, and all other columns; or some lines of a text.

    Attributes:
        name: The name of the file in errors.
        sentences: The cells of the column of sentences.
        columns: The cells of each other column.
        lines: On which line of the file each row ends, from 1.
    """

    name: str
    sentences: list[str]
    columns: dict[str, list[str]]
    lines: Sequence[int]

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

    def regions(self, column: str, names: str | None = None) -> list[list[tuple[str, str]]]:
        """The regions of each sentence: pairs of a name, which may be empty, and a text.

        Args:
            column: The column of regions, with `|` between. Where regions do not make up the
                sentence as they stand, each is `name:text`.
            names: The column of their names, with `|` between; None: they have no column.

        Raises:
            DataError: There is no such column, or a sentence has other names than regions.
        """
        texts_of_sentences = [_split_at_bars(cell) for cell in self.cells(column)]
        regions = []
        if names is not None:
            rows = zip(self.cells(names), texts_of_sentences, strict=True)
            for number, (cell, texts) in enumerate(rows, 1):
                region_names = _split_at_bars(cell)
                if len(region_names) != len(texts):
                    counts = f"{len(region_names)} names for {len(texts)} regions"
                    raise DataError(f"{self.where(number)}: column {names!r} has {counts}")
                regions.append(list(zip(region_names, texts, strict=True)))
            return regions
        for sentence, texts in zip(self.sentences, texts_of_sentences, strict=True):
            pairs = [text.partition(":")[::2] for text in texts]
            are_the_sentence = "".join("".join(texts).split()) == "".join(sentence.split())
            if are_the_sentence or not all(text for _, text in pairs):
                pairs = [("", text) for text in texts]
            regions.append([(name.strip(), text.strip()) for name, text in pairs])
        return regions

    def numbers(self, column: str) -> list[int]:
        """The cells of another column as whole numbers. Raises DataError."""
        cells = self.cells(column)
        for number, cell in enumerate(cells, 1):
            if not re.fullmatch("[0-9]{1,9}", cell.strip()):
                expected = f"expected a whole number in column {column!r}"
                raise DataError(f"{self.where(number)}: {expected}, found {cell!r:.40}")
        return [*map(int, cells)]

    def decimals(self, column: str) -> np.ndarray:
        """The cells of another column: finite, or nan for a missing one. Raises DataError."""
        values = []
        for number, cell in enumerate(self.cells(column), 1):
            value = math.inf
            with suppress(ValueError):
                value = float("nan" if cell.strip() in MISSING else cell)
            if math.isinf(value):
                expected = f"expected a number in column {column!r}"
                raise DataError(f"{self.where(number)}: {expected}, found {cell!r:.40}")
            values.append(value)
        return np.array(values)

    def beside(self, columns: Mapping[str, Any], without: Collection[str | None]) -> dict[str, Any]:
        """The columns of a result, after the other columns of the stimuli.

        Args:
            columns: The result, whose `sentence_id` names the sentence of each row.
            without: Names of columns to leave out.

        Raises:
            DataError: Names collide.
        """
        stimuli = {name: cells for name, cells in self.columns.items() if name not in without}
        repeated = {}
        for name, cells in stimuli.items():
            title = f"stimulus.{name}" if name in columns else name
            repeated[title] = [cells[sentence - 1] for sentence in columns["sentence_id"]]
        joined = {**repeated, **columns}
        if len(joined) < len(stimuli) + len(columns):
            raise DataError(
                f"{self.name} has a column named as one of the result: "
                f"rename one of {', '.join(repeated)}"
            )
        return joined


def _split_at_bars(cell: str) -> list[str]:
    return [text.strip() for text in cell.split("|")]


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object of a text.

    Args:
        text: The text.
        where: Names the text in an error.

    Raises:
        DataError: It is not JSON, or no object.
    """
    try:
        tree = strict_json(text.rstrip())
        if "\\u" in text:
            # Refuses half of a surrogate pair, which could be written nowhere.
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error).replace(": line 1 column", ": column")
        raise DataError(f"{where} is not JSON to be read: {reason}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(tree).__name__}")
    return tree


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file that has one a line; blank lines are passed over.

    Args:
        path: As `lines_of` takes it.

    Yields:
        What names the line in an error, and its object.

    Raises:
        DataError: As `lines_of`; a line is not JSON, or no object.
    """
    for number, line in enumerate(chain.from_iterable(lines_of(path)), 1):
        if line.strip():
            where = f"{source(path)}, line {number}"
            yield where, json_object(line, where)


def read_table(path: str | Path, *columns: str) -> StimulusTable:
    """The stimuli of a CSV file.

    Cells are separated by the one of comma, tab and semicolon that its header has most of, outside
    of quotes.

    Args:
        path: The file, or "-" for standard input.
        *columns: Names of the column of sentences, of which the header has one.

    Raises:
        DataError: There is no such column, a row has another number of cells than the header or no
            words, or the file is not CSV.
    """
    name = source(path)
    lines = chain.from_iterable(lines_of(path))
    header = next(lines)
    if not header.strip():
        raise DataError(f"{name} is empty: expected a header with a column {columns[0]!r}")
    delimiter = max(DELIMITERS, key=QUOTED.sub("", header).count)
    reader = csv.reader(chain([header], lines), strict=True, delimiter=delimiter)
    try:
        (_, names), *body = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num} is not CSV: {error}") from None
    known = ", ".join(map(repr, names))
    column = next((title for title in columns if title in names), None)
    if column is None:
        raise DataError(f"{name} has no column {columns[0]!r}: its columns are {known}")
    if len(set(names)) < len(names):
        raise DataError(f"{name}, line 1 names a column twice: {known}")
    place = names.index(column)
    for line, row in body:
        if len(row) != len(names):
            cells = f"expected {len(names)} cells, as in the header"
            raise DataError(f"{name}, line {line}: {cells}, found {len(row)}")
        if not row[place].split():
            raise DataError(f"{name}, line {line} has no words in column {column!r}")
    cells = {title: [row[at] for _, row in body] for at, title in enumerate(names)}
    return StimulusTable(name, cells.pop(column), cells, [line for line, _ in body])
