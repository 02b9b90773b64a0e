"""Surprisal word by word, -log p of each word given the words before it, and entropy.

Surprisal: Hale 2001, Levy 2008. Entropy and its reduction are defined as in neural-complexity (van
Schijndel and Linzen 2018): the entropy of the distribution that predicts a word, and by how much it
fell since the word before.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Self

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.config.protocols import protocol_of
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.scoring.dynamic_evaluation import AdaptiveScoring
from jaxlm.scoring.model import Model, SentenceReader
from jaxlm.scoring.options import UNITS, SurprisalOptions
from jaxlm.scoring.sentences import (
    Encoded,
    Region,
    Sentence,
    blocks,
    region_starts,
    with_given_case,
)
from jaxlm.scoring.token_scores import Detail, Scoring, TokenScores
from jaxlm.scoring.word_nats import word_nats


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
    def joined(cls, tables: Iterable[Self]) -> Self:
        """The tables, one after the other. Raises DataError where there is none."""
        tables = list(tables)
        if not tables:
            raise DataError("there are no sentences: give at least one")
        joined: dict[str, Any] = {}
        for name, first in vars(tables[0]).items():
            columns = [getattr(table, name) for table in tables]
            if isinstance(first, np.ndarray):
                joined[name] = np.concatenate(columns)
            else:
                joined[name] = list(chain.from_iterable(columns))
        return type(tables[0])(**joined)

    def columns(self) -> dict[str, Any]:
        """The table: each column by its name."""
        return dict(vars(self))

    def words_and_unknown(self) -> tuple[int, list[str]]:
        """How many words the table has, and those of them that are outside the vocabulary."""
        unknown = [self.word[row] for row in np.flatnonzero(self.oov)]
        return len(self), unknown


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
) -> Surprisals:
    """The table of some sentences.

    Args:
        scores: Of every token but the first of each sentence.
        vocab: The tokens.
        sentences: The sentences.
        options: The unit, and which tokens have a row or a surprisal.
    """
    # A sentence's `<eos>` is scored too, and has a row if `options.eos`.
    lengths = np.array([len(sentence.ids) - 1 for sentence in sentences])
    sentence_id = np.repeat([sentence.number for sentence in sentences], lengths)
    token_id = np.concatenate([np.arange(length) for length in lengths])
    ids = np.concatenate([sentence.ids[1:] for sentence in sentences])
    unknown = np.concatenate([np.append(sentence.oov, False) for sentence in sentences])
    words = [word for sentence in sentences for word in (*sentence.tokens, EOS)]
    starts = np.cumsum(lengths) - lengths
    pairs = zip(starts, sentences, strict=True)
    nats = word_nats(scores, np.concatenate([start + sentence.cuts for start, sentence in pairs]))
    if options.oov == "nan":
        nats[unknown] = math.nan
    entropy = scores.entropy.astype(float)
    entropy_before = np.where(token_id > 0, np.roll(entropy, 1), entropy)
    rows = np.flatnonzero(token_id + 1 < np.repeat(lengths + options.eos, lengths))
    unit = UNITS[options.unit]
    return Surprisals(
        sentence_id=sentence_id[rows],
        token_id=token_id[rows] + 1,
        word=[words[row] for row in rows.tolist()],
        token=vocab.decode(ids[rows]),
        oov=unknown[rows],
        surprisal=nats[rows] / unit,
        entropy=entropy[rows] / unit,
        entropy_reduction=np.maximum(0, entropy_before - entropy)[rows] / unit,
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


def by_word(table: Surprisals, sentences: Sequence[Encoded]) -> WordSurprisals:
    """The table of sentences' tokens, summed over words.

    Args:
        table: A row for each token of the words.
        sentences: The sentences.
    """
    counts = np.concatenate([np.diff(sentence.starts) for sentence in sentences])
    lengths = [len(sentence.words) for sentence in sentences]
    ends = np.cumsum(counts)
    starts = ends - counts
    word_of_token = np.repeat(np.arange(len(counts)), counts)
    nan_if_empty = np.where(counts > 0, 0, math.nan)

    def sums(column: np.ndarray) -> np.ndarray:
        return np.bincount(word_of_token, column, len(counts))

    return WordSurprisals(
        sentence_id=np.repeat([sentence.number for sentence in sentences], lengths),
        word_id=np.concatenate([np.arange(1, length + 1) for length in lengths]),
        word=[word for sentence in sentences for word in sentence.words],
        tokens=[" ".join(table.token[start:end]) for start, end in zip(starts, ends, strict=True)],
        oov=sums(table.oov) > 0,
        surprisal=sums(table.surprisal) + nan_if_empty,
        entropy=np.append(table.entropy, math.nan)[starts] + nan_if_empty,
        entropy_reduction=sums(table.entropy_reduction) + nan_if_empty,
    )


def by_region(
    table: Surprisals,
    sentences: Sequence[Encoded],
    regions: Iterator[Sequence[Region]],
    options: SurprisalOptions,
) -> RegionSurprisals:
    """The table of sentences' tokens, summed over regions.

    Args:
        table: A row for each token of the words.
        sentences: The sentences.
        regions: The regions of each sentence, but for a last one of `<eos>`.
        options: Whether `<eos>` is a region, and what names a sentence in an error.

    Raises:
        DataError: Regions do not tile a sentence.
    """
    names: list[str] = []
    counts: list[int] = []
    unknown: list[str] = []
    entropy_of: list[str] = []
    sentences_of_regions = []  # in which each region is one word
    end_region = [EOS] if options.eos else []
    for sentence in sentences:
        texts = []
        for region in (*next(regions, ()), *end_region):
            name, text = ("", region) if isinstance(region, str) else region
            names.append(name)
            texts.append(text)
        edges = region_starts(sentence, texts, options.where(sentence.number))
        for start, stop in pairwise(edges):
            counts.append(stop - start)
            unknown.append(" ".join(sentence.unknown_in(start, stop)))
            entropy_of.append(" ".join(sentence.words[start:stop][:1]))
        words = tuple(texts)
        sentences_of_regions.append(replace(sentence, words=words, starts=sentence.starts[edges]))
    return RegionSurprisals(
        **vars(by_word(table, sentences_of_regions)),
        region=names,
        word_count=np.array(counts),
        unknown=unknown,
        entropy_of=entropy_of,
    )


def surprisal(model: Model, sentences: Iterable[Sentence], **options: Any) -> Surprisals:
    """The surprisal of every word, with entropy, entropy reduction and rank, as plain arrays.

    Args:
        model: The model.
        sentences: Lines, or lists of words; the first word of each is predicted from `<eos>`.
        **options: Fields of `SurprisalOptions`, as in `context="stream"`.

    Raises:
        DataError: There are no sentences, one has no words, or an unknown word is refused.
        JaxlmError: An option is none of the choices.

    >>> import jaxlm
    >>> lm = jaxlm.load("runs/tiny")
    >>> table = lm.surprisal(["the bank", "zebra"])
    >>> table.word, table.oov.tolist(), table.surprisal.shape
    (['the', 'bank', 'zebra'], [False, False, True], (3,))
    """
    return Surprisals.joined(surprisal_stream(model, sentences, **options))


def surprisal_stream(
    model: Model, sentences: Iterable[Sentence], **options: Any
) -> Iterator[Surprisals]:
    """`surprisal` of an iterator of any length in constant memory.

    Args:
        model: The model.
        sentences: Lines, or lists of words; with the context "stream" they may be empty.
        **options: Fields of `SurprisalOptions`.

    Returns:
        A table for each block of sentences.

    Raises:
        DataError: A sentence has no words, or an unknown word is refused.
        JaxlmError: An option is none of the choices.
    """
    blocks_scored = scored(model, sentences, SurprisalOptions(**options))
    return (table for _, table in blocks_scored)


def word_surprisal(model: Model, sentences: Iterable[Sentence], **options: Any) -> WordSurprisals:
    """The surprisal of every displayed word: one with white space around it, its pieces summed.

    Args:
        model: The model.
        sentences: Lines.
        **options: `regions` of `word_surprisal_stream`; fields of `SurprisalOptions` except
            `top_k`.

    Raises:
        DataError: There are no sentences, one has no piece, or regions do not tile them.
        JaxlmError: An option is none of the choices.
    """
    return WordSurprisals.joined(word_surprisal_stream(model, sentences, **options))


def word_surprisal_stream(
    model: Model,
    sentences: Iterable[Sentence],
    *,
    regions: Iterable[Sequence[Region]] | None = None,
    **options: Any,
) -> Iterator[WordSurprisals]:
    """`word_surprisal` of an iterator of any length in constant memory.

    Args:
        model: The model.
        sentences: Lines.
        regions: The regions of each sentence, to sum over in place of words: texts that make up its
            words, or pairs of a name and such a text.
        **options: Fields of `SurprisalOptions` except `top_k`.

    Yields:
        A table for each block of sentences; with `regions` it is of `RegionSurprisals`.

    Raises:
        DataError: A sentence has no piece, or regions do not tile the sentences.
        JaxlmError: An option is none of the choices.
    """
    settings = SurprisalOptions(**options)
    regions_left = iter(regions or ())
    for encoded, table in scored(model, sentences, settings):
        if settings.eos:
            encoded = [sentence.with_end() for sentence in encoded]
        if regions is None:
            yield by_word(table, encoded)
        else:
            yield by_region(table, encoded, regions_left, settings)
    surplus = len(list(regions_left))
    if surplus:
        raise DataError(
            f"regions has {surplus} lists more than sentences has lines: give one for each line"
        )


def scored(
    model: Model, sentences: Iterable[Sentence], options: SurprisalOptions
) -> Iterator[tuple[list[Encoded], Surprisals]]:
    """Reads and scores sentences block by block.

    Args:
        model: The model.
        sentences: As `surprisal_stream` takes them.
        options: How they are read and scored.

    Yields:
        Of each block how its sentences are read, and the table of their tokens.

    Raises:
        DataError: A sentence has no words, or an unknown word is refused.
        JaxlmError: These are no sentences.
    """
    scoring = options.scoring or model.scoring_of(options)
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
        raise JaxlmError(f"sentences must be a list of lines; it is {sentences!r:.80}")
    read_sentence = SentenceReader(model, options)
    for lines in blocks(enumerate(sentences, 1), options.block):
        encoded = []
        for number, line in lines:
            sentence = read_sentence(line, options.oov, options.where(number))
            encoded.append(replace(with_given_case(sentence), number=number))
        scores = scoring([sentence.ids for sentence in encoded])
        yield encoded, surprisals(scores, model.vocab, encoded, options)


def scorer(
    model: Model, context: str = "sentence", *, full: bool = True, **options: Any
) -> Scoring:
    """A scoring of sentences: each by itself, or one after the other with the state passed on.

    Args:
        model: The model.
        context: "sentence" or "stream".
        full: Whether to find entropy and rank.
        **options: Fields of `SurprisalOptions`.

    Returns:
        A function from sentences of ids to scores. It raises Diverged where dynamic evaluation
        learnt at too high a rate.

    Raises:
        JaxlmError: An option is none of the choices.
    """
    return model.scoring_of(SurprisalOptions(context=context, **options), full)


def adaptive(model: Model, rate: float, **options: Any) -> AdaptiveScoring:
    """A scoring that takes a step of SGD after each sentence; its `params` are adapted.

    Args:
        model: The model.
        rate: Learning rate.
        **options: `context`, `top_k`, `boundary` and `punctuation` of `SurprisalOptions`.

    Raises:
        JaxlmError: The rate is not above 0, or there is a protocol.
    """
    settings = SurprisalOptions(**options)
    if protocol_of(settings.protocol).kind_name != "plain":
        raise JaxlmError("a model learns from its own probabilities: leave the protocol out")
    model.check_network("adaptation")
    network = model.network_of(settings)
    return AdaptiveScoring(network, rate, settings.context == "stream", Detail(settings.top_k))
