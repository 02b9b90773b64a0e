"""Tables as text: tab- or comma-separated, JSON lines, or exactly as lm-zoo and neural-complexity print them."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.scoring.surprisal import Surprisals

Columns = Mapping[str, Sequence[Any]]


def table_text(columns: Columns, header: bool = True, *, format: str = "tsv", clean: Callable[[str], str] = str) -> str:
    """A table as lines of text. Numbers have six decimals; what is not a number is NaN, in JSON null.

    Args:
        columns: by name.
        header: whether the first line has the names; JSON lines have none.
        format: tsv, csv, jsonl, or neural-complexity, which has spaces between cells.
        clean: what every text in a cell goes through except in jsonl, as for a terminal.
    """
    names = list(columns)
    values = (column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values())
    rows = zip(*values, strict=True)
    if format == "jsonl":
        return "".join(_json(dict(zip(names, row, strict=True))) for row in rows)
    lines = [*([names] if header else []), *rows]
    cells = [[clean(cell) if isinstance(cell, str) else _shown(cell) for cell in line] for line in lines]
    if format != "csv":
        space = "\t" if format == "tsv" else " "
        return "".join(space.join(cell.replace("\t", " ").replace("\n", " ") for cell in row) + "\n" for row in cells)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _lm_zoo(table: Surprisals) -> Columns:
    """lm-zoo's columns, of which the first two are numbers from 1 and the last is in bits."""
    numbers = {"sentence_id": table.sentence_id.tolist(), "token_id": table.token_id.tolist()}
    return {**numbers, "token": table.word, "surprisal": table.surprisal.tolist()}


def _neural_complexity(table: Surprisals) -> Columns:
    """neural-complexity's columns: numbers from 0, the vocabulary's words, bits with all their digits."""
    bits = {"surp": table.surprisal, "entropy": table.entropy, "entred": table.entropy_reduction}
    return {
        "word": table.token,
        "sentid": (table.sentence_id - 1).tolist(),
        "sentpos": (table.token_id - 1).tolist(),
        "wlen": [len(token) for token in table.token],
        **{name: list(map(str, values.tolist())) for name, values in bits.items()},
    }


LAYOUTS: dict[str, Callable[[Surprisals], Columns]] = {
    "jaxlm": Surprisals.columns,
    "lm-zoo": _lm_zoo,
    "neural-complexity": _neural_complexity,
}


def side_by_side(tables: Mapping[str, Columns], number: str) -> Columns:
    """The table of one run; or of several as one, with a dot and the run's name after a column that runs do not share.

    `number` is the column that numbers the rows of a sentence. Raises JaxlmError where the tables have different rows.
    """
    first, shared = next(iter(tables.values())), ("sentence_id", number, "word")
    if len(tables) == 1:
        return first
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
