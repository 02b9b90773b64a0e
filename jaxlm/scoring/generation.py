"""Text from a model: samples in one compiled loop or without end, or by beam search. The state has a fixed size.

The key of a word is the seed's, folded with the sample's number and the word's, so that a sample is the same text alone
and among many, in one piece and as a stream.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.data.tokens import EOS, WORDS, Words
from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError
from jaxlm.fields import checked_value
from jaxlm.models.stack import Carry
from jaxlm.scoring.sampling import Sampling, draw
from jaxlm.scoring.sentences import Boundaries
from jaxlm.scoring.token_scores import Network

CHUNK = 64  # words of one call, at most
READ = 256  # least words of a program that reads a prompt
UNLIKELY = 1e-7  # a probability that no likely word has


@dataclass(frozen=True, repr=False)
class Text:
    """What was generated after a prompt.

    Attributes:
        words: with `<eos>` where a line ends; or the names of characters, bytes or subwords.
        log_probs: nats of each word under the model itself, before temperature and the like, float [n].
    """

    words: list[str]
    log_probs: np.ndarray
    tokens: Words = WORDS

    def __str__(self) -> str:
        """The text: words with spaces between and a newline for `<eos>`; other tokens exactly."""
        return "".join(self.tokens.pieces(self.words))

    def __repr__(self) -> str:
        return f"Text({len(self.words):,} {self.tokens.kind}, {-self.log_probs.sum():.2f} nats: {str(self)[:60]!r})"


class Position(NamedTuple):
    """The state of S samples; its size does not grow with their text."""

    carry: Carry  # before `token`
    token: jax.Array  # the last word of each, which is read next, [S]
    step: jax.Array  # words drawn
    done: jax.Array  # which have ended, [S]
    seen: (
        jax.Array | None
    )  # words that were there already, bool [S, V]; only for a repetition penalty


def texts_of(vocab: Vocab, ids: np.ndarray, log_probs: np.ndarray) -> list[Text]:
    """The text of each sample, from ids [n, S], -1 after a text's end, and their log-probabilities [n, S]."""
    samples = zip(ids.T, log_probs.T.astype(float), strict=True)
    return [
        Text(vocab.decode(one[one >= 0]), log_p[one >= 0], vocab.tokens) for one, log_p in samples
    ]


def drawn(
    network: Network,
    sampling: Sampling,
    prompt: np.ndarray,
    *,
    words: int | None,
    end: int,
    samples: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws S texts after a prompt's ids, all at once: the first word, then more and more words together.

    Texts have at most `words` words (None: no end), and end with the id `end` (-1: none). Yields words [n, S], -1 after
    a text's end, and their log-probabilities in nats [n, S]. Raises JaxlmError for a count below 1 or another seed.
    """
    checked_value("words", words, int, low=1, optional=True)
    checked_value("samples", samples, int, low=1)
    seed = checked_value("seed", seed, int, low=0, high=2**63 - 1)
    key = jax.random.key(seed % 2**32)
    high = seed >> 32  # JAX itself takes 32 bits
    key = jax.random.fold_in(key, high) if high else key
    position = begin(network, sampling, prompt, samples)
    count = 1
    left = math.inf if words is None else words
    while left > 0 and not bool(position.done.all()):
        count = int(min(count, left))
        position, tokens, log_probs = advance(
            network, sampling, position, key, jnp.int32(count), jnp.int32(end)
        )
        yield np.asarray(tokens)[:count], np.asarray(log_probs)[:count]
        left -= count
        count = min(2 * count, CHUNK)


def begin(network: Network, sampling: Sampling, ids: np.ndarray, samples: int) -> Position:
    """The position of S samples after the ids [n] of `<eos>` and a prompt; the last id is still to be read."""
    carry = carry_after(network, ids[:-1])
    seen = None
    if sampling.repetition_penalty is not None:
        seen = jnp.zeros((samples, network.model.vocab_size), bool).at[:, ids[1:]].set(True)
    carry = jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, 0), carry)
    return Position(
        carry, jnp.full(samples, ids[-1], jnp.int32), jnp.int32(0), jnp.zeros(samples, bool), seen
    )


def carry_after(network: Network, ids: np.ndarray) -> Carry:
    """The carry of one row after ids [N], from zero; few sizes are compiled."""
    room = max(READ, 1 << len(ids).bit_length())
    return _read(network, np.pad(ids, (0, room - len(ids))), len(ids))


@jax.jit
def _read(network, tokens, count):
    """The carry after the first `count` of tokens [N]."""

    def step(place, carry):
        return network.features(tokens[place, None, None], carry)[1]

    return lax.fori_loop(0, count, step, network.carry())


def next_word(network: Network, ids: np.ndarray) -> np.ndarray:
    """The probabilities [V] of the word after a text's ids [N], of which there is at least one."""
    return np.asarray(_next_word(network, ids[-1:], carry_after(network, ids[:-1]))[0])


def next_words(network: Network, vocab: Vocab, ids: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k most probable words after a text's ids [N], with their probabilities.

    Where tokens are pieces of words, a search, the likeliest first, among the pieces of all words; what is less
    probable than `UNLIKELY` is left out. The pieces that write one word, as found so far, are summed.
    """
    boundaries = Boundaries.of(vocab, "word")
    end = vocab.newline_id
    found: dict[str, float] = {}
    if boundaries is None or not boundaries.begins.any():
        p = next_word(network, ids)
        return [
            (vocab.words[place], float(p[place])) for place in np.argsort(-p, kind="stable")[:k]
        ]
    heap: list = [(-1.0, 0, [], carry_after(network, ids[:-1]))]
    while heap and len(found) < k:
        minus_p, _, pieces, carry = heappop(heap)
        if carry is None:
            word = vocab.decode_text(pieces).strip() or EOS
            found[word] = found.get(word, 0.0) - float(minus_p)
            continue
        last = pieces[-1] if pieces else int(ids[-1])
        p, after = _next_word(network, np.array([last], np.int32), carry)
        p = -minus_p * np.asarray(p, float)
        begins = boundaries.begins & (not boundaries.blank[last] and last != end)
        total = p[begins].sum()
        if pieces and total:
            heappush(heap, (-total, len(heap), pieces, None))
        p = (
            np.where(begins, 0, p)
            if pieces
            else np.where(begins, p, 0) / total
            if begins.any()
            else p
        )
        for piece in np.flatnonzero(p > UNLIKELY).tolist():
            heappush(
                heap, (-p[piece], len(heap), [*pieces, piece], None if piece == end else after)
            )
    return sorted(found.items(), key=lambda one: -one[1])


@jax.jit
def _next_word(network, token, carry):
    """The probabilities [V] of the word after `token` [1], and the carry after it."""
    logits, carry = next_logits(network, token, carry)
    return jax.nn.softmax(logits[0]), carry


def next_logits(network: Network, token: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """token [S] and the carry before it -> logits [S, V] of the next word, and the carry after the token."""
    features, carry = network.features(token[None], carry)
    return network.logits(features[0]), carry


@jax.jit
def advance(network, sampling, position, key, count, end):
    """Draws `count` words, at most CHUNK, for each of S samples; the word `end` ends a sample.

    Returns the new position; words [CHUNK, S], -1 where a sample has ended; and their log-probabilities [CHUNK, S].
    """
    S = len(position.token)
    keys = jax.vmap(lambda sample: jax.random.fold_in(key, sample))(jnp.arange(S))

    def unfinished(loop):
        place, position, _, _ = loop
        return (place < count) & ~position.done.all()

    def draw_word(loop):
        place, position, words, log_probs = loop
        logits, carry = next_logits(network, position.token, position.carry)
        uniform = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(one, position.step)))(
            keys
        )
        word, log_p = draw(sampling, logits, position.seen, uniform)
        seen = None if position.seen is None else position.seen.at[jnp.arange(S), word].set(True)
        new = Position(carry, word, position.step + 1, position.done | (word == end), seen)
        return (
            place + 1,
            new,
            words.at[place].set(jnp.where(position.done, -1, word)),
            log_probs.at[place].set(log_p),
        )

    start: Any = (0, position, jnp.full((CHUNK, S), -1, jnp.int32), jnp.zeros((CHUNK, S)))
    _, position, words, log_probs = lax.while_loop(unfinished, draw_word, start)
    return position, words, log_probs


def beam_search(
    network: Network,
    vocab: Vocab,
    sampling: Sampling,
    prompt: np.ndarray,
    *,
    words: int,
    beam: int,
    end: int,
) -> Text:
    """The most probable text of at most `words` words after a prompt's ids, `beam` texts kept at each word.

    No word that `sampling` bans comes. A text may end earlier with the id `end` (-1: none). Raises JaxlmError where a
    count is not at least 1, or the beam is wider than the vocabulary.
    """
    checked_value("beam", beam, int, low=1)
    if beam > len(vocab):
        raise JaxlmError(
            f"beam must be at most {len(vocab):,}, the words of the vocabulary; it is {beam}"
        )
    position = begin(network, Sampling(), prompt, beam)
    totals = np.where(np.arange(beam) == 0, 0, -np.inf).astype(
        np.float32
    )  # all begin alike: one goes on at first
    texts = np.zeros((beam, 0), np.int32)
    nats = np.zeros((beam, 0))
    while texts.shape[1] < words and not position.done.all():
        position, totals, parents, found = _extended(
            network, sampling.banned, position, totals, end
        )
        texts, nats = (
            np.column_stack([old[parents], new])
            for old, new in zip((texts, nats), found, strict=True)
        )
    return texts_of(vocab, texts.T, nats.T)[int(np.argmax(totals))]


@jax.jit
def _extended(network, banned, position, totals, end):
    """One word more of the B likeliest texts, which have log-probabilities `totals` [B] so far.

    Returns their new position and totals; of which text each is the continuation [B]; and the words [B], -1 for a text
    that had ended, with their log-probabilities [B].
    """
    B = len(totals)
    V = network.model.vocab_size
    logits, carry = next_logits(network, position.token, position.carry)
    log_p = jax.nn.log_softmax(logits)
    allowed = log_p if banned is None else jnp.where(banned, -jnp.inf, log_p)
    stay = jnp.where(
        jnp.arange(V) == 0, 0.0, -jnp.inf
    )  # a text that has ended goes on in one way only
    candidates = totals[:, None] + jnp.where(position.done[:, None], stay, allowed)
    totals, places = lax.top_k(candidates.reshape(-1), B)
    parents = places // V
    word = (places % V).astype(jnp.int32)
    ended = position.done[parents]
    carry = jax.tree.map(lambda leaf: leaf[parents], carry)
    found = jnp.where(ended, -1, word), jnp.where(ended, 0, log_p[parents, word])
    return (
        Position(carry, word, position.step + 1, ended | (word == end), None),
        totals,
        parents,
        found,
    )
