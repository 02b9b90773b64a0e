"""Surprisal word by word, -log p of each word given the words before it, and entropy.

Surprisal: Hale 2001, Levy 2008. Entropy and its reduction are defined as in neural-complexity (van
Schijndel and Linzen 2018): the entropy of the distribution that predicts a word, and by how much it
fell since the word before.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import checked, choice, count, flag
from jaxlm.config.protocols import Plain
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.scoring.sentences import BLOCK, Encoded, Region, word_nats
from jaxlm.scoring.token_scores import Scoring, TokenScores

UNITS = {"bits": math.log(2), "nats": 1.0}  # nats of each unit


@dataclass(frozen=True)
class SurprisalOptions:
    """How the surprisal of sentences is found.

    Attributes:
        tokenizer: What splits lines: "none" at white space, "ptb" as Penn Treebank's files are;
            None: as the text that the model was trained on.
        protocol: A name, as in "cache", or its settings, as in `Cache(cache_window=100)`; None:
            plain.
        data_dir: Where Penn Treebank's files lie, which dynamic evaluation reads.
        block: Sentences that are read together.
        first: Number of the first sentence.
        scoring: A scoring of `LanguageModel.scorer` or `adaptive`, continued from its state; None:
            a new `scorer`.
        where: Names a sentence, given its number, in an error.

    Raises:
        JaxlmError: A value is outside its limits.
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
    unit: str = choice("bits", "of surprisal and entropy", tuple(UNITS))
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
    block: int = count(BLOCK, "sentences that are read together", low=1)
    first: int = 1
    scoring: Scoring | None = None
    where: Callable[[int], str] = "sentence {}".format

    def __post_init__(self) -> None:
        checked(self)


class Table:
    """A dataclass whose attributes are the columns of a table.

    Two tables are equal only if they are one object.
    """

    word: list[str]
    oov: np.ndarray

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
            if isinstance(first, np.ndarray):
                columns[name] = np.concatenate(values)
            else:
                columns[name] = list(chain.from_iterable(values))
        return type(parts[0])(**columns)

    def columns(self) -> dict[str, Any]:
        """The table: each column by its name."""
        return dict(vars(self))

    def words_and_unknown(self) -> tuple[int, list[str]]:
        """How many words the table has, and those of them that are outside the vocabulary."""
        unknown = [self.word[row] for row in np.flatnonzero(self.oov)]
        return len(self), unknown

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises JaxlmError where pandas is not installed."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise JaxlmError(
                "a data frame needs pandas: pip install pandas (or take the table's columns())"
            ) from None
        return pandas.DataFrame(self.columns())


@dataclass(frozen=True, repr=False, eq=False)
class Surprisals(Table):
    """A row for each of N tokens; columns are named as in the table that `jaxlm surprisal` prints.

    Attributes:
        sentence_id: The number of the sentence, from 1, int [N].
        token_id: The number of the token in it, from 1, int [N].
        word: The token as given.
        token: As the model reads it: `<unk>` where the word is unknown.
        oov: Whether the word is unknown, bool [N].
        surprisal: -log p of the token, float [N]; nan for unknown words with `oov="nan"`. Of the
            first and the last piece of a word with the correction of its boundary, so that pieces
            sum to their word.
        entropy: Of the distribution that predicts the token, float [N].
        entropy_reduction: How much the entropy fell since the sentence's token before, at least 0,
            float [N].
        rank: 1 where no word is more probable, int [N].
        top: The K likeliest words [N][K].
        top_surprisal: Their surprisals, float [N, K].
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

    def columns(self) -> dict[str, Any]:
        """The table: each column by its name, at the end top_1, top_1_surprisal, ..., up to K."""
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
    """The table of some sentences.

    Args:
        scores: Of every token but the first of each sentence.
        vocab: The tokens.
        sentences: The sentences.
        options: The unit, and which tokens have a row or a surprisal.
        first: Number of the first sentence.
    """
    # Of the tokens predicted, `<eos>` among them.
    lengths = np.array([len(sentence.ids) - 1 for sentence in sentences])
    sentence_id = np.repeat(np.arange(len(sentences)), lengths)
    token_id = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = np.concatenate([sentence.ids[1:] for sentence in sentences])
    unknown = np.concatenate([np.append(sentence.oov, False) for sentence in sentences])
    nats = word_nats(scores, sentences, lengths.tolist())
    entropy = scores.entropy.astype(float)
    before = np.where(token_id > 0, np.roll(entropy, 1), entropy)
    if options.oov == "nan":
        nats[unknown] = math.nan
    rows = np.flatnonzero(token_id + 1 < np.repeat(lengths + options.eos, lengths))
    words = [word for sentence in sentences for word in (*sentence.tokens, EOS)]
    unit = UNITS[options.unit]
    return Surprisals(
        sentence_id=sentence_id[rows] + first,
        token_id=token_id[rows] + 1,
        word=[words[row] for row in rows.tolist()],
        token=vocab.decode(ids[rows]),
        oov=unknown[rows],
        surprisal=nats[rows] / unit,
        entropy=entropy[rows] / unit,
        entropy_reduction=np.maximum(0, before - entropy)[rows] / unit,
        rank=scores.rank[rows],
        top=[vocab.decode(top) for top in scores.top[rows]],
        top_surprisal=scores.top_nats[rows].astype(float) / unit,
    )


@dataclass(frozen=True, repr=False, eq=False)
class WordSurprisals(Table):
    """A row for each of W displayed words: what stands between spaces.

    A tokenizer may have split a word into pieces. Punctuation that the vocabulary lacks has no
    pieces, and nan for numbers.

    Attributes:
        sentence_id: The number of the sentence, from 1, int [W].
        word_id: The number of the word in it, from 1, int [W].
        word: The word as given.
        tokens: Its pieces as the model reads them, with spaces between.
        oov: Whether a piece is unknown, bool [W].
        surprisal: Of all pieces, float [W].
        entropy: Of the distribution that predicts the first piece, float [W].
        entropy_reduction: Of all pieces, float [W].
    """

    sentence_id: np.ndarray
    word_id: np.ndarray
    word: list[str]
    tokens: list[str]
    oov: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    entropy_reduction: np.ndarray


@dataclass(frozen=True, repr=False, eq=False)
class RegionSurprisals(WordSurprisals):
    """A row for each region of a sentence: `word` is its text, `word_id` its number.

    Attributes:
        region: The region's name; empty where it has none.
        word_count: Words of the region, int [W].
        unknown: Its unknown words, with spaces between.
        entropy_of: The word that `entropy` is of: the region's first.
    """

    region: list[str]
    word_count: np.ndarray
    unknown: list[str]
    entropy_of: list[str]

    def columns(self) -> dict[str, Any]:
        """The table: each column by its name; `words` is the text of a region."""
        return {
            "sentence_id": self.sentence_id,
            "region_id": self.word_id,
            "region": self.region,
            "words": self.word,
            "word_count": self.word_count,
            "tokens": self.tokens,
            "unknown": self.unknown,
            "surprisal": self.surprisal,
            "surprisal_per_word": self.surprisal / self.word_count,
            "entropy": self.entropy,
            "entropy_of": self.entropy_of,
            "entropy_reduction": self.entropy_reduction,
        }

    def words_and_unknown(self) -> tuple[int, list[str]]:
        """How many words the regions have, and those outside the vocabulary."""
        return int(self.word_count.sum()), " ".join(self.unknown).split()


def by_word(
    table: Surprisals,
    sentences: Sequence[Encoded],
    first: int,
    eos: bool,
) -> WordSurprisals:
    """The table of sentences' tokens, summed over words.

    Args:
        table: A row for each token.
        sentences: The sentences.
        first: Number of the first sentence.
        eos: Whether the `<eos>` that ends each sentence is a word.
    """
    ends_of_lines = [EOS] * eos
    counts = [[*np.diff(sentence.starts), *[1] * eos] for sentence in sentences]
    counts = np.concatenate(counts).astype(int)
    displayed = [[*sentence.words, *ends_of_lines] for sentence in sentences]
    lengths = [*map(len, displayed)]
    ends = np.cumsum(counts)
    starts = ends - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    gap = np.where(counts > 0, 0, math.nan)  # a word without pieces has no numbers
    return WordSurprisals(
        sentence_id=np.repeat(np.arange(len(displayed)), lengths) + first,
        word_id=np.concatenate([np.arange(1, length + 1) for length in lengths]),
        word=[*chain.from_iterable(displayed)],
        tokens=[" ".join(table.token[start:end]) for start, end in zip(starts, ends, strict=True)],
        oov=np.bincount(owner, table.oov, len(counts)) > 0,
        surprisal=np.bincount(owner, table.surprisal, len(counts)) + gap,
        entropy=np.append(table.entropy, math.nan)[starts] + gap,
        entropy_reduction=np.bincount(owner, table.entropy_reduction, len(counts)) + gap,
    )


def by_region(
    table: Surprisals,
    sentences: Sequence[Encoded],
    regions: Sequence[Sequence[Region]],
    places: Sequence[Sequence[int]],
    first: int,
    eos: bool,
) -> RegionSurprisals:
    """The table of sentences' tokens, summed over regions.

    Args:
        table: A row for each token.
        sentences: The sentences.
        regions: The regions of each sentence.
        places: The first word of each region, and the number of all words (`in_regions`).
        first: Number of the first sentence.
        eos: Whether the `<eos>` that ends each sentence is a region.
    """
    names, counts, unknown, entropy_of, coarse = [], [], [], [], []
    for sentence, named, edges in zip(sentences, regions, places, strict=True):
        texts = []
        for region, (start, stop) in zip(named, pairwise(edges), strict=True):
            name, text = ("", region) if isinstance(region, str) else region
            texts.append(text)
            names.append(name)
            counts.append(stop - start)
            unknown.append(" ".join(sentence.unknown_in(start, stop)))
            entropy_of.append(" ".join(sentence.words[start:stop][:1]))
        if eos:
            names.append(EOS)
            counts.append(1)
            unknown.append("")
            entropy_of.append(EOS)
        coarse.append(replace(sentence, words=tuple(texts), starts=sentence.starts[edges]))
    summed = by_word(table, coarse, first, eos)
    return RegionSurprisals(
        **vars(summed),
        region=names,
        word_count=np.array(counts),
        unknown=unknown,
        entropy_of=entropy_of,
    )
