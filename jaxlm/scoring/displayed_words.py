"""Displayed words, where each mark of punctuation is a word of its own."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from jaxlm.scoring.sentences import is_punctuation


def punctuation_apart(
    shown: Sequence[str], pieces: Sequence[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """Displayed words and their pieces, where each mark of punctuation is a word of its own.

    Args:
        shown: The displayed words.
        pieces: The pieces of each word.
    """
    words: list[str] = []
    pieces_of_words: list[list[str]] = []
    for word, word_pieces in zip(shown, pieces, strict=True):
        groups: list[list[str]] = []
        for piece in word_pieces:
            if not groups or is_punctuation(piece) or is_punctuation(groups[-1][-1]):
                groups.append([])
            groups[-1].append(piece)
        if groups:
            words += _cut(word, ["".join(group) for group in groups])
            pieces_of_words += groups
        else:
            words.append(word)
            pieces_of_words.append([])
    return words, pieces_of_words


def _cut(word: str, texts: list[str]) -> list[str]:
    """Cuts a displayed word where texts meet, which the tokenizer made of it.

    The tokenizer may have changed the case of all texts, and anything of one text (of several that
    are possible the last is taken as that). Where it has changed two, the texts themselves are
    returned.
    """

    def stands_at(start: int, text: str) -> bool:
        return start >= 0 and word[start : start + len(text)].casefold() == text.casefold()

    starts = [0, *accumulate(map(len, texts))]
    shift = len(word) - starts[-1]  # of the texts after the changed one
    unchanged_from_left = 0
    while unchanged_from_left < len(texts) and stands_at(
        starts[unchanged_from_left], texts[unchanged_from_left]
    ):
        unchanged_from_left += 1
    shifted_from = len(texts)
    while shifted_from > 0 and stands_at(starts[shifted_from - 1] + shift, texts[shifted_from - 1]):
        shifted_from -= 1
    last = min(unchanged_from_left, len(texts) - 1)
    first = max(shifted_from - 1, 0)
    for changed in range(last, first - 1, -1):
        if len(texts[changed]) + shift > 0:
            edges = [*starts[: changed + 1], *(start + shift for start in starts[changed + 1 :])]
            return [word[start:end] for start, end in pairwise(edges)]
    return texts
