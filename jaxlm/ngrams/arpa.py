"""ARPA files of n-gram models: the text format that SRILM, KenLM and recognisers exchange.

Read as data alone.
"""

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, starmap
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.files import reader
from jaxlm.data.text import lines_of, read_errors
from jaxlm.ngrams.backoff import ABSENT, BackoffModel, Table

BEGIN = "<s>"
END = "</s>"
MOST_ORDER = 20
NEVER = -99.0  # the log10 probability that stands for zero
_LINES_AT_ONCE = 1 << 16
_LN_10 = math.log(10)
_HEAD = re.compile(rb"^[ \t]*\\data\\[ \t\r]*$", re.MULTILINE)
_MOST_BEFORE = 1 << 16  # bytes of comments before the head


def write(
    file: BinaryIO,
    model: BackoffModel,
    names: Sequence[str],
) -> None:
    """Writes a model as an ARPA file.

    Args:
        file: Where to write.
        model: The model.
        names: The name of each token `[V]`; the one that ends a sentence is written as `</s>`.

    Raises:
        DataError: A name is empty, has white space, or is another token's in the file.
    """
    words = [*names, BEGIN]
    if model.end is not None:
        words[model.end] = END
    for word in words:
        if not word or any(map(str.isspace, word)):
            raise DataError(
                f"an ARPA file separates tokens by white space, and {word!r} is a token: "
                f"take words or subwords"
            )
    if len(set(words)) < len(words):
        raise DataError(f"an ARPA file keeps {BEGIN} and {END} for itself: a token has that name")
    lines = ["\\data\\"]
    lines += [f"ngram {n}={len(table.keys)}" for n, table in enumerate(model.tables, start=1)]
    file.write("\n".join([*lines, ""]).encode())
    texts = words
    for order, table in enumerate(model.tables, start=1):
        if order > 1:
            before = table.keys // (model.vocab_size + 1)
            last = table.keys % (model.vocab_size + 1)
            texts = [
                f"{texts[place]} {words[token]}"
                for place, token in zip(before.tolist(), last.tolist(), strict=True)
            ]
        file.write(f"\n\\{order}-grams:\n".encode())
        probabilities = np.maximum(table.log_probability / _LN_10, NEVER)
        if order == 1:
            probabilities[model.begin] = NEVER
        backoffs = table.log_backoff / _LN_10
        row = "{:.9g}\t{}\t{:.9g}\n" if order < model.order else "{:.9g}\t{}\n"
        for start in range(0, len(texts), _LINES_AT_ONCE):
            block = slice(start, start + _LINES_AT_ONCE)
            rows = zip(probabilities[block], texts[block], backoffs[block], strict=True)
            file.write("".join(starmap(row.format, rows)).encode())
    file.write(b"\n\\end\\\n")


def read(path: str | Path) -> tuple[BackoffModel, list[str]]:
    """Reads an ARPA file.

    Args:
        path: The file, or a pipe of the shell's.

    Returns:
        The model, and the name of each token `[V]`: `</s>` and `<unk>` as the file has them, `<s>`
        apart.

    Raises:
        DataError: The file cannot be read, or is no whole ARPA file.
    """
    return _Parser(path).parse()


def is_arpa(path: str | Path) -> bool:
    """Whether a regular file begins as an ARPA file does, which may have comments first."""
    if not Path(path).is_file():
        return False
    with read_errors(path), reader(path) as file:
        return _HEAD.search(file.read(_MOST_BEFORE)) is not None


class _Parser:
    """Reads the lines of one ARPA file in order."""

    def __init__(self, path: str | Path):
        self._path = path
        self._number = 0
        self._lines = chain.from_iterable(lines_of(path))

    def _error(self, problem: str) -> DataError:
        return DataError(
            f"{self._path} is no whole ARPA file: {problem} (line {self._number:,}); "
            f"write it again with the program that made it"
        )

    def _next(self, expected: str) -> str:
        """The next line that is not empty, without white space at its ends."""
        for line in map(str.strip, self._lines):
            self._number += 1
            if line:
                return line
        raise self._error(f"it ends where {expected} is expected")

    def parse(self) -> tuple[BackoffModel, list[str]]:
        """The model and the names of its tokens. Raises DataError."""
        while self._next("\\data\\") != "\\data\\":
            pass  # a comment
        sizes, line = self._sizes()
        words: dict[str, int] = {}
        tables: list[Table] = []
        for order, size in enumerate(sizes, start=1):
            if line != f"\\{order}-grams:":
                raise self._error(f"expected \\{order}-grams:, found {line[:40]!r}")
            if order == 1:
                tables.append(self._unigrams(size, words))
            else:
                tables.append(self._table(order, size, words, tables))
            line = self._next("the next part")
        if line != "\\end\\":
            raise self._error(f"expected \\end\\, found {line[:40]!r}")
        names = [word for word in words if word != BEGIN]
        end = words.get(END)
        return BackoffModel(len(names), end, tuple(tables)), names

    def _sizes(self) -> tuple[list[int], str]:
        """The number of n-grams of each order, and the line after them."""
        sizes: list[int] = []
        while True:
            line = self._next("ngram 1=...")
            count = re.fullmatch(r"ngram +([0-9]{1,2}) *= *([0-9]{1,12})", line)
            if count is None:
                break
            if int(count[1]) != len(sizes) + 1:
                raise self._error(f"expected the number of {len(sizes) + 1}-grams")
            sizes.append(int(count[2]))
        if not 1 <= len(sizes) <= MOST_ORDER:
            raise self._error(f"it has {len(sizes)} orders; expected 1 to {MOST_ORDER}")
        return sizes, line

    def _rows(self, order: int, size: int) -> Iterator[tuple[float, list[str], float]]:
        """log10 probability, tokens and log10 backoff of each n-gram of an order."""
        for _ in range(size):
            line = self._next(f"one of {size:,} {order}-grams")
            fields = line.split()
            if len(fields) not in (order + 1, order + 2):
                raise self._error(f"expected a probability, {order} tokens and a backoff at most")
            try:
                probability = max(float(fields[0]), NEVER)  # KenLM writes a weight of 0 as -inf
                backoff = max(float(fields[-1]), NEVER) if len(fields) > order + 1 else 0.0
            except ValueError:
                raise self._error("a probability or a backoff is no number") from None
            if not (probability <= 1e-6 and backoff < math.inf):
                raise self._error("a log probability is above zero, or a number is not finite")
            yield probability, fields[1 : order + 1], backoff

    def _unigrams(self, size: int, words: dict[str, int]) -> Table:
        """The table of unigrams; fills `words` with the id of each, that of `<s>` last."""
        values = {word: (p, backoff) for p, (word,), backoff in self._rows(1, size)}
        if len(values) < size:
            raise self._error("one of the unigrams is there twice")
        _, backoff = values.pop(BEGIN, (0.0, 0.0))
        if not values:
            raise self._error("it has no unigrams")
        values[BEGIN] = (0.0, backoff)
        words.update((word, place) for place, word in enumerate(values))
        numbers = np.array([*values.values()]) * _LN_10
        return Table(np.arange(len(words)), *numbers.T.copy())

    def _table(
        self,
        order: int,
        size: int,
        words: dict[str, int],
        tables: Sequence[Table],
    ) -> Table:
        """The table of an order above one."""
        ids = array("q")
        values = array("d")
        for probability, tokens, backoff in self._rows(order, size):
            try:
                ids.extend([words[token] for token in tokens])
            except KeyError as error:
                token = str(error.args[0])
                raise self._error(f"{token[:40]!r} is no unigram of the file") from None
            values.extend((probability, backoff))
        grams = np.frombuffer(ids, np.int64).reshape(-1, order)
        numbers = np.frombuffer(values).reshape(-1, 2) * _LN_10
        begin = words[BEGIN]
        places = grams[:, 0]
        for column, table in zip(grams.T[1:-1], tables[1:], strict=True):
            places = table.places(places, column, begin)
        if (places == ABSENT).any():
            raise self._error(
                f"a {order}-gram's first {order - 1} tokens are no n-gram of the file"
            )
        keys = places * (begin + 1) + grams[:, -1]
        rows = np.argsort(keys)
        keys = keys[rows]
        if (keys[1:] == keys[:-1]).any():
            raise self._error(f"one of the {order}-grams is there twice")
        return Table(keys, numbers[rows, 0], numbers[rows, 1])
