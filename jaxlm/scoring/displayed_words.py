"""Surprisal of displayed words: what a reader sees between spaces, which a tokenizer may have split into pieces."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.scoring.surprisal import Surprisals, data_frame


@dataclass(frozen=True)
class WordSurprisals:
    """A row for each of W displayed words; attributes are columns.

    Attributes:
        sentence_id, word_id: the sentence's and the word's place in it, from 1, int [W].
        word: as displayed.
        tokens: its pieces as the model reads them, with spaces between; "" for punctuation that it does not have.
        oov: whether a piece is unknown, bool [W].
        surprisal: of all pieces, float [W]; nan without pieces.
        entropy: before the first piece, float [W].
        entropy_reduction: of all pieces, float [W].
        unit: bits or nats.
    """

    sentence_id: np.ndarray
    word_id: np.ndarray
    word: list[str]
    tokens: list[str]
    oov: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    entropy_reduction: np.ndarray
    unit: str

    def __len__(self) -> int:
        return len(self.word)

    def columns(self) -> dict[str, Sequence[Any]]:
        """The table: each column by its name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "unit"}

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises JaxlmError where pandas is not installed."""
        return data_frame(self.columns())


def by_word(
    table: Surprisals, displayed: Sequence[Sequence[str]], pieces: Sequence[Sequence[Sequence[str]]], first: int = 1
) -> WordSurprisals:
    """Sums a table's rows over displayed words.

    Args:
        table: of the pieces, without rows for `<eos>`.
        displayed: the words of each sentence.
        pieces: those of each word.
        first: number of the first sentence.
    """
    counts = np.array([len(word) for sentence in pieces for word in sentence], int)
    owner, W = np.repeat(np.arange(len(counts)), counts), len(counts)
    starts = np.minimum(np.cumsum(counts) - counts, max(0, len(table) - 1))
    lengths = [len(words) for words in displayed]
    tokens: list[list[str]] = [[] for _ in range(W)]
    for place, token in zip(owner.tolist(), table.token, strict=True):
        tokens[place].append(token)

    def summed(column: np.ndarray) -> np.ndarray:
        return np.where(counts > 0, np.bincount(owner, column, minlength=W), math.nan)

    return WordSurprisals(
        np.repeat(np.arange(len(displayed)), lengths) + first,
        np.concatenate([np.arange(1, length + 1) for length in lengths]),
        [word for words in displayed for word in words],
        [" ".join(found) for found in tokens],
        np.bincount(owner, table.oov, minlength=W) > 0,
        summed(table.surprisal),
        np.where(counts > 0, table.entropy[starts], math.nan),
        summed(table.entropy_reduction),
        table.unit,
    )
