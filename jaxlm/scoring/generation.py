"""Text from a model: samples in one compiled loop or without end, or by beam search.

The state has a fixed size. The key of a word is the seed's, folded with the sample's number and the
word's, so that a sample is the same text alone and among many, in one piece and as a stream.

Letters: `S` samples, `n` tokens, `B` texts of a beam, `V` vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import checked_value
from jaxlm.data.tokens import EOS, WORDS, Words
from jaxlm.data.vocab import Vocab
from jaxlm.models.stack import Carry
from jaxlm.scoring.sampling import Sampling, draw, sampling_of
from jaxlm.scoring.sentences import Boundaries, Sentence
from jaxlm.scoring.token_scores import Model, Network

CHUNK = 64  # tokens of one call, at most
READ = 256  # least tokens of a program that reads a prompt
UNLIKELY = 1e-7  # a probability that no likely word has
LONGEST_WORD = 256  # most tokens of a word, where words of pieces are counted

# Tokens [n, S] of S texts, -1 after a text's end, and their log-probabilities in nats [n, S].
Chunk = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, repr=False, eq=False)
class Text:
    """What was generated after a prompt. Two texts are equal only if they are one object.

    Attributes:
        words: The words, with `<eos>` where a line ends; or the names of characters, bytes or
            subwords.
        log_probs: Log-probability in nats of each under the model itself, before temperature and
            the like, float [n].
        tokens: The kind of token.
    """

    words: list[str]
    log_probs: np.ndarray
    tokens: Words = WORDS

    def __str__(self) -> str:
        """The text: words with spaces between and a newline for `<eos>`; other tokens exactly."""
        return "".join(self.tokens.pieces(self.words))

    def __repr__(self) -> str:
        size = f"{len(self.words):,} {self.tokens.kind}, {-self.log_probs.sum():.2f} nats"
        return f"Text({size}: {str(self)[:60]!r})"


class Position(NamedTuple):
    """The state of S samples; its size does not grow with their text.

    Attributes:
        carry: The carry before `token`.
        token: The last token of each, which is read next, int32 [S].
        step: How many tokens were drawn.
        done: Which samples have ended, bool [S].
        seen: Tokens that were there already, bool [S, V]; only for a repetition penalty.
    """

    carry: Carry
    token: Array
    step: Array
    done: Array
    seen: Array | None


def texts_of(
    vocab: Vocab,
    ids: np.ndarray,
    log_probs: np.ndarray,
) -> list[Text]:
    """The text of each sample.

    Args:
        vocab: The tokens.
        ids: Tokens [n, S], -1 after a text's end.
        log_probs: Their log-probabilities [n, S].
    """
    samples = zip(ids.T, log_probs.T.astype(float), strict=True)
    return [
        Text(vocab.decode(text[text >= 0]), log_p[text >= 0], vocab.tokens)
        for text, log_p in samples
    ]


def generate(
    model: Model,
    prompt: Sentence = (),
    *,
    words: int | None = None,
    tokens: int | None = None,
    samples: int = 1,
    seed: int = 0,
    stop: str = "none",
    beam: int | None = None,
    **sampling: Any,
) -> list[Text]:
    """Texts that continue a prompt, all in one compiled loop.

    Args:
        model: The model.
        prompt: A text or words; unknown words are read as `<unk>`.
        words: Most words of each text, also where tokens are pieces of words.
        tokens: Most tokens of each text, in place of `words` (default: 100).
        samples: How many texts.
        seed: Of all texts: a sample is the same alone and among many.
        stop: "eos" ends a text at its first `<eos>`; "none" does not.
        beam: In place of sampling, search for the most probable text, keeping so many at each
            token.
        **sampling: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` of `Sampling`;
            `ban`, words that never come; `no_unk`, so that `<unk>` never comes.

    Raises:
        JaxlmError: A number is outside its limits, options contradict each other, or a banned word
            is unknown.

    >>> import jaxlm
    >>> lm = jaxlm.load("runs/tiny")
    >>> texts = lm.generate("the bank", words=5, samples=2, top_p=0.9, ban=["<eos>"])
    >>> [len(text.words) for text in texts], texts[0].log_probs.shape
    ([5, 5], (5,))
    >>> alone, (first, *_) = lm.generate("a", words=5), lm.generate("a", words=5, samples=3)
    >>> str(alone[0]) == str(first)
    True
    """
    if words is None and tokens is None:
        tokens = 100
    task = _task_of(model, prompt, words, tokens, stop, **sampling)
    if beam is None:
        chunks = _drawn(model, task, samples, seed)
        return texts_of(model.vocab, *map(np.concatenate, zip(*chunks, strict=True)))
    neutral = {"samples": 1, "seed": 0, "temperature": 1.0}
    for name, value in {"samples": samples, "seed": seed, **sampling}.items():
        if name not in ("ban", "no_unk") and value != neutral.get(name):
            raise JaxlmError(
                "beam searches for the most probable text and draws nothing, and "
                f"{name} is given: leave one out"
            )
    if task.boundaries is not None:
        raise JaxlmError("beam counts tokens: give tokens in place of words")
    return [beam_search(model, task, beam)]


def stream(
    model: Model,
    prompt: Sentence = (),
    *,
    words: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    stop: str = "none",
    **sampling: Any,
) -> Iterator[tuple[str, float]]:
    """The first text of `generate`, token by token.

    Args:
        model: The model.
        prompt: A text or words.
        words: Most words of the text.
        tokens: Most tokens of the text; without both it has no end.
        seed: Seed of the text.
        stop: "eos" ends the text at its first `<eos>`; "none" does not.
        **sampling: As `generate` takes it.

    Returns:
        An iterator of each token and its log-probability in nats.

    Raises:
        JaxlmError: As `generate`, before the first token is drawn.
    """
    task = _task_of(model, prompt, words, tokens, stop, **sampling)
    chunks = _drawn(model, task, 1, seed)
    return (
        (model.vocab.words[token], log_p)
        for ids, log_probs in chunks
        for token, log_p in zip(ids[:, 0].tolist(), log_probs[:, 0].tolist(), strict=True)
        if token >= 0
    )


class _Task(NamedTuple):
    """What is to be written.

    Attributes:
        sampling: How tokens are drawn.
        prompt: Ids of `<eos>` and the prompt.
        words: Most words of a text, where these are counted; None: no end.
        tokens: Most tokens of a text; None: no end.
        boundaries: Where pieces make up words, where `words` counts them.
        end: Id that ends a text; -1: none.
    """

    sampling: Sampling
    prompt: np.ndarray
    words: int | None
    tokens: int | None
    boundaries: Boundaries | None
    end: int


def _task_of(
    model: Model,
    prompt: Sentence,
    words: int | None,
    tokens: int | None,
    stop: str,
    ban: Iterable[str] = (),
    **options: Any,
) -> _Task:
    """The task of a call. Raises JaxlmError."""
    vocab = model.vocab
    checked_value("tokens", tokens, int, low=1, optional=True)
    boundaries = None
    if words is not None:
        checked_value("words", words, int, low=1)
        if tokens is not None:
            raise JaxlmError("a text has so many words or so many tokens: leave one out")
        tokens = words
        boundaries = Boundaries.of(vocab, "word")
        if boundaries is not None and boundaries.begins.any():
            tokens = words * LONGEST_WORD
        else:
            boundaries = None
    checked_value("stop", stop, str, choices=("eos", "none"))
    if stop == "eos" and vocab.newline_id < 0:
        raise JaxlmError(
            "stop eos ends a text at a newline, and this model's training text had none: "
            "leave it out"
        )
    ban = [ban] if isinstance(ban, str) else ban
    sampling = sampling_of(vocab, ban=map(model.as_known, ban), **options)
    ids = model.encoded(model.tokens(prompt), "unk", "the prompt", blank=True).ids[:-1]
    end = vocab.eos if stop == "eos" else -1
    return _Task(sampling, ids, words, tokens, boundaries, end)


def _drawn(model: Model, task: _Task, samples: int, seed: int) -> Iterator[Chunk]:
    """Texts of a task. Raises JaxlmError before the first token is drawn."""
    checked_value("samples", samples, int, low=1)
    seed = checked_value("seed", seed, int, low=0, high=2**63 - 1)
    key = jax.random.key(seed % 2**32)
    high = seed >> 32  # JAX itself takes 32 bits
    if high:
        key = jax.random.fold_in(key, high)
    position = begin(model.network, task.sampling, task.prompt, samples)
    chunks = _advanced(model.network, task, position, key)
    if task.words is None or task.boundaries is None:
        return chunks
    return first_words(chunks, task.boundaries, int(task.prompt[-1]), task.words)


def _advanced(network: Network, task: _Task, position: Position, key: Array) -> Iterator[Chunk]:
    """Texts from a position on, all at once: one token of each, then more and more together."""
    count = 1
    left = math.inf if task.tokens is None else task.tokens
    while left > 0 and not bool(position.done.all()):
        count = int(min(count, left))
        position, ids, log_probs = advance(
            network, task.sampling, position, key, jnp.int32(count), jnp.int32(task.end)
        )
        yield np.asarray(ids)[:count], np.asarray(log_probs)[:count]
        left -= count
        count = min(2 * count, CHUNK)


def first_words(
    chunks: Iterable[Chunk],
    boundaries: Boundaries,
    last: int,
    words: int,
) -> Iterator[Chunk]:
    """Texts whose tokens are pieces of words, each cut before the word after the first so many.

    Args:
        chunks: The texts, as `_advanced` yields them.
        boundaries: Where pieces make up words.
        last: The last id of the prompt, whose word a text may continue.
        words: Most words of a text.
    """
    count = np.zeros(1, int)
    before = np.array([last])
    begun = boundaries.blank[before]  # after white space the first token begins a word
    for tokens, log_probs in chunks:
        previous = np.vstack([np.broadcast_to(before, tokens[:1].shape), tokens[:-1]])
        begins = boundaries.begins[tokens] & ~boundaries.blank[previous]
        begins[0] |= begun
        begun = False
        counts = count + np.cumsum(begins, 0)
        yield np.where(counts > words, -1, tokens), log_probs
        before = tokens[-1:]
        count = counts[-1]
        if (count > words).all():
            return


def begin(
    network: Network,
    sampling: Sampling,
    ids: np.ndarray,
    samples: int,
) -> Position:
    """The position of some samples after a prompt, whose last id is still to be read.

    Args:
        network: The model.
        sampling: How tokens are drawn.
        ids: Ids [n] of `<eos>` and the prompt.
        samples: Texts S.
    """
    # By NumPy: JAX would compile a program for each shape of the carry.
    carry = jax.tree.map(
        lambda leaf: jnp.asarray(np.repeat(leaf, samples, 0)), carry_after(network, ids[:-1])
    )
    seen = None
    if sampling.repetition_penalty is not None:
        seen = jnp.zeros((samples, network.model.vocab_size), bool).at[:, ids[1:]].set(True)
    token = jnp.asarray(np.full(samples, ids[-1], np.int32))
    ended = jnp.asarray(np.zeros(samples, bool))
    return Position(carry, token, jnp.int32(0), ended, seen)


def carry_after(network: Network, ids: np.ndarray) -> Carry:
    """The carry of one row after some tokens, from zero; few sizes are compiled.

    Args:
        network: The model.
        ids: Ids [n].
    """
    room = max(READ, 1 << len(ids).bit_length())
    return _read(network, np.pad(ids, (0, room - len(ids))), len(ids))


@jax.jit
def _read(
    network,
    tokens,
    count,
):
    """The carry after the first `count` of tokens [n]."""

    def step(place, carry):
        return network.features(tokens[place, None, None], carry)[1]

    return lax.fori_loop(0, count, step, network.carry())


def next_word(network: Network, ids: np.ndarray) -> np.ndarray:
    """The probabilities [V] of the token after a text.

    Args:
        network: The model.
        ids: Ids [n] of the text, n >= 1.
    """
    return np.asarray(_next_word(network, ids[-1:], carry_after(network, ids[:-1]))[0])


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
    boundaries = Boundaries.of(vocab, "word")
    if boundaries is not None and boundaries.begins.any():
        return _next_words_of_pieces(model.network, vocab, boundaries, ids, k)
    p = next_word(model.network, ids)
    likeliest = np.argsort(-p, kind="stable")[:k]
    return [(vocab.words[place], float(p[place])) for place in likeliest]


class _Beginning(NamedTuple):
    """Pieces that a word begins with, or a whole word; the likeliest comes first in a heap."""

    minus_p: float
    number: int  # that no two have
    pieces: list[int]
    carry: Carry | None  # before the last piece; None: the word is whole


def _next_words_of_pieces(
    network: Network,
    vocab: Vocab,
    boundaries: Boundaries,
    ids: np.ndarray,
    k: int,
) -> list[tuple[str, float]]:
    """`predict` by a search, the likeliest first, among the pieces of all words.

    What is less probable than `UNLIKELY` is left out. The pieces that write one word, as found so
    far, are summed.
    """
    end = vocab.newline_id
    words: dict[str, float] = {}
    heap = [_Beginning(-1.0, 0, [], carry_after(network, ids[:-1]))]
    while heap and len(words) < k:
        minus_p, _, pieces, carry = heappop(heap)
        if carry is None:
            word = vocab.decode_text(pieces).strip() or EOS
            words[word] = words.get(word, 0.0) - float(minus_p)
            continue
        last = pieces[-1] if pieces else int(ids[-1])
        p, after = _next_word(network, np.array([last], np.int32), carry)
        p = -minus_p * np.asarray(p, float)
        begins = boundaries.begins & (not boundaries.blank[last] and last != end)
        total = p[begins].sum()
        if pieces:
            if total:
                heappush(heap, _Beginning(-total, len(heap), pieces, None))
            p = np.where(begins, 0, p)  # the word goes on
        elif begins.any():
            p = np.where(begins, p, 0) / total  # the word begins
        for piece in np.flatnonzero(p > UNLIKELY).tolist():
            carry = None if piece == end else after
            heappush(heap, _Beginning(-p[piece], len(heap), [*pieces, piece], carry))
    return sorted(words.items(), key=lambda word: -word[1])


@jax.jit
def _next_word(
    network,
    token,
    carry,
):
    """The probabilities [V] of the token after `token` [1], and the carry after it."""
    logits, carry = next_logits(network, token, carry)
    return jax.nn.softmax(logits[0]), carry


def next_logits(
    network: Network,
    token: Array,
    carry: Carry,
) -> tuple[Array, Carry]:
    """Reads one token of each text.

    Args:
        network: The model.
        token: Ids, int32 [S].
        carry: The carry before them.

    Returns:
        Logits [S, V] of the next token, and the carry after `token`.
    """
    features, carry = network.features(token[None], carry)
    return network.logits(features[0]), carry


@jax.jit
def advance(
    network,
    sampling,
    position,
    key,
    count,
    end,
):
    """Draws tokens for each of S samples.

    Args:
        network: The model.
        sampling: How tokens are drawn.
        position: The state of the samples.
        key: The key of all texts.
        count: How many tokens, at most CHUNK.
        end: Id that ends a sample; -1: none.

    Returns:
        The new position; tokens [CHUNK, S], -1 where a sample has ended; and their
        log-probabilities [CHUNK, S].
    """
    S = len(position.token)
    keys = jax.vmap(lambda sample: jax.random.fold_in(key, sample))(jnp.arange(S))

    def unfinished(loop):
        place, position, _, _ = loop
        return (place < count) & ~position.done.all()

    def draw_token(loop):
        place, position, tokens, log_probs = loop
        logits, carry = next_logits(network, position.token, position.carry)
        of_step = jax.vmap(lambda key: jax.random.fold_in(key, position.step))(keys)
        token, log_p = draw(sampling, logits, position.seen, jax.vmap(jax.random.uniform)(of_step))
        seen = position.seen
        if seen is not None:
            seen = seen.at[jnp.arange(S), token].set(True)
        new = Position(carry, token, position.step + 1, position.done | (token == end), seen)
        tokens = tokens.at[place].set(jnp.where(position.done, -1, token))
        return place + 1, new, tokens, log_probs.at[place].set(log_p)

    tokens = jnp.full((CHUNK, S), -1, jnp.int32)
    start: Any = (0, position, tokens, jnp.zeros((CHUNK, S)))
    _, position, tokens, log_probs = lax.while_loop(unfinished, draw_token, start)
    return position, tokens, log_probs


def beam_search(model: Model, task: _Task, beam: int) -> Text:
    """The most probable text of a task, without the words that its sampling bans.

    Args:
        model: The model.
        task: The task, with an end.
        beam: Texts B that are kept at each token.

    Raises:
        JaxlmError: The beam is not at least 1, or wider than the vocabulary.
    """
    network = model.network
    vocab = model.vocab
    checked_value("beam", beam, int, low=1)
    if beam > len(vocab):
        raise JaxlmError(
            f"beam must be at most {len(vocab):,}, the words of the vocabulary; it is {beam}"
        )
    position = begin(network, Sampling(), task.prompt, beam)
    # All texts begin alike: one goes on at first.
    totals = np.where(np.arange(beam) == 0, 0, -np.inf).astype(np.float32)
    texts = np.zeros((beam, 0), np.int32)
    log_probs = np.zeros((beam, 0))
    while texts.shape[1] < (task.tokens or 0) and not position.done.all():
        position, totals, parents, ids, log_p = _extended(
            network, task.sampling.banned, position, totals, task.end
        )
        texts = np.column_stack([texts[parents], ids])
        log_probs = np.column_stack([log_probs[parents], log_p])
    return texts_of(vocab, texts.T, log_probs.T)[int(np.argmax(totals))]


@jax.jit
def _extended(
    network,
    banned,
    position,
    totals,
    end,
):
    """One token more of the B likeliest texts, which have log-probabilities `totals` [B] so far.

    Returns their new position and totals; of which text each is the continuation [B]; the tokens
    [B], -1 for a text that had ended; and their log-probabilities [B].
    """
    B = len(totals)
    V = network.model.vocab_size
    logits, carry = next_logits(network, position.token, position.carry)
    log_p = jax.nn.log_softmax(logits)
    allowed = log_p if banned is None else jnp.where(banned, -jnp.inf, log_p)
    # A text that has ended goes on in one way only.
    ended_log_p = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf)
    candidates = totals[:, None] + jnp.where(position.done[:, None], ended_log_p, allowed)
    totals, places = lax.top_k(candidates.reshape(-1), B)
    parents = places // V
    token = (places % V).astype(jnp.int32)
    ended = position.done[parents]
    carry = jax.tree.map(lambda leaf: leaf[parents], carry)
    position = Position(carry, token, position.step + 1, ended | (token == end), None)
    ids = jnp.where(ended, -1, token)
    return position, totals, parents, ids, jnp.where(ended, 0, log_p[parents, token])
