"""From a line, or a list of words, to the sentence that a model reads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.sentences import Boundaries, Encoded, Sentence, check_words, is_punctuation
from jaxlm.scoring.token_scores import Model


@dataclass(frozen=True)
class SentenceReader:
    """How every verb reads sentences.

    Attributes:
        model: The model, whose vocabulary and case count.
        options: `tokenizer`, `punctuation` and `context` count: only in a stream a sentence may
            have no words.
    """

    model: Model
    options: SurprisalOptions

    @cached_property
    def boundaries(self) -> Boundaries | None:
        """Where pieces make up words; None where every token is a word."""
        return Boundaries.of(self.model.vocab, self.options.punctuation)

    def __call__(self, sentence: Sentence, oov: str, where: str) -> Encoded:
        """Reads one sentence.

        Args:
            sentence: A line or its words.
            oov: Unknown words are read as `<unk>`, or refused ("error").
            where: Names the sentence in an error.

        Raises:
            DataError: As `LanguageModel.encoded`.
        """
        if self.boundaries is None:
            return self._in_words(sentence, oov, where)
        return self._in_pieces(sentence, oov, where, self.boundaries)

    def _in_words(self, sentence: Sentence, oov: str, where: str) -> Encoded:
        if isinstance(sentence, str):
            shown = sentence.split()
            pieces = self.model.tokenizer(self.options.tokenizer)(sentence)
        else:
            shown = check_words(sentence)
            pieces = [[word] for word in shown]
        if self.options.punctuation == "own":
            shown, pieces = _apart(shown, pieces)
        tokens = [piece for word in pieces for piece in word]
        starts = np.array([0, *accumulate(map(len, pieces))])
        return replace(self._encoded(tokens, oov, where), words=tuple(shown), starts=starts)

    def _in_pieces(
        self, sentence: Sentence, oov: str, where: str, boundaries: Boundaries
    ) -> Encoded:
        vocab = self.model.vocab
        if isinstance(sentence, str):
            tokens = vocab.tokenize(self.model.line_as_read(sentence).rstrip())
        else:
            tokens = check_words(sentence)
        encoded = self._encoded(tokens, oov, where)
        starts, cuts = boundaries.split(encoded.ids[1:])
        pieces = vocab.tokens.pieces
        words = ["".join(pieces(tokens[a:b])).strip() for a, b in pairwise(starts)]
        if isinstance(sentence, str):
            # Bytes know ASCII's white space alone.
            white_space = re.ASCII if vocab.kind == "bytes" else re.NOFLAG
            given = re.findall(r"\S+", sentence, white_space)
            if len(given) == len(words) and (
                self.options.punctuation == "word" or [*map(len, given)] == [*map(len, words)]
            ):
                words = given
        return replace(encoded, words=tuple(words), starts=starts, cuts=cuts)

    def _encoded(self, tokens: Sequence[str], oov: str, where: str) -> Encoded:
        blank = self.options.context == "stream"
        return self.model.encoded(tokens, oov, where, blank)


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
