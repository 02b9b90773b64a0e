"""Tables as text: tab- or comma-separated, JSON lines, or exactly as lm-zoo and neural-complexity print them."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.scoring.surprisal import Surprisals

LM_ZOO = ("sentence_id", "token_id", "token", "surprisal")
NEURAL_COMPLEXITY = ("word", "sentid", "sentpos", "wlen", "surp", "entropy", "entred")

Columns = Mapping[str, Sequence[Any]]


def table_text(columns: Columns, header: bool = True, *, format: str = "tsv", clean: Callable[[str], str] = str) -> str:
    """A table as lines of text. Numbers have six decimals; what is not a number is NaN, in JSON null.

    Args:
        columns: by name.
        header: whether the first line has the names; JSON lines have none.
        format: tsv, csv or jsonl.
        clean: what every text in a cell of tsv or csv goes through, as for a terminal.
    """
    names = list(columns)
    values = (column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values())
    rows = zip(*values, strict=True)
    if format == "jsonl":
        return "".join(_json(dict(zip(names, row, strict=True))) for row in rows)
    lines = [*([names] if header else []), *rows]
    cells = [[clean(cell) if isinstance(cell, str) else _shown(cell) for cell in line] for line in lines]
    if format == "tsv":
        return "".join("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row) + "\n" for row in cells)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def lm_zoo_rows(table: Surprisals) -> Iterator[tuple[str, ...]]:
    """lm-zoo's cells, of which the first two are numbers from 1 and the last is in bits; tabs lie between."""
    columns = (table.sentence_id.tolist(), table.token_id.tolist(), table.word, table.surprisal.tolist())
    for row in zip(*columns, strict=True):
        yield tuple(map(_shown, row))


def neural_complexity_rows(table: Surprisals) -> Iterator[tuple[str, ...]]:
    """neural-complexity's cells: numbers from 0, the vocabulary's words, bits; spaces lie between."""
    columns = (table.sentence_id, table.token_id, table.surprisal, table.entropy, table.entropy_reduction)
    for token, sentence, place, *numbers in zip(table.token, *(column.tolist() for column in columns), strict=True):
        yield token, str(sentence - 1), str(place - 1), str(len(token)), *map(str, numbers)


def side_by_side(tables: Mapping[str, Columns], shared: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The tables of several runs as one: the shared columns once, all others with a dot and the run's name.

    Raises:
        JaxlmError: the tables have different rows.
    """
    first = next(iter(tables.values()))
    for name, table in tables.items():
        if any(list(table[column]) != list(first[column]) for column in shared):
            raise JaxlmError(
                f"the tokenizer splits a text otherwise for {name} than for {next(iter(tables))}: score "
                f"them one after the other, or with tokenizer none"
            )
    joined: dict[str, Sequence[Any]] = {column: first[column] for column in shared}
    for name, table in tables.items():
        joined |= {f"{column}.{name}": values for column, values in table.items() if column not in shared}
    return joined


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else "NaN" if math.isnan(value) else str(value)
    return str(value)


def _json(row: dict[str, Any]) -> str:
    """In ASCII, so that no letter of a word reaches a terminal raw."""
    finite = {
        name: (round(value, 6) if math.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in row.items()
    }
    return json.dumps(finite) + "\n"
