"""Tables as text: tab- or comma-separated, JSON lines, or exactly as lm-zoo and neural-complexity print them."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxlm.data.tokens import SPACE
from jaxlm.errors import JaxlmError

if TYPE_CHECKING:  # (JAX would make help slow)
    from jaxlm.scoring.surprisal import Surprisals

Columns = Mapping[str, Any]  # by name, of texts or numbers: lists, or arrays of NumPy


def table_text(columns: Columns, header: bool, format: str, clean: Callable[[str], str]) -> str:
    """A table as lines of text: in CSV, JSON lines, with spaces (neural-complexity) or tabs (others) between cells.

    Numbers have six decimals; what is not a number is NaN, in JSON null. Texts in cells go through `clean`, except in
    JSON, which is ASCII and has no `header`. A character that separates cells is written as \u2581.
    """
    values = (
        column.tolist() if hasattr(column, "tolist") else column for column in columns.values()
    )
    rows = zip(*values, strict=True)
    if format == "jsonl":
        rounded = (
            [round(cell, 6) if isinstance(cell, float) else cell for cell in row] for row in rows
        )
        return "".join(json_text(dict(zip(columns, row, strict=True))) + "\n" for row in rounded)

    def shown(cell: Any) -> str:
        if isinstance(cell, float):
            return f"{cell:.6f}".replace("nan", "NaN")
        return clean(str(cell))

    cells = [[*map(shown, line)] for line in [*([[*columns]] if header else []), *rows]]
    if format != "csv":
        space = " " if format == "neural-complexity" else "\t"
        return "".join(
            space.join(cell.replace(space, SPACE) for cell in row) + "\n" for row in cells
        )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def json_text(tree: Any, indent: int | None = None) -> str:
    """A tree as JSON in ASCII: null for numbers that JSON lacks, and an escape for DEL, which JSON leaves as it is."""
    from jaxlm.hashed_json import finite

    return json.dumps(finite(tree), indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def _lm_zoo(table: "Surprisals") -> Columns:
    """lm-zoo's columns, of which the first two are numbers from 1 and the last is in bits."""
    numbers = {"sentence_id": table.sentence_id, "token_id": table.token_id}
    return {**numbers, "token": table.word, "surprisal": table.surprisal}


def _neural_complexity(table: "Surprisals") -> Columns:
    """neural-complexity's columns: numbers from 0, the vocabulary's words, bits with all their digits."""
    numbers = {
        "sentid": table.sentence_id - 1,
        "sentpos": table.token_id - 1,
        "wlen": [*map(len, table.token)],
    }
    bits = {"surp": table.surprisal, "entropy": table.entropy, "entred": table.entropy_reduction}
    return {
        "word": table.token,
        **numbers,
        **{name: [*map(str, values.tolist())] for name, values in bits.items()},
    }


LAYOUTS: dict[str, Callable[[Any], Columns]] = {
    "jaxlm": lambda table: table.columns(),
    "lm-zoo": _lm_zoo,
    "neural-complexity": _neural_complexity,
}


def side_by_side(tables: Mapping[str, Columns]) -> Columns:
    """The table of one run; or of several as one, with a dot and the run's name after a column that runs do not share.

    Raises JaxlmError where the tables have different rows.
    """
    (own, first), *others = tables.items()
    if not others:
        return first
    shared = [
        column for column in ("sentence_id", "token_id", "word_id", "word") if column in first
    ]
    joined = {column: first[column] for column in shared}
    for name, table in tables.items():
        if any([*table[column]] != [*first[column]] for column in shared):
            what = f"the tokenizer splits a text otherwise for {name} than for {own}"
            raise JaxlmError(f"{what}: score them one after the other, or with tokenizer none")
        joined |= {
            f"{column}.{name}": values for column, values in table.items() if column not in shared
        }
    return joined
