"""Tables as text: TSV, CSV, JSON lines, or as lm-zoo and neural-complexity print them."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.base.hashed_json import finite
from jaxlm.data.subwords import SPACE
from jaxlm.scoring.surprisal import Surprisals

Columns = Mapping[str, Any]  # by name, of texts or numbers: lists, or arrays of NumPy
_SHARED = (  # the columns that are the same for all runs
    "sentence_id",
    "token_id",
    "word_id",
    "word",
    "region_id",
    "region",
    "words",
    "word_count",
)


def table_text(
    columns: Columns,
    header: bool,
    format: str,
    clean: Callable[[str], str],
) -> str:
    """A table as lines of text.

    Numbers have six decimals; what is not a number is NaN, in JSON null. A character that separates
    cells is written as \u2581.

    Args:
        columns: The table.
        header: Whether a line of names comes first; JSON has none.
        format: csv; jsonl; neural-complexity, with spaces between cells; or another name, with
            tabs.
        clean: What texts in cells go through, except in JSON, which is ASCII.

    Returns:
        The lines, each with a newline at its end.
    """
    lists = [
        column.tolist() if hasattr(column, "tolist") else column for column in columns.values()
    ]
    rows = list(zip(*lists, strict=True))
    if format == "jsonl":
        objects = [dict(zip(columns, map(_rounded, row), strict=True)) for row in rows]
        return "".join(f"{json_text(row)}\n" for row in objects)
    if header:
        rows.insert(0, tuple(columns))
    cells = [[_cell(value, clean) for value in row] for row in rows]
    if format == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()
    separator = " " if format == "neural-complexity" else "\t"
    lines = [separator.join(cell.replace(separator, SPACE) for cell in row) for row in cells]
    return "".join(f"{line}\n" for line in lines)


def columns_of(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Columns:
    """The table of some rows."""
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def json_text(tree: Any, indent: int | None = None) -> str:
    """A tree as JSON in ASCII, without control characters.

    Args:
        tree: The tree; numbers that JSON lacks become null.
        indent: Spaces a level; without it the text is one line.

    Returns:
        The text. JSON leaves DEL as it is; here it is an escape.
    """
    return json.dumps(finite(tree), indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def side_by_side(tables: Mapping[str, Columns]) -> Columns:
    """Joins the tables that several runs give for the same texts.

    Args:
        tables: By the run's name.

    Returns:
        The table of one run as it is; of several, one table whose columns have a dot and the run's
        name after their own, except those that runs share.

    Raises:
        JaxlmError: The tables have different rows.
    """
    if len(tables) == 1:
        return next(iter(tables.values()))
    shared = _shared(tables)
    joined = dict(shared)
    for run, table in tables.items():
        for column in table:
            if column not in shared:
                joined[f"{column}.{run}"] = table[column]
    return joined


def one_below_the_other(tables: Mapping[str, Columns]) -> Columns:
    """Joins the tables of several runs: the rows of each run after those of the run before.

    Args:
        tables: By the run's name.

    Returns:
        One table, whose column `run` has the run's name.
    """
    joined: dict[str, list[Any]] = {"run": []}
    for run, table in tables.items():
        for column, values in table.items():
            joined.setdefault(column, []).extend(np.asarray(values).tolist())
        joined["run"] += [run] * (len(joined["sentence_id"]) - len(joined["run"]))
    return joined


def mean_table(tables: Mapping[str, Columns]) -> Columns:
    """The mean of several runs, such as seeds of one recipe.

    Args:
        tables: By the run's name.

    Returns:
        One table: of each column of real numbers the mean over runs, of the others those that are
        equal in all runs.

    Raises:
        JaxlmError: The tables have different rows.
    """
    joined = dict(_shared(tables))
    first = next(iter(tables.values()))
    for column in first:
        arrays = [np.asarray(table[column]) for table in tables.values()]
        if arrays[0].dtype.kind == "f":
            joined[column] = np.mean(arrays, 0)
        elif all(np.array_equal(array, arrays[0]) for array in arrays):
            joined[column] = first[column]
    return joined


def _shared(tables: Mapping[str, Columns]) -> Columns:
    """The columns that runs share. Raises JaxlmError where their tables have different rows."""
    first_run = next(iter(tables))
    first = tables[first_run]
    shared = {column: first[column] for column in _SHARED if column in first}
    for run, table in tables.items():
        if any(list(table[column]) != list(values) for column, values in shared.items()):
            raise JaxlmError(
                f"the tokenizer splits a text otherwise for {run} than for {first_run}: "
                "score them one after the other, or with tokenizer none"
            )
    return shared


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _cell(value: Any, clean: Callable[[str], str]) -> str:
    if isinstance(value, float):
        return f"{value:.6f}".replace("nan", "NaN")
    return clean(str(value))


def _lm_zoo(table: Surprisals) -> Columns:
    """lm-zoo's columns, of which the first two are numbers from 1 and the last is in bits."""
    return {
        "sentence_id": table.sentence_id,
        "token_id": table.token_id,
        "token": table.word,
        "surprisal": table.surprisal,
    }


def _neural_complexity(table: Surprisals) -> Columns:
    """neural-complexity's columns: numbers from 0, the vocabulary's words, bits with all digits."""
    return {
        "word": table.token,
        "sentid": table.sentence_id - 1,
        "sentpos": table.token_id - 1,
        "wlen": [len(token) for token in table.token],
        "surp": [str(bits) for bits in table.surprisal.tolist()],
        "entropy": [str(bits) for bits in table.entropy.tolist()],
        "entred": [str(bits) for bits in table.entropy_reduction.tolist()],
    }


LAYOUTS: dict[str, Callable[[Any], Columns]] = {
    "jaxlm": lambda table: table.columns(),
    "lm-zoo": _lm_zoo,
    "neural-complexity": _neural_complexity,
}
