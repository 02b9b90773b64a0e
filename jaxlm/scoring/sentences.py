"""Sentences as a model reads them: the tokens, their ids between two `<eos>`, and the words that they make up.

Tokens that are pieces of words (subwords, characters, bytes) say where a word begins, and not where it ends. So the
probability of a word is that of its pieces and of a boundary B after them, given the boundary before them:

    p(word | context) = product of p(piece) * P(B | context, word) / P(B | context)

B: the next token begins with white space or ends the line; P(B) = 1 at the beginning of a line. The probabilities of
all words sum to one (Pimentel and Meister 2024, arXiv:2406.14561; Oh and Schuler 2024, arXiv:2406.10851).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np

from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.scoring.token_scores import Scoring, TokenScores
from jaxlm.scoring.tokenizers import BRACKETS, Tokenizer

Sentence = str | Sequence[str]  # a line, or its words; of pieces of words, the names of its tokens
BLOCK = 1024  # sentences, or pairs of them, that are read together


@dataclass(frozen=True)
class Encoded:
    """One sentence of n tokens, shown as W words."""

    tokens: tuple[str, ...]  # as given
    ids: np.ndarray  # int32 [n + 2], `<eos>` before and after
    oov: np.ndarray  # which tokens are not in the vocabulary and are read as `<unk>`, bool [n]
    words: tuple[str, ...]
    starts: np.ndarray  # the first token of each word, and n: int [W + 1]
    cuts: np.ndarray  # before which tokens (n: the last `<eos>`) P(B) counts


class Boundaries(NamedTuple):
    """Where pieces make up words: properties of each token, bool [V]."""

    begins: np.ndarray  # begins a word, or ends the line, wherever it stands
    blank: np.ndarray  # is white space alone, and what follows belongs to the same word
    ends: np.ndarray  # is punctuation that is a word by itself: any token after it begins a word

    @staticmethod
    def of(vocab: Vocab, punctuation: str) -> "Boundaries | None":
        """The boundaries of a vocabulary; None where every token is a word."""
        if vocab.kind == "words":
            return None
        texts = [data.decode("utf-8", "ignore") for data in vocab.token_bytes]
        own = punctuation == "own"
        begins = np.array(
            [text[:1].isspace() or (own and is_punctuation(text[:1])) for text in texts]
        )
        begins[vocab.newline_id] |= vocab.newline_id >= 0
        blank = np.array([text.isspace() for text in texts])
        return Boundaries(
            begins, blank, np.array([own and is_punctuation(text[-1:]) for text in texts])
        )

    def split(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`starts` and `cuts` of a sentence, by the ids [n + 1] of its tokens and the `<eos>` after them."""
        ended = self.ends[ids[:-1]]
        begins = (self.begins[ids[1:]] | ended) & ~self.blank[ids[:-1]]
        begins[-1:] = True
        cuts = begins & ~ended & self.begins.any()  # (none in a text without white space)
        return np.append(0, 1 + np.flatnonzero(begins)), 1 + np.flatnonzero(cuts)


def is_punctuation(text: str) -> bool:
    """Whether a text has marks and no letter or digit, or is the code of a bracket; U+FFFD is an unknown letter."""
    marks = (unicodedata.category(letter)[0] in "PS" and letter != "\ufffd" for letter in text)
    return text in BRACKETS.values() or (bool(text) and all(marks))


@dataclass(frozen=True)
class SentenceReader:
    """How every verb reads sentences."""

    vocab: Vocab
    lowercase: bool
    cased: Callable[[str], str]  # a line as the model reads it, where tokens are no words
    split: Tokenizer  # from a line to the pieces of each displayed word, where tokens are words
    punctuation: str  # "word" shows punctuation with its word, "own" as a word of its own
    blank: bool  # whether a sentence may have no words

    @cached_property
    def boundaries(self) -> Boundaries | None:
        return Boundaries.of(self.vocab, self.punctuation)

    def __call__(self, sentence: Sentence, oov: str, where: str) -> Encoded:
        """One sentence, which `where` names in an error. Raises as `encode`."""
        line = sentence if isinstance(sentence, str) else ""
        if self.boundaries is None:
            shown = line.split() if line else check_words(sentence)
            pieces = self.split(line) if line else [[word] for word in shown]
            if self.punctuation == "own":
                shown, pieces = _apart(shown, pieces)
            tokens = [piece for word in pieces for piece in word]
            found = encode(self.vocab, tokens, oov, where, self.lowercase, self.blank)
            return replace(
                found, words=tuple(shown), starts=np.array([0, *accumulate(map(len, pieces))])
            )
        tokens = (
            self.vocab.tokenize(self.cased(line).rstrip())
            if isinstance(sentence, str)
            else check_words(sentence)
        )
        found = encode(self.vocab, tokens, oov, where, self.lowercase, self.blank)
        starts, cuts = self.boundaries.split(found.ids[1:])
        words = [
            "".join(self.vocab.tokens.pieces(tokens[a:b])).strip() for a, b in pairwise(starts)
        ]
        ascii_alone = (
            re.ASCII if self.vocab.kind == "bytes" else re.NOFLAG
        )  # as bytes have white space
        given = re.findall(r"\S+", sentence, ascii_alone) if isinstance(sentence, str) else words
        alike = len(given) == len(words) and (
            self.punctuation == "word" or [*map(len, given)] == [*map(len, words)]
        )
        return replace(found, words=tuple(given if alike else words), starts=starts, cuts=cuts)


def _apart(shown: Sequence[str], pieces: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Displayed words with the pieces that are punctuation as words of their own."""
    words = []
    parts = []
    for word, found in zip(shown, pieces, strict=True):
        groups: list[list[str]] = []
        for piece in found:
            if not groups or is_punctuation(piece) or is_punctuation(groups[-1][-1]):
                groups.append([])
            groups[-1].append(piece)
        words += _cut(word, ["".join(group) for group in groups]) if groups else [word]
        parts += groups or [[]]
    return words, parts


def _cut(word: str, texts: list[str]) -> list[str]:
    """The parts of a displayed word that texts were read from; or the texts, if two of them are written otherwise."""
    for other in reversed(range(len(texts))):
        parts = (
            "(.+)" if place == other else f"({re.escape(text)})" for place, text in enumerate(texts)
        )
        found = re.fullmatch("".join(parts), word, re.IGNORECASE | re.DOTALL)
        if found:
            return [*found.groups()]
    return texts


def in_regions(sentence: Encoded, regions: Sequence[str], where: str) -> Encoded:
    """The sentence, which `where` names in an error, with regions in place of words.

    Regions are texts that make up the words of the sentence, as `_plain` has them, in their order. Raises DataError
    where they do not tile it, or a region begins within a word.
    """
    words = [*map(_plain, sentence.words)]
    ends = {length: place for place, length in enumerate(accumulate(map(len, words), initial=0))}
    lengths = accumulate((len(_plain(region)) for region in regions), initial=0)
    places = [ends.get(length, -1) for length in lengths]
    if -1 in places or "".join(map(_plain, regions)) != "".join(words):
        given = " | ".join(regions)
        whole = " ".join(words)
        what = f"the regions {given!r:.120} do not tile the words of the sentence {whole!r:.120}"
        raise DataError(f"{where}: {what}: give every word once, in order")
    return replace(sentence, words=tuple(regions), starts=sentence.starts[places])


def _plain(text: str) -> str:
    """A text without what reading may change: its case, the composition of its letters, and white space."""
    return "".join(unicodedata.normalize("NFC", text.lower()).split())


def word_nats(
    scores: TokenScores, sentences: Sequence[Encoded], lengths: Sequence[int]
) -> np.ndarray:
    """The nats of every token that was predicted, float64, with the P(B) of words: those of a word sum to the word's.

    The scores are of sentences one after the other, of so many (`lengths`) predictions each.
    """
    nats = scores.nats.astype(float)
    firsts = accumulate(lengths, initial=0)
    cuts = np.concatenate([first + one.cuts for first, one in zip(firsts, sentences, strict=False)])
    nats[cuts] -= scores.boundary[cuts]
    nats[cuts - 1] += scores.boundary[cuts]
    return nats


def sentence_nats(
    scoring: Scoring, sentences: Sequence[Encoded], eos: bool = False
) -> list[np.ndarray]:
    """`word_nats` of the tokens [n] of each sentence; with `eos` also of the `<eos>` after them."""
    read = [one.ids if eos or len(one.cuts) else one.ids[:-1] for one in sentences]
    lengths = [len(ids) - 1 for ids in read]
    parts = np.split(word_nats(scoring(read), sentences, lengths), np.cumsum(lengths)[:-1])
    return [part[: len(one.tokens) + eos] for part, one in zip(parts, sentences, strict=True)]


def encode(
    vocab: Vocab, tokens: Sequence[str], oov: str, where: str, lowercase: bool, blank: bool
) -> Encoded:
    """The sentence of some tokens, which `where` names in an error, as in "stimuli.txt, line 3".

    Tokens outside the vocabulary are refused where `oov` is "error", else read as `<unk>`. Raises DataError where a
    token is refused, there is none and the sentence may not be `blank`, or the vocabulary has no `<unk>` or no `<eos>`.
    """
    if not tokens and not blank:
        raise DataError(f"{where} has no words: give at least one, or remove it")
    if vocab.kind == "words" and EOS not in vocab.ids:
        raise DataError(
            f"the vocabulary has no {EOS}, and a sentence's first word is predicted from it"
        )
    read = (
        [word.lower() for word in tokens] if lowercase and vocab.kind == "words" else tokens
    )  # (names have capitals)
    unknown = [
        word not in vocab.ids or (vocab.kind != "words" and word == vocab.tokens.unknown)
        for word in read
    ]
    if any(unknown) and (oov == "error" or vocab.unknown_id < 0):
        word = tokens[unknown.index(True)]
        kind = vocab.kind
        has_none = vocab.unknown_id < 0
        why = (
            f"the vocabulary has no {UNK} to stand for it"
            if has_none
            else f"read it as {UNK} with oov=unk"
        )
        raise DataError(
            f"{where}: the {kind[:-1]} {word!r} is not among the {len(vocab):,} {kind} of the vocabulary; {why}"
        )
    ids = np.concatenate([[vocab.eos], vocab.encode(read), [vocab.eos]]).astype(np.int32)
    whole = np.arange(len(tokens) + 1)
    return Encoded(tuple(tokens), ids, np.array(unknown, bool), tuple(tokens), whole, whole[:0])


def check_words(sentence: object) -> list[str]:
    """A sentence given as words. Raises JaxlmError where it is anything else."""
    words: list = list(sentence) if isinstance(sentence, Iterable) else [sentence]
    if isinstance(sentence, bytes) or not all(isinstance(word, str) for word in words):
        raise JaxlmError(
            f"a sentence must be a line of text or a list of words; one is {sentence!r:.80}"
        )
    return words


def blocks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block
