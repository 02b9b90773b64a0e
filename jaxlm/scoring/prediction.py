"""The most probable next words after a text, also where words are made of pieces."""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.fields import checked_value
from jaxlm.data.tokens import EOS
from jaxlm.data.vocab import Vocab
from jaxlm.models.stack import Carry
from jaxlm.scoring.model import Model
from jaxlm.scoring.next_token import carry_after, next_probabilities, probabilities_after
from jaxlm.scoring.sentences import Boundaries
from jaxlm.scoring.token_scores import Network

UNLIKELY = 1e-7  # a probability below that of any likely word


def predict(
    model: Model,
    text: str,
    k: int = 10,
    *,
    tokenizer: str | None = None,
) -> list[tuple[str, float]]:
    """The most probable next words after a text, with their probabilities.

    Args:
        model: The model.
        text: The words so far.
        k: How many.
        tokenizer: Name of the tokenizer.

    Raises:
        DataError: The text has no words.
    """
    vocab = model.vocab
    checked_value("k", k, int, low=1)
    ids = vocab.encode(model.tokens(text, tokenizer))
    if not len(ids):
        raise DataError("there is no word to predict from: give at least one")
    boundaries = Boundaries.within_words(vocab)
    if boundaries is not None:
        return _next_words_of_pieces(model.network, vocab, boundaries, ids, k)
    p = probabilities_after(model.network, ids)
    likeliest = np.argsort(-p, kind="stable")[:k]
    return [(vocab.words[place], float(p[place])) for place in likeliest]


class _Candidate(NamedTuple):
    """The pieces of a word that may go on, or of a whole word; a heap gives the likeliest first.

    Attributes:
        minus_p: Minus the probability.
        number: The number of the candidate, so that candidates of equal probability have an order.
        pieces: Ids of the pieces.
        carry: The carry before the last piece; None: the word is whole.
    """

    minus_p: float
    number: int
    pieces: list[int]
    carry: Carry | None


def _next_words_of_pieces(
    network: Network,
    vocab: Vocab,
    boundaries: Boundaries,
    ids: np.ndarray,
    k: int,
) -> list[tuple[str, float]]:
    """`predict` by a search, the likeliest first, among the pieces of all words.

    What is less probable than `UNLIKELY` is left out. Where several sequences of pieces write one
    word, those that the search meets are summed.
    """
    end = vocab.newline_id
    words: dict[str, float] = {}
    heap = [_Candidate(-1.0, 0, [], carry_after(network, ids[:-1]))]
    while heap and len(words) < k:
        minus_p, _, pieces, carry = heappop(heap)
        if carry is None:
            word = vocab.decode_text(pieces).strip() or EOS
            words[word] = words.get(word, 0.0) - float(minus_p)
            continue
        last = pieces[-1] if pieces else int(ids[-1])
        p, carry_after_last = next_probabilities(network, np.array([last], np.int32), carry)
        p = -minus_p * np.asarray(p, float)
        begins = boundaries.begins & (not boundaries.blank[last] and last != end)
        p_of_boundary = p[begins].sum()
        if pieces:
            if p_of_boundary:  # the word may end here
                heappush(heap, _Candidate(-p_of_boundary, len(heap), pieces, None))
            p = np.where(begins, 0, p)
        elif begins.any():  # the word must begin here
            p = np.where(begins, p, 0) / p_of_boundary
        for piece in np.flatnonzero(p > UNLIKELY).tolist():
            carry = None if piece == end else carry_after_last
            heappush(heap, _Candidate(-p[piece], len(heap), [*pieces, piece], carry))
    return sorted(words.items(), key=lambda word: -word[1])
