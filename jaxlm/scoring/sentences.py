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
from itertools import accumulate, compress, islice, pairwise
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.data.vocab import EOS, Vocab
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
        number: The number of the sentence among others.
    """

    tokens: tuple[str, ...]
    ids: np.ndarray
    oov: np.ndarray
    words: tuple[str, ...]
    starts: np.ndarray
    cuts: np.ndarray
    number: int = 1

    def unknown_in(self, start: int, stop: int) -> list[str]:
        """The displayed words that have an unknown token.

        Args:
            start: The first word.
            stop: The word after the last.
        """
        edges = pairwise(self.starts[start : stop + 1])
        unknown = (self.oov[first:end].any() for first, end in edges)
        return list(compress(self.words[start:stop], unknown))

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
    def within_words(vocab: Vocab) -> "Boundaries | None":
        """Where pieces make up words; None where tokens are words, or none of them begins one."""
        boundaries = Boundaries.of(vocab, "word")
        if boundaries is None or not boundaries.begins.any():
            return None
        return boundaries

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


def with_given_case(sentence: Encoded) -> Encoded:
    """The sentence with its tokens in the case that the user gave, if each is a displayed word."""
    if len(sentence.words) != len(sentence.tokens):
        return sentence
    pairs = zip(sentence.words, sentence.tokens, strict=True)
    tokens = tuple(word if word.lower() == token else token for word, token in pairs)
    return replace(sentence, tokens=tokens)


def region_starts(sentence: Encoded, texts: Sequence[str], where: str) -> list[int]:
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
    words = [*map(_comparable, sentence.words)]
    regions = [*map(_comparable, texts)]
    word_at = {offset: word for word, offset in enumerate(accumulate(map(len, words), initial=0))}
    offsets = [*accumulate(map(len, regions), initial=0)]
    if "".join(regions) != "".join(words) or not word_at.keys() >= {*offsets}:
        regions_text = " | ".join(texts)
        sentence_text = " ".join(sentence.words)
        raise DataError(
            f"{where}: the regions {regions_text!r:.120} do not tile the words of the sentence "
            f"{sentence_text!r:.120}: give every word once, in order"
        )
    return [word_at[offset] for offset in offsets]


def _comparable(text: str) -> str:
    """A text without what reading may change: case, composed letters and white space."""
    return "".join(unicodedata.normalize("NFC", text.lower()).split())


def character_ends(vocab: Vocab, tokens: Iterable[str]) -> list[int]:
    """How many characters of their text come before the end of each token [n].

    Args:
        vocab: The vocabulary, whose tokens are no words.
        tokens: Names of tokens; an unknown token is its own text.
    """
    texts = map(vocab.tokens.data, tokens)
    # In UTF-8 every byte but those of the form 10xxxxxx begins a character.
    return [*accumulate(sum(byte & 0xC0 != 0x80 for byte in text) for text in texts)]


def checked_words(sentence: object) -> list[str]:
    """The words of a sentence that is a list of words. Raises JaxlmError for anything else."""
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
