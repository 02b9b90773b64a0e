"""What studies of reading times ask: surprisal of spans, and words' frequency and length."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.data.corpora import UNKNOWN
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import EOS
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.next_token import probabilities_after
from jaxlm.scoring.options import UNITS, SurprisalOptions
from jaxlm.scoring.sentences import Encoded, character_ends, is_punctuation
from jaxlm.scoring.stimuli import read_table
from jaxlm.scoring.surprisal import Surprisals, WordSurprisals, scored
from jaxlm.scoring.token_scores import TINY

# A place within a line: how many tokens end before it, and the nats of the text behind these.
_Cut = tuple[int, float]


def span_surprisal(
    lm: LanguageModel,
    sentences: Sequence[str],
    spans: Sequence[tuple[int, int]],
    **options: Any,
) -> WordSurprisals:
    """The surprisal of a span of characters of each line.

    Giulianelli et al. 2024, arXiv:2410.02691.

    It is -log p(the sentence begins with the text up to the span's end) / p(... up to its
    beginning), whatever follows: where a span cuts a token, all tokens that begin alike are summed.
    So it matters which white space around a word is in its span, except where tokens are words.

    Args:
        lm: The model.
        sentences: Lines.
        spans: (start, end) of the span of each line, in characters from 0.
        **options: `unit`, `oov`, `tokenizer` and `where` of `SurprisalOptions` count.

    Returns:
        A row for each span; one without tokens, as of a mark that the vocabulary lacks, has nan.

    Raises:
        DataError: A span is not within its sentence, or cuts a token that is a word.
    """
    settings = replace(SurprisalOptions(**options), eos=True, boundary="published", scoring=None)
    blocks = list(scored(lm, list(sentences), settings))
    table = Surprisals.joined(block_table for _, block_table in blocks)
    encoded = chain.from_iterable(sentences for sentences, _ in blocks)
    in_words = lm.vocab.kind == "words"
    cut = _cut_between_words if in_words else _cut_in_pieces
    unit = UNITS[settings.unit]
    rows = []
    row = 0  # of the sentence's first token
    lines = zip(sentences, spans, encoded, strict=True)
    for line, (start, end), sentence in lines:
        text = line if in_words else line.rstrip()
        span = f"{settings.where(sentence.number)}: the span {start} to {end}"
        if not 0 <= start < end <= len(text):
            raise DataError(f"{span} is not within the {len(text)} characters")
        cuts = [cut(lm, text, place, sentence) for place in (start, end)]
        if cuts[0] is None or cuts[1] is None:
            raise DataError(f"{span} cuts a word of {text!r:.80}: give whole words")
        first, nats_before = cuts[0]
        last, nats_within = cuts[1]
        has_tokens = last > first or not in_words
        # The tokens that the span has a part of.
        pieces = slice(row + first, row + max(last + (nats_within > 0), first + has_tokens))
        numbers = [math.nan] * 3
        if has_tokens:
            whole_tokens = table.surprisal[row + first : row + last].sum()
            numbers = [
                whole_tokens + nats_within / unit - nats_before / unit,
                table.entropy[pieces.start],
                table.entropy_reduction[pieces].sum(),
            ]
        tokens = " ".join(table.token[pieces])
        rows.append(
            (sentence.number, 1, text[start:end], tokens, table.oov[pieces].any(), *numbers)
        )
        row += len(sentence.tokens) + 1
    columns: list[Any] = [
        list(column) if isinstance(column[0], str) else np.array(column)
        for column in zip(*rows, strict=True)
    ]
    return WordSurprisals(*columns)


def _cut_between_words(lm: LanguageModel, text: str, place: int, sentence: Encoded) -> _Cut | None:
    """A place of a line of words; None where it cuts a word."""
    words = [word.span() for word in re.finditer(r"\S+", text)]
    if any(start < place < end for start, end in words):
        return None
    before = sum(end <= place for _, end in words)
    return int(sentence.starts[before]), 0.0


def _cut_in_pieces(lm: LanguageModel, text: str, place: int, sentence: Encoded) -> _Cut:
    """A place of a line of tokens that are no words, one of which it may cut."""
    # Reading may change the length of a text: a letter and its accent may become one character.
    place = len(_read_back(lm, text[:place]))
    ends = [0, *character_ends(lm.vocab, sentence.tokens)]
    token = int(np.searchsorted(ends, place, "right")) - 1
    cut_off = _read_back(lm, text)[ends[token] : place].encode()
    if token == len(sentence.tokens) or not cut_off:
        return token, 0.0
    alike = np.array([data.startswith(cut_off) for data in lm.vocab.token_bytes])
    # The token itself may be unknown or half a letter, whose bytes do not begin so.
    alike[sentence.ids[token + 1]] = True
    p = float(probabilities_after(lm.network, sentence.ids[: token + 1])[alike].sum())
    return token, -math.log(max(p, TINY))


def _read_back(lm: LanguageModel, text: str) -> str:
    """The beginning of a line as its tokens spell it: in the model's case, and normalised."""
    return "".join(lm.vocab.tokens.pieces(lm.vocab.tokenize(lm.line_as_read(text))))


def predictors(
    lm: LanguageModel,
    table: Surprisals | WordSurprisals,
    counts: Mapping[str, int] | None,
) -> dict[str, list[Any]]:
    """Two columns for a table of a model: `length`, in characters, and `log_frequency`.

    `log_frequency` is ln(1 + how often the word is in the training text), without the punctuation
    at its edges; the rarest part's where a word is several of the vocabulary's, such as can't.

    Args:
        lm: The model.
        table: Its table of tokens, words or regions.
        counts: Counts of words, as `word_counts` or `read_counts` return them; None: unknown.

    Returns:
        The columns; `log_frequency` is nan without counts, and for unknown words.
    """
    logs = []
    in_words = lm.vocab.kind == "words"
    tokens = table.tokens if isinstance(table, WordSurprisals) else table.token
    for word, pieces, oov in zip(table.word, tokens, table.oov.tolist(), strict=True):
        spelled = pieces if in_words else _read_back(lm, word)
        words = [bare(text) for text in spelled.split() if not is_punctuation(text)]
        if counts is None or oov or not words:
            logs.append(math.nan)
        else:
            logs.append(math.log1p(min(counts.get(text, 0) for text in words)))
    return {"length": [*map(len, table.word)], "log_frequency": logs}


def read_counts(path: str | Path) -> Mapping[str, int]:
    """How often each word is in a text, by a CSV file with the columns `word` and `count`.

    Words are counted without the punctuation at their edges. Raises DataError where the file is
    malformed.
    """
    table = read_table(path, "word")
    counts = Counter[str]()
    for word, count in zip(table.sentences, table.numbers("count"), strict=True):
        counts[bare(word.strip())] += count
    return counts


def training_counts(lm: LanguageModel, name: str = "this model") -> Mapping[str, int]:
    """How often each word is in a model's training text.

    Args:
        lm: The model.
        name: How an error calls it.

    Raises:
        DataError: The text is unknown, or cannot be read.
    """
    if lm.config.data.corpus == UNKNOWN:
        raise DataError(f"the training text of {name} is unknown")
    return word_counts(lm.find_corpus())


def word_counts(corpus: Corpus) -> Mapping[str, int]:
    """How often each word is in the training text, without the punctuation at its edges."""
    vocab = corpus.vocab
    counts = Counter[str]()
    if vocab.kind == "words":
        for word, count in zip(vocab.words, corpus.train_counts().tolist(), strict=True):
            counts[bare(word)] += count
        return counts
    byte_counts = Counter[bytes]()
    unfinished = b""  # the word that a block ends within
    for block in corpus.train_blocks():
        data = unfinished + b"".join(vocab.token_bytes[token] for token in block.tolist())
        counts[EOS] += int(np.count_nonzero(block == vocab.newline_id))
        words = data.split()
        unfinished = b""
        if words and not data[-1:].isspace():
            unfinished = words.pop()
        byte_counts.update(words)
    byte_counts.update(unfinished.split())
    for data, count in byte_counts.items():
        # `bytes.split` knows ASCII's white space alone.
        for word in data.decode(errors="replace").split():
            counts[bare(word)] += count
    return counts


def bare(word: str) -> str:
    """A word without the punctuation at its edges; punctuation alone stays, and `<eos>`.

    >>> bare("(bank,"), bare("dogs'"), bare("--"), bare("\u2764\ufe0f") == "\u2764\ufe0f"
    ('bank', 'dogs', '--', True)
    """
    inside = [place for place, letter in enumerate(word) if not is_punctuation(letter)]
    # Part of an emoji may be no punctuation, so the word must have a letter or digit.
    if word != EOS and inside and any(map(str.isalnum, word)):
        return word[inside[0] : inside[-1] + 1]
    return word
