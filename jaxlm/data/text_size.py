"""How long a text is in units that do not depend on its tokens, so that results of different tokens compare."""

from typing import NamedTuple

import numpy as np

from jaxlm.data.vocab import EOS, Vocab
from jaxlm.data.windows import num_windows

BLOCK = 1 << 20  # ids that are turned into text at once


class TextSize(NamedTuple):
    """Tokens, bytes of UTF-8, characters, and words: stretches without white space, and ends of lines."""

    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0

    @staticmethod
    def of(vocab: Vocab, ids: np.ndarray, rows: int = 1, window: int = 1) -> "TextSize":
        """The size of what is predicted of ids [N], cut into `rows` that are read in whole windows.

        The text is what the ids stand for: of a vocabulary of words, the words with single spaces between them, and a
        newline for `<eos>`. The first token of a row is not predicted.

        >>> TextSize.of(Vocab(("the", "cat", "<eos>")), np.array([0, 1, 2, 0, 1]))
        TextSize(tokens=4, bytes=12, characters=12, words=4)
        """
        length, sizes = len(ids) // rows, [(0, 0, 0, 0)]
        predicted = num_windows(length, window) * window
        for start in range(0, rows * length, length):
            for first in range(start, start + predicted, BLOCK):
                last = min(first + BLOCK, start + predicted)
                before, text = (_text(vocab, ids[first : end + 1]) for end in (first, last))
                new = text[len(before) :]
                begun = bool(new) and not new[0].isspace() and not before[-1:].isspace()  # a word goes on
                sizes.append((last - first, len(new.encode()), len(new), len(new.split()) - begun + new.count("\n")))
        return TextSize(*map(sum, zip(*sizes, strict=True)))


def _text(vocab: Vocab, ids: np.ndarray) -> str:
    return " ".join(vocab.decode(ids)).replace(EOS, "\n").replace(" \n", "\n").replace("\n ", "\n")
