"""How a text is read for scores, segment by segment: a `Reader` for each protocol, and the two ways to run one.

A reader is a pure function from a state and a segment to each token's scores and a new state. `OneStream` passes the
state on from sentence to sentence; `each_sentence` begins every sentence anew. Memory does not grow with the text, and
a few sizes of call are compiled for texts of every length.

Letters: `C` segments of `T` tokens, `B` texts side by side, `N` tokens, `H` width, `V` vocabulary.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.config.protocols import Plain
from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import (
    Detail,
    Network,
    Tokens,
    TokenScores,
    merged,
    nats_alone,
    own_scores,
)

FREE = 128  # tokens of a segment, where the protocol leaves the choice
SHORT = 8  # tokens of a segment of short sentences: few, so that little is read beyond the longest
SEGMENTS = (256, 16, 1)  # of a call
MOST = 4096  # tokens of a call of several segments
SENTENCES = (1, 8, 64)  # of a call
MOST_PADDED = 1 << 20  # tokens of sentences that are read side by side, each as long as the longest
CALLS = 2  # that run at once: parts of a program use one core


class Reader:
    """A protocol with its model, as a pytree. One text has the state `start` and is read by `read`.

    B texts side by side have the state `start_all` and are read by `read_all`; a reader may override these two instead.
    """

    segment: Any = None  # tokens T that must be read together; None: any number
    most_sentences: Any = SENTENCES[-1]  # that may be read side by side

    def within(self, tokens: int) -> "Reader":
        """A reader, perhaps in less memory, of texts of at most so many tokens."""
        return self

    def start(self) -> Any:
        """The state before the first token: a pytree of arrays of fixed shapes."""
        raise NotImplementedError

    def read(self, state: Any, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Any]:
        """The scores of one segment [T], and the state after it."""
        raise NotImplementedError

    def start_all(self, texts: int) -> Any:
        """The state of B texts; every leaf has a first axis B."""
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (texts, *jnp.shape(leaf))), self.start()
        )

    def read_all(self, state: Any, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Any]:
        """The scores [T, B, ...] of a segment [T, B] of B texts, and the state after it."""
        if tokens.inputs.shape[1] == 1:
            state = jax.tree.map(lambda leaf: leaf[0], state)
            scores, state = self.read(state, jax.tree.map(lambda ids: ids[:, 0], tokens), detail)
            return jax.tree.map(lambda one: one[:, None], scores), jax.tree.map(
                lambda leaf: leaf[None], state
            )
        return jax.vmap(partial(self.read, detail=detail), (0, 1), (1, 0))(state, tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModelReader(Reader):
    """The model's own probabilities, at the temperature that the protocol has. Its state is the carry."""

    network: Network
    protocol: Plain

    def start_all(self, texts: int) -> Carry:
        return self.network.carry(texts)

    def read_all(self, state: Carry, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Carry]:
        found, state = self.network.features(tokens.inputs, state)
        return own_scores(
            self.network, found, tokens, detail, getattr(self.protocol, "temperature", None)
        ), state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridReader(Reader):
    """Scores a text under a grid of protocol settings in one pass: nats alone, [T, B, G1, G2, ...], an axis a field.

    The state must not depend on the settings. What a field does not touch is computed once for all of its values.
    """

    reader: Any  # a `Reader` with a protocol
    names: tuple[str, ...] = field(metadata={"static": True})  # of the fields
    values: tuple[jax.Array, ...]  # [G] of each

    def start_all(self, texts: int) -> Any:
        return self.reader.start_all(texts)

    def read_all(self, state: Any, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Any]:
        def one(*numbers):
            protocol = replace(self.reader.protocol, **dict(zip(self.names, numbers, strict=True)))
            scores, after = replace(self.reader, protocol=protocol).read_all(
                state, tokens, Detail(full=False)
            )
            return scores.nats, after

        for place in reversed(
            range(len(self.values))
        ):  # vmap refuses a state that depends on a setting
            axes = [0 if at == place else None for at in range(len(self.values))]
            one = jax.vmap(one, in_axes=axes, out_axes=(2, None))
        nats, state = one(*self.values)
        return nats_alone(nats), state


class OneStream:
    """Reads one sentence after the other in one state; a `Scoring`.

    Segments are cut in the stream, however it is divided among calls: the tokens after the last whole segment are
    scored at once, and read again in the next call, from the state before them.
    """

    def __init__(self, reader: Reader, detail: Detail):
        self._reader = reader
        self._detail = detail
        self.state = reader.start_all(1)
        self._pending = np.zeros((3, 0), np.int32)  # the tokens since the state

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        known = self._pending.shape[1]
        T = self._reader.segment or FREE
        tokens = np.concatenate([self._pending, *map(read_and_predicted, sentences)], 1)
        N = tokens.shape[1]
        whole = N // T * T
        found, self.state = _read_segments(
            self._reader, self.state, tokens[:, :whole, None], T, self._detail
        )
        self._pending = tokens[:, whole:]
        if whole < N:
            padded = np.pad(self._pending, ((0, 0), (0, whole + T - N)))
            found += _read_segments(self._reader, self.state, padded[..., None], T, self._detail)[0]
        return TokenScores.joined(found).rows((slice(known, N), 0))


def each_sentence(reader: Reader, detail: Detail, sentences: Sequence[np.ndarray]) -> TokenScores:
    """Reads each sentence from the first state, sentences of about one length side by side; `partial`, a `Scoring`."""
    sizes = [size for size in SENTENCES if size <= reader.most_sentences]
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    groups: list[list[int]] = [[]]

    def rows(count: int) -> int:
        return next(size for size in sizes if size >= count)

    for place in order:
        count = len(groups[-1]) + 1
        length = len(sentences[place])
        if count > 1 and (count > sizes[-1] or rows(count) * length > MOST_PADDED):
            groups.append([])
        groups[-1].append(place)

    def side_by_side(group: Sequence[int]) -> list[TokenScores]:
        B = rows(len(group))
        lengths = [len(sentences[place]) - 1 for place in group]
        longest = lengths[-1]
        T = reader.segment or (SHORT if longest <= FREE else FREE)
        steps = -(-longest // T) * T
        tokens = np.zeros((3, steps, B), np.int32)
        for row, place in enumerate(group):
            tokens[:, : lengths[row], row] = read_and_predicted(sentences[place])
        own = reader.within(
            1 << (steps - 1).bit_length()
        )  # a power of two, so that few sizes are compiled
        scores = TokenScores.joined(_read_segments(own, own.start_all(B), tokens, T, detail)[0])
        return [scores.rows((slice(length), row)) for row, length in enumerate(lengths)]

    with ThreadPoolExecutor(CALLS) as pool:
        found = dict(zip(order, chain.from_iterable(pool.map(side_by_side, groups)), strict=True))
    return TokenScores.joined([found[place] for place in range(len(sentences))])


def read_and_predicted(ids: np.ndarray) -> np.ndarray:
    """Ids [n + 1] -> int32 [3, n]: inputs, targets, and 1 for a token that counts; padding is 0."""
    return np.stack([ids[:-1], ids[1:], np.ones(len(ids) - 1)]).astype(np.int32)


def _read_segments(
    reader: Reader, state: Any, tokens: np.ndarray, T: int, detail: Detail
) -> tuple[list[TokenScores], Any]:
    """Reads whole segments of tokens [3, N, B]: the scores of each call, and the state after them."""
    done = 0
    found = []
    while left := (tokens.shape[1] - done) // T:
        C = next(C for C in SEGMENTS if C == 1 or (left >= C and C * T <= MOST))
        part = tokens[:, done : done + C * T].reshape(3, C, T, -1)
        scores, state = _read(reader, state, part, detail=detail)
        found.append(jax.tree.map(np.asarray, scores))
        done += C * T
    return found, state


@partial(jax.jit, static_argnames="detail")
def _read(reader, state, tokens, *, detail):
    """Tokens [3, C, T, B] of C segments -> scores [C * T, B, ...] and the state after them."""

    def one(state, segment):
        scores, state = reader.read_all(state, segment, detail)
        return state, scores

    inputs, targets, counted = tokens
    state, scores = lax.scan(one, state, Tokens(inputs, targets, counted > 0))
    return jax.tree.map(merged, scores), state


@jax.jit
def carries(network, tokens):
    """The carry after each of tokens [N], from zero: leaves [N, 1, ...]."""

    def step(carry, token):
        _, carry = network.features(token[None, None], carry)
        return carry, carry

    return lax.scan(step, network.carry(), tokens)[1]
