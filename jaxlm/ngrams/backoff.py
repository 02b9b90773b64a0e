"""A backoff n-gram model: its tables, and the log probabilities that it gives to tokens.

Letters: `N` tokens, `V` vocabulary, `G` n-grams of one order. An n-gram is its *place* in its
order's sorted keys; a key is `place of the (n-1)-gram before the last token * (V + 1) + the last
token`. The id V stands for the beginning of a sentence, which is only ever context.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ABSENT = -1  # the place of an n-gram that the tables lack
_POSITIONS_AT_ONCE = 1 << 20


class Table(NamedTuple):
    """The n-grams of one order.

    Attributes:
        keys: Sorted int64 `[G]`; of unigrams, the tokens 0 to V themselves.
        log_probability: Natural logarithm of each n-gram's probability given its first n-1 tokens,
            float64 `[G]`.
        log_backoff: Natural logarithm of the weight of the next lower order after this n-gram,
            float64 `[G]`.
    """

    keys: np.ndarray
    log_probability: np.ndarray
    log_backoff: np.ndarray

    def places(
        self,
        before: np.ndarray,
        tokens: np.ndarray,
        vocab_size: int,
    ) -> np.ndarray:
        """The places of n-grams, ABSENT where there is none.

        Args:
            before: Places `[N]` of the (n-1)-grams before the last tokens; ABSENT gives ABSENT.
            tokens: The last tokens `[N]`.
            vocab_size: V.

        Returns:
            Places int64 `[N]`.
        """
        if not len(self.keys):
            return np.full(before.shape, ABSENT)
        keys = before.astype(np.int64) * (vocab_size + 1) + tokens
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        present = (before >= 0) & (self.keys[places] == keys)
        return np.where(present, places, ABSENT)


@dataclass(frozen=True, eq=False)
class BackoffModel:
    """An n-gram model of tokens 0 to V - 1, in the form that ARPA files have (Katz 1987).

    Attributes:
        vocab_size: V.
        end: The token that ends a sentence; the next one begins a new context. None: the text is
            one sentence.
        tables: One a order, from unigrams on.
    """

    vocab_size: int
    end: int | None
    tables: tuple[Table, ...]

    @property
    def order(self) -> int:
        """The most tokens of an n-gram."""
        return len(self.tables)

    @property
    def grams(self) -> int:
        """How many n-grams there are, of all orders."""
        return sum(len(table.keys) for table in self.tables)

    @property
    def begin(self) -> int:
        """The id that stands for the beginning of a sentence."""
        return self.vocab_size

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """The natural logarithm of the probability of each token given those before it.

        Args:
            tokens: A text, ids `[N]` below V.

        Returns:
            float64 `[N]`.
        """
        stream = with_beginnings(tokens, self.vocab_size, self.end)
        scores = np.empty(len(stream))
        for start in range(0, len(stream), _POSITIONS_AT_ONCE):
            before = max(0, start - self.order)
            block = slice(start, start + _POSITIONS_AT_ONCE)
            scores[block] = self._scores(stream[before : block.stop])[start - before :]
        return scores[stream != self.begin]

    def next_log_probabilities(self, context: np.ndarray) -> np.ndarray:
        """The distribution of the next token after a context, float64 `[V]`.

        Args:
            context: Ids before it, at most V (the beginning of a sentence).
        """
        places = self._places(np.asarray(context, np.int64))
        scores = self.tables[0].log_probability[: self.vocab_size].copy()
        for order in range(1, min(self.order, len(context) + 1)):
            place = places[order - 1][-1]
            if place == ABSENT:
                continue  # A pruned model may have a longer context.
            table = self.tables[order]
            first = place * (self.vocab_size + 1)
            start, stop = np.searchsorted(table.keys, [first, first + self.vocab_size])
            scores += self.tables[order - 1].log_backoff[place]
            scores[table.keys[start:stop] - first] = table.log_probability[start:stop]
        return scores

    def log_probabilities_after(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The natural logarithm of the probability of each token after a context of its own.

        Args:
            contexts: Ids `[R, C]`, at most V (the beginning of a sentence).
            tokens: Ids `[R]` below V.

        Returns:
            float64 `[R]`.
        """
        return self._scores(np.column_stack([contexts, tokens]).astype(np.int64))[:, -1]

    def _scores(self, stream: np.ndarray) -> np.ndarray:
        """The log probability of each token of streams `[..., N]` with their beginnings."""
        places = self._places(stream)
        scores = np.zeros(stream.shape)
        complete = np.zeros(stream.shape, bool)
        for order in range(self.order, 0, -1):
            table = self.tables[order - 1]
            seen = ~complete & (places[order - 1] >= 0)
            scores[seen] += table.log_probability[places[order - 1][seen]]
            complete |= seen
            if order > 1:
                before = _shifted(places[order - 2])
                backs_off = ~complete & (before >= 0)
                shorter = self.tables[order - 2]
                scores[backs_off] += shorter.log_backoff[before[backs_off]]
        return scores

    def _places(self, tokens: np.ndarray) -> list[np.ndarray]:
        """For each order, the place `[..., N]` of the n-gram that ends at each token, or ABSENT."""
        places = [tokens]
        for table in self.tables[1:]:
            places.append(table.places(_shifted(places[-1]), tokens, self.vocab_size))
        return places


def with_beginnings(
    tokens: np.ndarray,
    vocab_size: int,
    end: int | None,
) -> np.ndarray:
    """A text with the id V before each sentence. The end of the text opens no sentence.

    Args:
        tokens: The text, ids `[N]` below V.
        vocab_size: V.
        end: The token that ends a sentence; None: the text is one sentence.

    Returns:
        int64, longer than the text by its sentences.
    """
    starts = [0]
    if end is not None:
        starts += (np.flatnonzero(tokens[:-1] == end) + 1).tolist()
    return np.insert(tokens.astype(np.int64), starts, vocab_size)


def _shifted(places: np.ndarray) -> np.ndarray:
    """Places `[..., N]` moved to the token after each; the first token has ABSENT."""
    moved = np.full_like(places, ABSENT)
    moved[..., 1:] = places[..., :-1]
    return moved
