"""How a text is read for scores: a `Reader` for each protocol, and two ways to run one.

A reader is a pure function from a state and a segment to the scores of each token and a new state.
`OneStream` passes the state on from sentence to sentence; `each_sentence` begins every sentence
anew. Memory does not grow with the text, and a few sizes of call are compiled for texts of every
length.

Letters: `C` segments of `T` tokens, `B` texts side by side, `N` tokens, `H` width, `V` vocabulary.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.base.errors import Diverged
from jaxlm.base.units import perplexity
from jaxlm.config.protocols import Dynamic, Plain
from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import (
    MOST_SENTENCES,
    NATS_ALONE,
    Detail,
    Network,
    Reader,
    Tokens,
    TokenScores,
    merged,
    nats_alone,
    own_scores,
    read_and_predicted,
)

# Tokens of a segment, where the protocol does not say how many.
SEGMENT = 128
# The same for short sentences: few, so that little padding is read behind the longest one.
SHORT_SEGMENT = 8
# How many segments a call may have, and the most tokens of a call of several segments.
SEGMENTS_OF_CALLS = (256, 16, 1)
MOST_TOKENS = 4096
# How many sentences a call may have, and the most tokens of these, each padded to the longest.
SENTENCES_OF_CALLS = (1, 8, MOST_SENTENCES)
MOST_PADDED = 1 << 20
# Calls that run at once, since parts of a program use one core alone.
CALLS_AT_ONCE = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModelReader(Reader):
    """The model's own probabilities, at the temperature of the protocol. Its state is the carry."""

    network: Network
    protocol: Plain

    def start_all(self, texts: int) -> Carry:
        """As `Reader.start_all`."""
        return self.network.carry(texts)

    def read_all(
        self,
        state: Carry,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Carry]:
        """As `Reader.read_all`."""
        features, state = self.network.features(tokens.inputs, state)
        temperature = getattr(self.protocol, "temperature", None)
        return own_scores(self.network, features, tokens, detail, temperature), state

    def nats_of_all(self, state: Carry, tokens: Tokens) -> tuple[Array, Carry]:
        """As `Reader.nats_of_all`."""
        features, state = self.network.features(tokens.inputs, state)
        return self.network.token_nats(features, tokens.targets), state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridReader(Reader):
    """Scores a text under a grid of protocol settings in one pass.

    It finds nats alone, [T, B, G1, G2, ...], with an axis for each field. The state must not depend
    on the settings. What a field does not touch is computed once for all of its values.

    Attributes:
        reader: A reader with a protocol.
        names: The protocol's fields.
        values: The values [G] of each field.
    """

    reader: Any
    names: tuple[str, ...] = field(metadata={"static": True})
    values: tuple[Array, ...]

    def start_all(self, texts: int) -> Any:
        """As `Reader.start_all`."""
        return self.reader.start_all(texts)

    def read_all(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """As `Reader.read_all`."""

        def read(*settings):
            protocol = replace(self.reader.protocol, **dict(zip(self.names, settings, strict=True)))
            reader = replace(self.reader, protocol=protocol)
            scores, after = reader.read_all(state, tokens, NATS_ALONE)
            return scores.nats, after

        # The last field's axis comes last. vmap refuses a state that depends on a setting.
        fields = range(len(self.values))
        for place in reversed(fields):
            axes = [0 if at == place else None for at in fields]
            read = jax.vmap(read, in_axes=axes, out_axes=(2, None))
        nats, state = read(*self.values)
        return nats_alone(nats), state


class OneStream:
    """Reads one sentence after the other in one state; a `Scoring`.

    Segments are cut in the stream, however it is divided among calls: the tokens after the last
    whole segment are scored at once, and read again in the next call, from the state before them.
    """

    def __init__(self, reader: Reader, detail: Detail):
        self._reader = reader
        self._detail = detail
        self.state = reader.start_all(1)
        self._pending = np.zeros((3, 0), np.int32)  # the tokens since the state

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        """Scores sentences of ids [n + 1], from the state that the last call left."""
        scored = self._pending.shape[1]
        T = self._reader.segment or SEGMENT
        tokens = np.concatenate([self._pending, *map(read_and_predicted, sentences)], 1)
        N = tokens.shape[1]
        in_segments = N // T * T  # tokens of whole segments
        scores, self.state = _read_segments(
            self._reader, self.state, tokens[:, :in_segments, None], T, self._detail
        )
        self._pending = tokens[:, in_segments:]
        if in_segments < N:
            padded = np.pad(self._pending, ((0, 0), (0, in_segments + T - N)))
            pending_scores, _ = _read_segments(
                self._reader, self.state, padded[..., None], T, self._detail
            )
            scores += pending_scores
        return TokenScores.joined(scores).rows((slice(scored, N), 0))


def each_sentence(
    reader: Reader,
    detail: Detail,
    sentences: Sequence[np.ndarray],
) -> TokenScores:
    """Reads each sentence from the first state, sentences of about one length side by side.

    With `functools.partial` it is a `Scoring`.

    Args:
        reader: The protocol and its model.
        detail: How much to find of each token.
        sentences: Ids [n + 1] of each sentence.

    Returns:
        The scores of every token but the first of each sentence, one sentence after another.
    """
    sizes = [size for size in SENTENCES_OF_CALLS if size <= reader.most_sentences]

    def rows(count: int) -> int:
        return next(size for size in sizes if size >= count)

    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    groups: list[list[int]] = [[]]
    for place in order:
        count = len(groups[-1]) + 1
        full = count > sizes[-1] or rows(count) * len(sentences[place]) > MOST_PADDED
        if count > 1 and full:
            groups.append([])
        groups[-1].append(place)

    def side_by_side(group: Sequence[int]) -> list[TokenScores]:
        B = rows(len(group))
        lengths = [len(sentences[place]) - 1 for place in group]
        longest = lengths[-1]
        T = reader.segment or (SHORT_SEGMENT if longest <= SEGMENT else SEGMENT)
        steps = -(-longest // T) * T
        tokens = np.zeros((3, steps, B), np.int32)
        for row, place in enumerate(group):
            tokens[:, : lengths[row], row] = read_and_predicted(sentences[place])
        # Memory for a power of two of tokens, so that few sizes are compiled.
        small = reader.sized_for(1 << (steps - 1).bit_length())
        scores_of_calls, _ = _read_segments(small, small.start_all(B), tokens, T, detail)
        scores = TokenScores.joined(scores_of_calls)
        return [scores.rows((slice(length), row)) for row, length in enumerate(lengths)]

    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        in_order = chain.from_iterable(pool.map(side_by_side, groups))
        scores = dict(zip(order, in_order, strict=True))
    return TokenScores.joined([scores[place] for place in range(len(sentences))])


def check_converged(
    protocol: Plain,
    text: str,
    nats: float,
    count: int,
) -> None:
    """Checks that dynamic evaluation did not diverge.

    Args:
        protocol: The protocol that the text was read by.
        text: The name of the text.
        nats: Summed nats.
        count: Predictions.

    Raises:
        Diverged: Dynamic evaluation learnt at so high a rate that the perplexity is not finite.
    """
    if isinstance(protocol, Dynamic) and not math.isfinite(perplexity(nats, count)):
        rate = f"lower learning_rate, which is {protocol.learning_rate:g}"
        raise Diverged(f"dynamic evaluation diverged on {text}: {rate}")


def _read_segments(
    reader: Reader,
    state: Any,
    tokens: np.ndarray,
    T: int,
    detail: Detail,
) -> tuple[list[TokenScores], Any]:
    """Reads whole segments of tokens [3, N, B]: the scores of each call, and the state after."""
    done = 0
    scores = []
    while done < tokens.shape[1]:
        segments = (tokens.shape[1] - done) // T
        C = next(C for C in SEGMENTS_OF_CALLS if C == 1 or (segments >= C and C * T <= MOST_TOKENS))
        call = tokens[:, done : done + C * T].reshape(3, C, T, -1)
        call_scores, state = _read(reader, state, call, detail=detail)
        scores.append(jax.tree.map(np.asarray, call_scores))
        done += C * T
    return scores, state


@partial(jax.jit, static_argnames="detail")
def _read(
    reader,
    state,
    tokens,
    *,
    detail,
):
    """Tokens [3, C, T, B] of C segments -> scores [C * T, B, ...] and the state after them."""

    def read_segment(state, segment):
        scores, state = reader.read_all(state, segment, detail)
        return state, scores

    inputs, targets, counted = tokens
    state, scores = lax.scan(read_segment, state, Tokens(inputs, targets, counted > 0))
    return jax.tree.map(merged, scores), state


@jax.jit
def carries(network, tokens):
    """The carry after each token, from zero.

    Args:
        network: The model.
        tokens: Ids, int32 [N].

    Returns:
        A carry with leaves [N, 1, ...].
    """

    def step(carry, token):
        _, carry = network.features(token[None, None], carry)
        return carry, carry

    return lax.scan(step, network.carry(), tokens)[1]
