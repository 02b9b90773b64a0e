"""What studies of reading times ask of a model: surprisal of spans of characters; words' frequency and length."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.data.windows import batch
from jaxlm.errors import DataError
from jaxlm.scoring.generation import next_word
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.sentences import Encoded, is_punctuation
from jaxlm.scoring.surprisal import UNITS, Surprisals, WordSurprisals
from jaxlm.scoring.token_scores import TINY

BLOCK = 1 << 20  # tokens read at once


def span_surprisal(
    lm: LanguageModel,
    sentences: Sequence[str],
    spans: Sequence[tuple[int, int]],
    where: Callable[[int], str] = "sentence {}".format,
    **options: Any,
) -> WordSurprisals:
    """The surprisal of each line's span, (start, end) in characters (Giulianelli et al. 2024, arXiv:2410.02691).

    It is -log p(the sentence begins with the text up to the span's end) / p(... up to its beginning), whatever follows:
    where a span cuts a token, all tokens that begin alike are summed. So it matters which white space around a word is
    in its span, except where tokens are words; a span without tokens, as of a mark that the vocabulary lacks, has nan.

    Options are `unit`, `oov` and `tokenizer` of `SurprisalOptions`; `where` names a sentence in an error. Raises
    DataError where a span is not within its sentence, or cuts a token that is a word.
    """
    found = [*lm.scored(list(sentences), where=where, eos=True, boundary="published", **options)]
    table = Surprisals.joined(part for _, _, part in found)
    vocab = lm.vocab
    rows = []
    offset = 0
    unit = UNITS[options.get("unit", "bits")]
    encoded = (one for _, part, _ in found for one in part)
    for number, (text, (start, end), one) in enumerate(
        zip(sentences, spans, encoded, strict=True), 1
    ):
        given = text = text if vocab.kind == "words" else text.rstrip()
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"{where(number)}: the span {start} to {end} is not within the {len(text)} characters"
            )
        places = start, end
        if vocab.kind != "words":  # (a letter and its combining mark may be read as one character)
            text, *read = (_as_read(lm, part) for part in (text, text[:start], text[:end]))
            places = [*map(len, read)]
        ends = _ends(vocab, text, one)
        cuts = []
        for place in places:
            token = max(k for k, at in enumerate(ends) if at <= place)
            part = text[ends[token] : place] if token < len(one.tokens) else ""
            if vocab.kind == "words" and any(
                word.start() < place < word.end() for word in re.finditer(r"\S+", text)
            ):
                cut = f"the span {start} to {end} cuts a word of {text!r:.80}"
                raise DataError(f"{where(number)}: {cut}: give whole words")
            p = 1.0
            if vocab.kind != "words" and part:  # that the next token begins with the part
                alike = np.array([data.startswith(part.encode()) for data in vocab.token_bytes])
                alike[one.ids[token + 1]] = (
                    True  # (which of unknown letters, or half a letter, the bytes do not say)
                )
                p = max(float(next_word(lm.network, one.ids[: token + 1])[alike].sum()), TINY)
            cuts.append((token, -math.log(p) / unit))
        (first, before), (last, after) = cuts
        some = first < last or vocab.kind != "words"
        piece = slice(offset + first, offset + max(last + (after > 0), first + some))
        surprisal = table.surprisal[offset + first : offset + last].sum() + after - before
        numbers = surprisal, table.entropy[piece.start], table.entropy_reduction[piece].sum()
        words = given[start:end], " ".join(table.token[piece])
        rows.append(
            (number, 1, *words, table.oov[piece].any(), *(numbers if some else [math.nan] * 3))
        )
        offset += len(one.tokens) + 1
    columns: list[Any] = [
        [*one] if isinstance(one[0], str) else np.array(one) for one in zip(*rows, strict=True)
    ]
    return WordSurprisals(*columns)


def _as_read(lm: LanguageModel, text: str) -> str:
    """The beginning of a line, whose tokens are no words, as the model reads it: in its case, and normalised."""
    return "".join(lm.vocab.tokens.pieces(lm.vocab.tokenize(lm.line_as_read(text))))


def _ends(vocab: Vocab, text: str, sentence: Encoded) -> list[int]:
    """Where the text that comes before each token, and before the end of the line, ends: [n + 1], from 0."""
    if vocab.kind != "words":
        data = map(vocab.tokens.data, sentence.tokens)  # an unknown one as it stands there
        return np.cumsum([0, *(sum(byte & 0xC0 != 0x80 for byte in one) for one in data)]).tolist()
    words = [found.end() for found in re.finditer(r"\S+", text)]
    return [0, *np.repeat(words, np.diff(sentence.starts)).tolist()]


def predictors(
    lm: LanguageModel, table: Surprisals | WordSurprisals, counts: Mapping[str, int] | None
) -> dict[str, list[Any]]:
    """Two columns for a table of a model: `length`, in characters, and `log_frequency`.

    `log_frequency` is ln(1 + how often the word is in the training text), without the punctuation at its edges; the
    rarest part's where a word is several of the vocabulary's, such as can't. It is nan without `counts` (those of
    `word_counts`), and for unknown words.
    """
    logs = []
    words = lm.vocab.kind == "words"
    tokens = table.tokens if isinstance(table, WordSurprisals) else table.token
    for word, pieces, oov in zip(table.word, tokens, table.oov.tolist(), strict=True):
        parts = (pieces if words else _as_read(lm, word)).split()
        read = [bare(part) for part in parts if not is_punctuation(part)]
        counted = [] if counts is None or oov else [counts.get(one, 0) for one in read]
        logs.append(math.log1p(min(counted)) if counted else math.nan)
    return {"length": [*map(len, table.word)], "log_frequency": logs}


def word_counts(corpus: Corpus) -> Mapping[str, int]:
    """How often each word is in the training text, without the punctuation at its edges."""
    vocab = corpus.vocab
    ids = corpus.train
    blocks = (batch(ids, 1, start=at, stop=at + BLOCK)[:, 0] for at in range(0, len(ids), BLOCK))
    found = Counter[str]()
    if vocab.kind == "words":
        totals = sum(
            (np.bincount(block, minlength=len(vocab)) for block in blocks),
            np.zeros(len(vocab), int),
        )
        for word, count in zip(vocab.words, totals.tolist(), strict=True):
            found[bare(word)] += count
        return found
    counts = Counter[bytes]()
    rest = b""
    for block in blocks:
        data = rest + b"".join(map(vocab.token_bytes.__getitem__, block.tolist()))
        found[EOS] += int(np.count_nonzero(block == vocab.newline_id))
        words = data.split()
        rest = words.pop() if words and not data[-1:].isspace() else b""
        counts.update(words)
    for word, count in (counts + Counter(rest.split())).items():
        for part in word.decode(
            errors="replace"
        ).split():  # (bytes have no white space beyond ASCII's)
            found[bare(part)] += count
    return found


def bare(word: str) -> str:
    """A word without the punctuation at its edges; punctuation alone stays, and `<eos>`.

    >>> bare("(bank,"), bare("dogs'"), bare("--"), bare("\u2764\ufe0f") == "\u2764\ufe0f"
    ('bank', 'dogs', '--', True)
    """
    inside = [place for place, letter in enumerate(word) if not is_punctuation(letter)]
    some = inside and any(map(str.isalnum, word))  # (a part of an emoji may be no punctuation)
    if some and word != EOS:
        return word[inside[0] : inside[-1] + 1]
    return word
