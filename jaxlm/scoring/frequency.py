"""How frequent words are in a model's training text, and how long they are: the baseline of reading times."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.data.corpus import Corpus
from jaxlm.data.tokens import EOS
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.sentences import is_punctuation
from jaxlm.scoring.surprisal import Surprisals, WordSurprisals

BLOCK = 1 << 20  # tokens read at once


def predictors(
    lm: LanguageModel, table: Surprisals | WordSurprisals, counts: Mapping[str, int] | None
) -> dict[str, list[Any]]:
    """Two columns for a table of a model: `length`, in characters, and `log_frequency`.

    `log_frequency` is ln(1 + how often the word is in the training text), without the punctuation at its edges; the
    rarest part's where a word is several of the vocabulary's, such as can't. It is nan without `counts` (those of
    `word_counts`), and for words outside a vocabulary of words.
    """
    logs, words = [], lm.vocab.kind == "words"
    tokens = table.tokens if isinstance(table, WordSurprisals) else table.token
    for word, pieces, oov in zip(table.word, tokens, table.oov.tolist(), strict=True):
        parts = pieces.split() if words else lm.cased(word).split()
        read = [bare(part) for part in parts if not is_punctuation(part)]
        counted = [] if counts is None or (words and oov) else [counts.get(one, 0) for one in read]
        logs.append(math.log1p(min(counted)) if counted else math.nan)
    return {"length": [*map(len, table.word)], "log_frequency": logs}


def word_counts(corpus: Corpus) -> Mapping[str, int]:
    """How often each word is in the training text, without the punctuation at its edges."""
    vocab, ids = corpus.vocab, corpus.train
    blocks = (ids[at : at + BLOCK] for at in range(0, len(ids), BLOCK))
    found = Counter[str]()
    if vocab.kind == "words":
        totals = sum((np.bincount(block, minlength=len(vocab)) for block in blocks), np.zeros(len(vocab), int))
        for word, count in zip(vocab.words, totals.tolist(), strict=True):
            found[bare(word)] += count
        return found
    counts, rest = Counter[bytes](), b""
    for block in blocks:
        data = rest + b"".join(map(vocab.token_bytes.__getitem__, block.tolist()))
        found[EOS] += int(np.count_nonzero(block == vocab.eos))
        words = data.split()
        rest = words.pop() if words and not data[-1:].isspace() else b""
        counts.update(words)
    for word, count in (counts + Counter(rest.split())).items():
        found[bare(word.decode(errors="replace"))] += count
    return found


def bare(word: str) -> str:
    """A word without the punctuation at its edges; punctuation alone stays, and `<eos>`.

    >>> bare("(bank,"), bare("dogs'"), bare("--")
    ('bank', 'dogs', '--')
    """
    inside = [place for place, letter in enumerate(word) if not is_punctuation(letter)]
    return word[inside[0] : inside[-1] + 1] if inside and word != EOS else word
