"""Sentences as a model reads them: tokens, ids between two `<eos>`, and words.

Tokens that are pieces of words (subwords, characters, bytes) say where a word begins, and not where
it ends. So the probability of a word is that of its pieces and of a boundary B after them, given
the boundary before them:

    p(word | context) = product of p(piece) * P(B | context, word) / P(B | context)

B: the next token begins with white space or ends the line; P(B) = 1 at the beginning of a line. The
probabilities of all words sum to one (Pimentel and Meister 2024, arXiv:2406.14561; Oh and Schuler
2024, arXiv:2406.10851).
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.scoring.token_scores import Scoring, TokenScores
from jaxlm.scoring.tokenizers import BRACKETS

# A line, or its words; of pieces of words, the names of its tokens.
Sentence = str | Sequence[str]
# A text that makes up some words of a sentence, or its name and the text.
Region = str | tuple[str, str]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sentence of n tokens, shown as W words.

    Attributes:
        tokens: The tokens as given [n].
        ids: int32 [n + 2], `<eos>` before and after.
        oov: Which tokens are not in the vocabulary and are read as `<unk>`, bool [n].
        words: The displayed words [W].
        starts: The first token of each word, and n: int [W + 1].
        cuts: Before which tokens (n: the last `<eos>`) P(B) counts.
    """

    tokens: tuple[str, ...]
    ids: np.ndarray
    oov: np.ndarray
    words: tuple[str, ...]
    starts: np.ndarray
    cuts: np.ndarray

    def unknown_in(self, start: int, stop: int) -> list[str]:
        """The displayed words that have an unknown token.

        Args:
            start: The first word.
            stop: The word after the last.
        """
        return [
            word
            for word, (first, end) in zip(
                self.words[start:stop], pairwise(self.starts[start : stop + 1]), strict=True
            )
            if self.oov[first:end].any()
        ]

    def with_end(self) -> "Encoded":
        """The sentence whose last displayed word is the `<eos>` after its tokens."""
        starts = np.append(self.starts, len(self.tokens) + 1)
        return replace(self, words=(*self.words, EOS), starts=starts)


class Boundaries(NamedTuple):
    """Where pieces make up words: properties of each token, bool [V].

    Attributes:
        begins: Begins a word, or ends the line, wherever it stands.
        blank: Is white space alone, and what follows belongs to the same word.
        ends: Is punctuation that is a word by itself: any token after it begins a word.
    """

    begins: np.ndarray
    blank: np.ndarray
    ends: np.ndarray

    @staticmethod
    def of(vocab: Vocab, punctuation: str) -> "Boundaries | None":
        """The boundaries of a vocabulary.

        Args:
            vocab: The tokens.
            punctuation: "word" counts punctuation to its word, "own" makes it a word of its own.

        Returns:
            None where every token is a word.
        """
        if vocab.kind == "words":
            return None
        texts = [data.decode("utf-8", "ignore") for data in vocab.token_bytes]
        begins = np.array([text[:1].isspace() for text in texts])
        blank = np.array([text.isspace() for text in texts])
        ends = np.zeros(len(texts), bool)
        if punctuation == "own":
            begins |= [is_punctuation(text[:1]) for text in texts]
            ends |= [is_punctuation(text[-1:]) for text in texts]
        if vocab.newline_id >= 0:
            begins[vocab.newline_id] = True
        return Boundaries(begins, blank, ends)

    def split(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`starts` and `cuts` of a sentence, by the ids [n + 1] of its tokens and its `<eos>`."""
        ended = self.ends[ids[:-1]]
        begins = (self.begins[ids[1:]] | ended) & ~self.blank[ids[:-1]]
        begins[-1:] = True
        cuts = begins & ~ended & self.begins.any()  # none in a text without white space
        return np.append(0, 1 + np.flatnonzero(begins)), 1 + np.flatnonzero(cuts)


def is_punctuation(text: str) -> bool:
    """Whether a text has marks and no letter or digit, or is the code of a bracket.

    U+FFFD is an unknown letter.
    """
    if text in BRACKETS.values():
        return True
    marks = (unicodedata.category(letter)[0] in "PS" and letter != "\ufffd" for letter in text)
    return bool(text) and all(marks)


def as_given(sentence: Encoded) -> Encoded:
    """The sentence, whose tokens are shown in the case as given where each is a displayed word."""
    if len(sentence.words) != len(sentence.tokens):
        return sentence
    pairs = zip(sentence.words, sentence.tokens, strict=True)
    tokens = tuple(word if word.lower() == token else token for word, token in pairs)
    return replace(sentence, tokens=tokens)


def in_regions(sentence: Encoded, texts: Sequence[str], where: str) -> list[int]:
    """Where regions begin in a sentence.

    Args:
        sentence: The sentence, of W words.
        texts: Texts that make up its words in their order; case, composed letters and white space
            do not count.
        where: Names the sentence in an error.

    Returns:
        The first word of each region, and W.

    Raises:
        DataError: The regions do not tile the sentence, or a region begins within a word.
    """
    words = [*map(_plain, sentence.words)]
    regions = [*map(_plain, texts)]
    places = {end: place for place, end in enumerate(accumulate(map(len, words), initial=0))}
    edges = [*accumulate(map(len, regions), initial=0)]
    if "".join(regions) != "".join(words) or not places.keys() >= {*edges}:
        given = " | ".join(texts)
        whole = " ".join(sentence.words)
        raise DataError(
            f"{where}: the regions {given!r:.120} do not tile the words of the sentence "
            f"{whole!r:.120}: give every word once, in order"
        )
    return [places[edge] for edge in edges]


def _plain(text: str) -> str:
    """A text without what reading may change: case, composed letters and white space."""
    return "".join(unicodedata.normalize("NFC", text.lower()).split())


def word_nats(
    scores: TokenScores,
    sentences: Sequence[Encoded],
    lengths: Sequence[int],
) -> np.ndarray:
    """The nats of every token that was predicted, which sum to the nats of their words.

    The P(B) of a word is added to its last token and to the last token before it.

    Args:
        scores: Scores of the sentences, one after the other.
        sentences: The sentences.
        lengths: Predictions of each sentence.

    Returns:
        Nats, float64.
    """
    nats = scores.nats.astype(float)
    firsts = accumulate(lengths, initial=0)
    cuts = np.concatenate([first + one.cuts for first, one in zip(firsts, sentences, strict=False)])
    nats[cuts] -= scores.boundary[cuts]
    nats[cuts - 1] += scores.boundary[cuts]
    return nats


def sentence_nats(
    scoring: Scoring,
    sentences: Sequence[Encoded],
    eos: bool = False,
) -> list[np.ndarray]:
    """`word_nats` of the tokens [n] of each sentence; equal sentences get equal numbers.

    Args:
        scoring: Scores the sentences.
        sentences: The sentences.
        eos: Whether the `<eos>` after the tokens is scored too.
    """
    unique = {sentence.ids.tobytes(): sentence for sentence in sentences}
    read = [one.ids if eos or len(one.cuts) else one.ids[:-1] for one in unique.values()]
    lengths = [len(ids) - 1 for ids in read]
    nats = word_nats(scoring(read), [*unique.values()], lengths)
    of_ids = dict(zip(unique, np.split(nats, np.cumsum(lengths)[:-1]), strict=True))
    return [of_ids[one.ids.tobytes()][: len(one.tokens) + eos] for one in sentences]


def character_ends(vocab: Vocab, tokens: Iterable[str]) -> list[int]:
    """Behind which character of their text tokens end [n], where they are no words.

    Args:
        vocab: The vocabulary.
        tokens: Names of tokens; an unknown one is as it stands there.
    """
    texts = map(vocab.tokens.data, tokens)
    return [*accumulate(sum(byte & 0xC0 != 0x80 for byte in text) for text in texts)]


def check_words(sentence: object) -> list[str]:
    """A sentence given as words. Raises JaxlmError where it is anything else."""
    words: list = list(sentence) if isinstance(sentence, Iterable) else [sentence]
    if isinstance(sentence, bytes) or not all(isinstance(word, str) for word in words):
        raise JaxlmError(
            f"a sentence must be a line of text or a list of words; one is {sentence!r:.80}"
        )
    return words


def blocks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of items.

    Args:
        items: The items.
        size: Items of a list; the last one is shorter.
    """
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block
