"""How a protocol reads: a row of tokens, segment by segment, from a state to each token's scores and a new state.

A `Reader` is that as a pure function; this file runs one over a stream whose state is passed on, or over sentences
each of which begins anew. Memory does not grow with the text, and a few sizes of call are compiled for texts of every
length. Letters: `C` segments of `T` tokens, `S` sentences, `N` tokens, `V` vocabulary, `K` likeliest words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, drop_words, no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import BATCHES, Columns, TokenScores, score_logits

FREE = 128  # tokens of a segment, where a protocol leaves the choice
SEGMENTS = (256, 16, 1)  # of a call
MOST = 4096  # tokens of a call of several segments
MOST_SENTENCES = BATCHES[-1]


class Reader(Protocol):
    """An evaluation protocol with its model, as a pytree; `exact` is how evaluation runs a model."""

    @property
    def segment(self) -> int | None:
        """Tokens T that must be read together; None: any number."""
        ...

    @property
    def most_sentences(self) -> int:
        """How many sentences may be read side by side."""
        ...

    def within(self, tokens: int) -> "Reader":
        """The same for texts of at most so many tokens, perhaps in less memory."""
        ...

    def start(self) -> Any:
        """The state before the first token: a pytree of arrays of fixed shapes."""
        ...

    def read(
        self, state: Any, inputs: jax.Array, targets: jax.Array, counted: jax.Array, scale: "Scale"
    ) -> tuple[Columns, Any]:
        """Scores one segment.

        Args:
            state: before it.
            inputs, targets: ids [T].
            counted: bool [T]; those that are not are padding at the end.
            scale: how much to find.

        Returns:
            The columns [T, ...] of `TokenScores`, and the state after it.
        """
        ...


@dataclass(frozen=True)
class Scale:
    """How much to find of each token: its nats; if `full` also entropy and rank; and its `top` likeliest words."""

    top: int = 0
    full: bool = True

    @property
    def nats_only(self) -> bool:
        """Whether the words' probabilities are not needed one by one."""
        return not (self.top or self.full)


def features(
    model: Recurrent, params: Params, inputs: jax.Array, carry: Carry, noise: Noise | None = None
) -> tuple[jax.Array, Carry]:
    """inputs [T] and the carry of one row -> the last layer's outputs [T, 1, H] and the new carry, in float32."""
    model, noise, tokens = stack.exact(model), noise or no_noise(model), inputs[:, None]
    return stack.features(model, params, noise, drop_words(model, noise, stack.embed(params, tokens), tokens), carry)


def nats_alone(nats: jax.Array) -> Columns:
    """The columns of tokens of which the nats [T] are wanted only."""
    none = jnp.zeros((len(nats), 0))
    return nats, jnp.zeros_like(nats), jnp.zeros(len(nats), jnp.int32), none.astype(jnp.int32), none


def own_scores(model: Recurrent, params: Params, found: jax.Array, targets: jax.Array, scale: Scale) -> Columns:
    """The scores that the model itself gives targets [T] after features [T, 1, H]."""
    if scale.nats_only:
        return nats_alone(heads.token_nats(model, params, found, targets[:, None])[:, 0])
    return score_logits(heads.logits(model, params, found[:, 0]), targets, scale.top, scale.full)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridReader:
    """Reads once for every combination of a protocol's numbers; of those whose state depends on none of them.

    Its scores are the nats alone, [T, G1, G2, ...], with an axis for each field. What a number does not touch is
    computed once for all of its values.
    """

    reader: Any  # a `Reader` with a protocol
    names: tuple[str, ...] = field(metadata={"static": True})  # of the fields
    values: tuple[jax.Array, ...]  # [G] of each

    @property
    def segment(self) -> int | None:
        return self.reader.segment

    @property
    def most_sentences(self) -> int:
        return self.reader.most_sentences

    def within(self, tokens: int) -> "GridReader":
        return replace(self, reader=self.reader.within(tokens))

    def start(self) -> Any:
        return self.reader.start()

    def read(
        self, state: Any, inputs: jax.Array, targets: jax.Array, counted: jax.Array, scale: Scale
    ) -> tuple[Columns, Any]:

        def one(*numbers):
            protocol = replace(self.reader.protocol, **dict(zip(self.names, numbers, strict=True)))
            reader = replace(self.reader, protocol=protocol)
            columns, after = reader.read(state, inputs, targets, counted, Scale(full=False))
            return columns[0], after

        for place in reversed(range(len(self.values))):  # a state that depended on a number would be refused by vmap
            axes = [0 if at == place else None for at in range(len(self.values))]
            one = jax.vmap(one, in_axes=axes, out_axes=(1, None))
        nats, state = one(*self.values)
        return nats_alone(nats), state


class OneStream:
    """One sentence is read after the other in one state; a `Scoring`.

    Segments are cut in the stream, whichever way it comes in calls: what a call leaves of a segment is scored, and
    read again in the next call, from the state before the segment.

    Attributes:
        state: before the first token that is read again.
    """

    def __init__(self, reader: Reader, top: int = 0, full: bool = True):
        self._reader, self._scale, self.state = reader, Scale(top, full), reader.start()
        self._pending = np.zeros((2, 0), np.int32)  # inputs and targets since that state

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        inputs, targets = (
            np.concatenate([part, *(ids[cut] for ids in sentences)]).astype(np.int32)
            for part, cut in zip(self._pending, (slice(None, -1), slice(1, None)), strict=True)
        )
        known, done, parts = self._pending.shape[1], 0, []
        T = self._reader.segment or FREE
        while (whole := (len(inputs) - done) // T) > 0:
            C = next(C for C in SEGMENTS if C == 1 or (whole >= C and C * T <= MOST))
            cut = slice(done, done := done + C * T)
            found, self.state = _read(
                self._reader,
                self.state,
                inputs[cut].reshape(C, T),
                targets[cut].reshape(C, T),
                np.ones((C, T), bool),
                scale=self._scale,
            )
            parts.append(_scores(found, slice(None)))
        self._pending = np.stack([inputs[done:], targets[done:]])
        if left := len(inputs) - done:
            padded = np.pad(self._pending, ((0, 0), (0, T - left)))[:, None]
            found, _ = _read(self._reader, self.state, *padded, np.arange(T)[None] < left, scale=self._scale)
            parts.append(_scores(found, slice(left)))
        whole = TokenScores.joined(parts)
        return TokenScores(*(getattr(whole, name)[known:] for name in TokenScores.__dataclass_fields__))


class EachSentence:
    """Each sentence from the first state; sentences of about one length are read side by side; a `Scoring`."""

    def __init__(self, reader: Reader, top: int = 0, full: bool = True):
        self._reader, self._scale = reader, Scale(top, full)

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        found: dict[int, TokenScores] = {}
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        sizes = [size for size in BATCHES if size <= self._reader.most_sentences] or [1]
        for start in range(0, len(order), sizes[-1]):
            places = order[start : start + sizes[-1]]
            S = next(size for size in sizes if size >= len(places))
            for place, scores in zip(
                places, self._side_by_side([sentences[place] for place in places], S), strict=True
            ):
                found[place] = scores
        return TokenScores.joined([found[place] for place in range(len(sentences))])

    def _side_by_side(self, sentences: Sequence[np.ndarray], S: int) -> list[TokenScores]:
        lengths = [len(ids) - 1 for ids in sentences]
        steps = max(8, 1 << (max(lengths) - 1).bit_length())  # a power of two, so that few sizes are compiled
        T = self._reader.segment or min(steps, FREE)
        C = -(-steps // T)
        inputs, targets = np.zeros((2, S, C * T), np.int32)
        for row, ids in enumerate(sentences):
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        counted = np.arange(C * T) < np.pad(lengths, (0, S - len(lengths)))[:, None]
        columns = _read_each(
            self._reader.within(C * T),
            *(part.reshape(S, C, T) for part in (inputs, targets, counted)),
            scale=self._scale,
        )
        columns = [np.asarray(column) for column in columns]
        return [_scores([column[row] for column in columns], slice(length)) for row, length in enumerate(lengths)]


def _scores(columns: Sequence[Any], kept: slice) -> TokenScores:
    return TokenScores(*(np.asarray(column)[kept] for column in columns))


def _all(reader, state, inputs, targets, counted, scale):
    """Segments [C, T] -> columns [C * T, ...] and the state after them."""

    def one(state, segment):
        columns, state = reader.read(state, *segment, scale)
        return state, columns

    state, columns = lax.scan(one, state, (inputs, targets, counted))
    return tuple(column.reshape(inputs.size, *column.shape[2:]) for column in columns), state


_read = partial(jax.jit, static_argnames="scale")(_all)


@partial(jax.jit, static_argnames="scale")
def _read_each(reader, inputs, targets, counted, *, scale):
    """Sentences [S, C, T], each from the first state -> columns [S, C * T, ...]."""
    one = partial(_all, reader, reader.start(), scale=scale)
    return jax.vmap(lambda *row: one(*row)[0])(inputs, targets, counted)
