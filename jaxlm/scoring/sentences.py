"""Sentences as a model reads them: tokens, ids between two `<eos>`, and words.

Tokens that are pieces of words (subwords, characters, bytes) say where a word begins, and not where
it ends. So the probability of a word is that of its pieces and of a boundary B after them, given
the boundary before them:

    p(word | context) = product of p(piece) * P(B | context, word) / P(B | context)

B: the next token begins with white space or ends the line; P(B) = 1 at the beginning of a line. The
probabilities of all words sum to one (Pimentel and Meister 2024, arXiv:2406.14561; Oh and Schuler
2024, arXiv:2406.10851).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.scoring.token_scores import Scoring, TokenScores
from jaxlm.scoring.tokenizers import BRACKETS, Tokenizer

# A line, or its words; of pieces of words, the names of its tokens.
Sentence = str | Sequence[str]
# A text that makes up some words of a sentence, or its name and the text.
Region = str | tuple[str, str]
BLOCK = 1024  # sentences, or pairs of them, that are read together


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


@dataclass(frozen=True)
class SentenceReader:
    """How every verb reads sentences.

    Attributes:
        vocab: The tokens.
        lowercase: Whether the model reads lower case.
        cased: From a line to the line as the model reads it, where tokens are no words.
        split: From a line to the pieces of each displayed word, where tokens are words.
        punctuation: "word" shows punctuation with its word, "own" as a word of its own.
        blank: Whether a sentence may have no words.
    """

    vocab: Vocab
    lowercase: bool
    cased: Callable[[str], str]
    split: Tokenizer
    punctuation: str
    blank: bool

    @cached_property
    def boundaries(self) -> Boundaries | None:
        """Where pieces make up words; None where every token is a word."""
        return Boundaries.of(self.vocab, self.punctuation)

    def __call__(
        self,
        sentence: Sentence,
        oov: str,
        where: str,
    ) -> Encoded:
        """Reads one sentence.

        Args:
            sentence: A line or its words.
            oov: Unknown words are read as `<unk>`, or refused ("error").
            where: Names the sentence in an error.

        Raises:
            DataError: As `encode`.
        """
        if self.boundaries is None:
            return self._in_words(sentence, oov, where)
        return self._in_pieces(sentence, oov, where, self.boundaries)

    def _in_words(
        self,
        sentence: Sentence,
        oov: str,
        where: str,
    ) -> Encoded:
        if isinstance(sentence, str):
            shown = sentence.split()
            pieces = self.split(sentence)
        else:
            shown = check_words(sentence)
            pieces = [[word] for word in shown]
        if self.punctuation == "own":
            shown, pieces = _apart(shown, pieces)
        tokens = [piece for word in pieces for piece in word]
        encoded = encode(self.vocab, tokens, oov, where, self.lowercase, self.blank)
        starts = np.array([0, *accumulate(map(len, pieces))])
        return replace(encoded, words=tuple(shown), starts=starts)

    def _in_pieces(
        self,
        sentence: Sentence,
        oov: str,
        where: str,
        boundaries: Boundaries,
    ) -> Encoded:
        if isinstance(sentence, str):
            tokens = self.vocab.tokenize(self.cased(sentence).rstrip())
        else:
            tokens = check_words(sentence)
        encoded = encode(self.vocab, tokens, oov, where, self.lowercase, self.blank)
        starts, cuts = boundaries.split(encoded.ids[1:])
        pieces = self.vocab.tokens.pieces
        words = ["".join(pieces(tokens[a:b])).strip() for a, b in pairwise(starts)]
        if isinstance(sentence, str):
            # Bytes know ASCII's white space alone.
            white_space = re.ASCII if self.vocab.kind == "bytes" else re.NOFLAG
            given = re.findall(r"\S+", sentence, white_space)
            if len(given) == len(words) and (
                self.punctuation == "word" or [*map(len, given)] == [*map(len, words)]
            ):
                words = given
        return replace(encoded, words=tuple(words), starts=starts, cuts=cuts)


def as_given(sentence: Encoded) -> Encoded:
    """The sentence, whose tokens are shown in the case as given where each is a displayed word."""
    if len(sentence.words) != len(sentence.tokens):
        return sentence
    pairs = zip(sentence.words, sentence.tokens, strict=True)
    tokens = tuple(word if word.lower() == token else token for word, token in pairs)
    return replace(sentence, tokens=tokens)


def _apart(shown: Sequence[str], pieces: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Displayed words with the pieces that are punctuation as words of their own."""
    words = []
    parts = []
    for word, of_word in zip(shown, pieces, strict=True):
        groups: list[list[str]] = []
        for piece in of_word:
            if not groups or is_punctuation(piece) or is_punctuation(groups[-1][-1]):
                groups.append([])
            groups[-1].append(piece)
        if groups:
            words += _cut(word, ["".join(group) for group in groups])
            parts += groups
        else:
            words.append(word)
            parts.append([])
    return words, parts


def _cut(word: str, texts: list[str]) -> list[str]:
    """The parts of a displayed word that texts were read from, each as the word writes it.

    One text may be written otherwise, the last one where several may; if two are, the parts are the
    texts themselves. Case does not count.
    """

    def alike(start: int, text: str) -> bool:
        return start >= 0 and word[start : start + len(text)].casefold() == text.casefold()

    starts = [0, *accumulate(map(len, texts))]
    shift = len(word) - starts[-1]  # of a text that stands after the one written otherwise
    before = 0
    while before < len(texts) and alike(starts[before], texts[before]):
        before += 1
    after = len(texts)
    while after > 0 and alike(starts[after - 1] + shift, texts[after - 1]):
        after -= 1
    for other in range(min(before, len(texts) - 1), max(after - 1, 0) - 1, -1):
        if len(texts[other]) + shift > 0:
            edges = [*starts[: other + 1], *(start + shift for start in starts[other + 1 :])]
            return [word[start:end] for start, end in pairwise(edges)]
    return texts


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


def encode(
    vocab: Vocab,
    tokens: Sequence[str],
    oov: str,
    where: str,
    lowercase: bool,
    blank: bool,
) -> Encoded:
    """The sentence of some tokens.

    Args:
        vocab: The vocabulary.
        tokens: The tokens [n].
        oov: Tokens outside the vocabulary are refused where it is "error", else read as `<unk>`.
        where: Names the sentence in an error, as in "stimuli.txt, line 3".
        lowercase: Whether words are read in lower case; names of pieces have capitals.
        blank: Whether there may be no token.

    Raises:
        DataError: A token is refused, there is none, or the vocabulary has no `<unk>` or no
            `<eos>`.
    """
    kind = vocab.kind
    if not tokens and not blank:
        raise DataError(f"{where} has no words: give at least one, or remove it")
    if kind == "words" and EOS not in vocab.ids:
        raise DataError(
            f"the vocabulary has no {EOS}, and a sentence's first word is predicted from it"
        )
    read = tokens
    if lowercase and kind == "words":
        read = [word.lower() for word in tokens]
    unknown = [word not in vocab.ids for word in read]
    if kind != "words":
        name = vocab.tokens.unknown
        unknown = [word not in vocab.ids or word == name for word in read]
    if any(unknown) and (oov == "error" or vocab.unknown_id < 0):
        word = tokens[unknown.index(True)]
        remedy = f"read it as {UNK} with oov=unk"
        if vocab.unknown_id < 0:
            remedy = f"the vocabulary has no {UNK} to stand for it"
        known = f"the {len(vocab):,} {kind} of the vocabulary"
        raise DataError(f"{where}: the {kind[:-1]} {word!r} is not among {known}; {remedy}")
    ids = np.concatenate([[vocab.eos], vocab.encode(read), [vocab.eos]]).astype(np.int32)
    whole = np.arange(len(tokens) + 1)
    return Encoded(tuple(tokens), ids, np.array(unknown, bool), tuple(tokens), whole, whole[:0])


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
