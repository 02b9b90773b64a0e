"""Surprisal word by word: -log p of each word given the words before it, with the entropy of its prediction.

Surprisal: Hale 2001, Levy 2008. Entropy and its reduction are defined as in neural-complexity (van Schijndel and Linzen
2018): the entropy of the distribution that predicts a word, and by how much it fell since the word before.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxlm.config.protocols import Plain
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.fields import checked, choice, count, flag
from jaxlm.scoring.sentences import Encoded, word_nats
from jaxlm.scoring.token_scores import TokenScores

UNITS = {"bits": math.log(2), "nats": 1.0}  # how many nats one is


@dataclass(frozen=True)
class SurprisalOptions:
    """How the surprisal of sentences is found.

    Attributes:
        tokenizer: what splits lines: "none" at white space, "ptb" as Penn Treebank's files are; None: as the text that
            the model was trained on.
        protocol: a name, as in "cache", or its settings, as in `Cache(cache_window=100)`; None: plain.
        data_dir: where Penn Treebank's files lie, which dynamic evaluation reads.

    Raises:
        JaxlmError: a value is outside its limits.
    """

    context: str = choice(
        "sentence",
        "sentence begins each anew (state, cache and parameters), stream goes on",
        ("sentence", "stream"),
    )
    oov: str = choice(
        "unk",
        "unknown words are read as <unk>, refused (error), or have no surprisal (nan)",
        ("unk", "error", "nan"),
    )
    top_k: int = count(0, "likeliest words that are found in each word's place")
    unit: str = choice("bits", "of surprisal and entropy", ("bits", "nats"))
    tokenizer: str | None = None
    eos: bool = flag(False, "whether the <eos> that ends each sentence has a row too")
    punctuation: str = choice(
        "word", "word counts punctuation to its word, own makes it a word", ("word", "own")
    )
    boundary: str = choice(
        "corrected",
        "of words made of pieces (see sentences.py), or of the pieces alone",
        ("corrected", "published"),
    )
    protocol: str | Plain | None = None
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        checked(self)


class Table:
    """A table of some rows, whose attributes are columns; a dataclass."""

    word: list[str]

    def __len__(self) -> int:
        return len(self.word)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows: {', '.join(self.columns())})"

    @classmethod
    def joined(cls, tables: "Iterable[Self]") -> "Self":
        """The tables, one after the other. Raises DataError where there is none."""
        parts = list(tables)
        if not parts:
            raise DataError("there are no sentences: give at least one")
        columns: dict[str, Any] = {}
        for name, first in vars(parts[0]).items():
            values = [getattr(part, name) for part in parts]
            columns[name] = (
                np.concatenate(values)
                if isinstance(first, np.ndarray)
                else [*chain.from_iterable(values)]
            )
        return cls(**columns)

    def columns(self) -> dict[str, Sequence[Any]]:
        """The table: each column by its name."""
        return dict(vars(self))

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises JaxlmError where pandas is not installed."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise JaxlmError(
                "a data frame needs pandas: pip install pandas (or take the table's columns())"
            ) from None
        return pandas.DataFrame(self.columns())


@dataclass(frozen=True, repr=False)
class Surprisals(Table):
    """A row for each of N tokens; columns are named as in the table that `jaxlm surprisal` prints.

    Attributes:
        sentence_id, token_id: the sentence's and the token's place in it, from 1, int [N].
        word: the token as given.
        token: as the model reads it: `<unk>` where the word is unknown.
        oov: whether the word is unknown, bool [N].
        surprisal: -log p of the token, float [N]; nan for unknown words with `oov="nan"`. Of the first and the last
            piece of a word with the correction of its boundary, so that pieces sum to their word.
        entropy: of the distribution that predicts the token, float [N].
        entropy_reduction: how much the entropy fell since the sentence's token before, at least 0, float [N].
        rank: 1 where no word is more probable, int [N].
        top, top_surprisal: the K likeliest words [N][K], and their surprisals [N, K].
    """

    sentence_id: np.ndarray
    token_id: np.ndarray
    word: list[str]
    token: list[str]
    oov: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    entropy_reduction: np.ndarray
    rank: np.ndarray
    top: list[list[str]]
    top_surprisal: np.ndarray

    def columns(self) -> dict[str, Sequence[Any]]:
        """The table: each column by its name; K pairs of columns top_1, top_1_surprisal and so on at the end."""
        table: dict[str, Any] = super().columns()
        del table["top"], table["top_surprisal"]
        for k in range(self.top_surprisal.shape[1]):
            table[f"top_{k + 1}"] = [words[k] for words in self.top]
            table[f"top_{k + 1}_surprisal"] = self.top_surprisal[:, k]
        return table


def surprisals(
    scores: TokenScores,
    vocab: Vocab,
    sentences: Sequence[Encoded],
    options: SurprisalOptions,
    first: int,
) -> Surprisals:
    """The table of sentences, numbered from `first` on, by the scores of every token but the first of each sentence."""
    lengths = np.array(
        [len(sentence.ids) - 1 for sentence in sentences]
    )  # tokens predicted, `<eos>` among them
    sentence_id = np.repeat(np.arange(len(sentences)), lengths)
    token_id = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = np.concatenate([sentence.ids[1:] for sentence in sentences])
    unknown = np.concatenate([np.append(sentence.oov, False) for sentence in sentences])
    nats = word_nats(scores, sentences, lengths.tolist())
    entropy = scores.entropy.astype(float)
    before = np.where(token_id > 0, np.roll(entropy, 1), entropy)
    if options.oov == "nan":
        nats[unknown] = math.nan
    kept = np.flatnonzero(token_id + 1 < np.repeat(lengths + options.eos, lengths))
    words = [word for sentence in sentences for word in (*sentence.tokens, EOS)]
    one = UNITS[options.unit]
    return Surprisals(
        sentence_id[kept] + first,
        token_id[kept] + 1,
        [words[place] for place in kept.tolist()],
        vocab.decode(ids[kept]),
        unknown[kept],
        nats[kept] / one,
        entropy[kept] / one,
        np.maximum(0, before - entropy)[kept] / one,
        scores.rank[kept],
        [vocab.decode(row) for row in scores.top[kept]] if scores.top.size else [[] for _ in kept],
        scores.top_nats[kept].astype(float) / one,
    )


@dataclass(frozen=True, repr=False)
class WordSurprisals(Table):
    """A row for each of W displayed words: what stands between spaces, which a tokenizer may have split into pieces.

    Columns [W] are as of `Surprisals`: `surprisal` and `entropy_reduction` of all pieces, `entropy` before the first,
    `tokens` with spaces between. Punctuation that the vocabulary lacks has no pieces, and nan for numbers.
    """

    sentence_id: np.ndarray
    word_id: np.ndarray
    word: list[str]
    tokens: list[str]
    oov: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    entropy_reduction: np.ndarray


def by_word(
    table: Surprisals, sentences: Sequence[Encoded], first: int, eos: bool
) -> WordSurprisals:
    """The table of sentences' tokens, numbered from `first` on, summed over words; with `eos` an `<eos>` is a word."""
    counts = np.concatenate(
        [[*np.diff(sentence.starts), *[1] * eos] for sentence in sentences]
    ).astype(int)
    displayed = [[*sentence.words, *[EOS] * eos] for sentence in sentences]
    lengths = [*map(len, displayed)]
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = ends - counts
    gap = np.where(counts > 0, 0, math.nan)  # a word without pieces has no numbers
    return WordSurprisals(
        np.repeat(np.arange(len(displayed)), lengths) + first,
        np.concatenate([np.arange(1, length + 1) for length in lengths]),
        [*chain.from_iterable(displayed)],
        [" ".join(table.token[start:end]) for start, end in zip(starts, ends, strict=True)],
        np.bincount(owner, table.oov, len(counts)) > 0,
        np.bincount(owner, table.surprisal, len(counts)) + gap,
        np.append(table.entropy, math.nan)[starts] + gap,
        np.bincount(owner, table.entropy_reduction, len(counts)) + gap,
    )
