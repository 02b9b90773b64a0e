"""Text from a model: samples in one compiled loop, or token by token without end.

The state has a fixed size. The key of a word is the seed's, folded with the sample's number and the
word's, so that a sample is the same text alone and among many, in one piece and as a stream.

Letters: `S` samples, `n` tokens, `V` vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked_value
from jaxlm.data.tokens import WORDS, Words
from jaxlm.data.vocab import Vocab
from jaxlm.models.stack import Carry
from jaxlm.scoring.beam_search import beam_search
from jaxlm.scoring.model import Model
from jaxlm.scoring.next_token import carry_after, next_logits, repeated
from jaxlm.scoring.sampling import Sampling, draw, sampling_of
from jaxlm.scoring.sentences import Boundaries, Sentence
from jaxlm.scoring.token_scores import Network

CHUNK = 64  # tokens of one call, at most
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
        ended: Which samples have ended, bool [S].
        seen: Which tokens each text has already, bool [S, V]; only for a repetition penalty.
    """

    carry: Carry
    token: Array
    step: Array
    ended: Array
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
        beam: In place of sampling, search for the most probable text, keeping this many at each
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
        chunks = _sampled(model.network, task, samples, seed)
        return texts_of(model.vocab, *map(np.concatenate, zip(*chunks, strict=True)))
    _check_nothing_drawn(samples=samples, seed=seed, **sampling)
    if task.boundaries is not None:
        raise JaxlmError("beam counts tokens: give tokens in place of words")
    words_known = len(model.vocab)
    checked_value("beam", beam, int, low=1)
    if beam > words_known:
        raise JaxlmError(
            f"beam must be at most {words_known:,}, the words of the vocabulary; it is {beam}"
        )
    ids, log_probs = beam_search(
        model.network, task.prompt, task.tokens or 0, beam, task.end, task.sampling.banned
    )
    return texts_of(model.vocab, ids[:, None], log_probs[:, None])


def _check_nothing_drawn(**options: Any) -> None:
    """Raises JaxlmError where an option of sampling stands beside a beam."""
    neutral = {"samples": 1, "seed": 0, "temperature": 1.0}
    for name, value in options.items():
        if name not in ("ban", "no_unk") and value != neutral.get(name):
            raise JaxlmError(
                "beam searches for the most probable text and draws nothing, and "
                f"{name} is given: leave one out"
            )


def stream(
    model: Model,
    prompt: Sentence = (),
    *,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[str, float]]:
    """The first text of `generate`, token by token.

    Args:
        model: The model.
        prompt: A text or words.
        seed: Seed of the text.
        **options: Those of `generate` but `samples` and `beam`. Without `words` and `tokens` the
            text has no end.

    Returns:
        An iterator of each token and its log-probability in nats.

    Raises:
        JaxlmError: As `generate`, before the first token is drawn.
    """
    task = _task_of(model, prompt, **options)
    return _named_tokens(model.vocab, _sampled(model.network, task, 1, seed))


def _named_tokens(vocab: Vocab, chunks: Iterable[Chunk]) -> Iterator[tuple[str, float]]:
    """The name and log-probability of each token of a single text."""
    for ids, log_probs in chunks:
        for token, log_p in zip(ids[:, 0].tolist(), log_probs[:, 0].tolist(), strict=True):
            if token >= 0:
                yield vocab.words[token], log_p


class _Task(NamedTuple):
    """What a text begins with, how its tokens are drawn, and where it ends.

    Attributes:
        sampling: How tokens are drawn.
        prompt: Ids of `<eos>` and the prompt.
        words: Most words of a text, where they are counted; None: no end.
        tokens: Most tokens of a text; None: no end.
        boundaries: Where pieces make up words, if `words` counts words of pieces.
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
    words: int | None = None,
    tokens: int | None = None,
    stop: str = "none",
    ban: Iterable[str] = (),
    **numbers: Any,
) -> _Task:
    """The task of a call of `generate` or `stream`. Raises JaxlmError."""
    vocab = model.vocab
    checked_value("tokens", tokens, int, low=1, optional=True)
    boundaries = None
    if words is not None:
        checked_value("words", words, int, low=1)
        if tokens is not None:
            raise JaxlmError("a text has so many words or so many tokens: leave one out")
        boundaries = Boundaries.within_words(vocab)
        tokens = words if boundaries is None else words * LONGEST_WORD
    checked_value("stop", stop, str, choices=("eos", "none"))
    if stop == "eos" and vocab.newline_id < 0:
        raise JaxlmError(
            "stop eos ends a text at a newline, and this model's training text had none: "
            "leave it out"
        )
    ban = [ban] if isinstance(ban, str) else ban
    sampling = sampling_of(vocab, ban=map(model.as_known, ban), **numbers)
    ids = model.encoded(model.tokens(prompt), "unk", "the prompt", blank=True).ids[:-1]
    end = vocab.eos if stop == "eos" else -1
    return _Task(sampling, ids, words, tokens, boundaries, end)


def _sampled(
    network: Network,
    task: _Task,
    samples: int,
    seed: int,
) -> Iterator[Chunk]:
    """Samples of a task. Raises JaxlmError before the first token is drawn."""
    checked_value("samples", samples, int, low=1)
    seed = checked_value("seed", seed, int, low=0, high=2**63 - 1)
    key = jax.random.key(seed % 2**32)
    high_bits = seed >> 32  # JAX itself takes 32 bits
    if high_bits:
        key = jax.random.fold_in(key, high_bits)
    chunks = _chunks(network, task, begin(network, task.sampling, task.prompt, samples), key)
    if task.words is None or task.boundaries is None:
        return chunks
    return first_words(chunks, task.boundaries, int(task.prompt[-1]), task.words)


def _chunks(
    network: Network,
    task: _Task,
    position: Position,
    key: Array,
) -> Iterator[Chunk]:
    """Continues all samples at once: by one token, then by more and more tokens a call."""
    count = 1
    tokens_left = math.inf if task.tokens is None else task.tokens
    while tokens_left > 0 and not bool(position.ended.all()):
        count = int(min(count, tokens_left))
        position, ids, log_probs = advance(
            network, task.sampling, position, key, jnp.int32(count), jnp.int32(task.end)
        )
        yield np.asarray(ids)[:count], np.asarray(log_probs)[:count]
        tokens_left -= count
        count = min(2 * count, CHUNK)


def first_words(
    chunks: Iterable[Chunk],
    boundaries: Boundaries,
    last: int,
    words: int,
) -> Iterator[Chunk]:
    """Cuts texts, whose tokens are pieces of words, after a number of words.

    Args:
        chunks: The texts, as `_chunks` yields them.
        boundaries: Where pieces make up words.
        last: The last id of the prompt, whose word a text may continue.
        words: Most words of a text.
    """
    words_so_far = np.zeros(1, int)
    previous_token = np.array([last])
    must_begin = boundaries.blank[previous_token]  # after white space the first token begins a word
    for tokens, log_probs in chunks:
        first_previous = np.broadcast_to(previous_token, tokens[:1].shape)
        previous = np.vstack([first_previous, tokens[:-1]])
        begins = boundaries.begins[tokens] & ~boundaries.blank[previous]
        begins[0] |= must_begin
        must_begin = False
        counts = words_so_far + np.cumsum(begins, 0)
        yield np.where(counts > words, -1, tokens), log_probs
        previous_token = tokens[-1:]
        words_so_far = counts[-1]
        if (words_so_far > words).all():
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
    carry = repeated(carry_after(network, ids[:-1]), samples)
    seen = None
    if sampling.repetition_penalty is not None:
        seen = jnp.zeros((samples, network.model.vocab_size), bool).at[:, ids[1:]].set(True)
    token = jnp.asarray(np.full(samples, ids[-1], np.int32))
    ended = jnp.asarray(np.zeros(samples, bool))
    return Position(carry, token, jnp.int32(0), ended, seen)


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
        return (place < count) & ~position.ended.all()

    def draw_token(loop):
        place, position, tokens, log_probs = loop
        logits, carry = next_logits(network, position.token, position.carry)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, position.step))(keys)
        uniform = jax.vmap(jax.random.uniform)(step_keys)
        token, log_p = draw(sampling, logits, position.seen, uniform)
        seen = position.seen
        if seen is not None:
            seen = seen.at[jnp.arange(S), token].set(True)
        ended = position.ended | (token == end)
        after = Position(carry, token, position.step + 1, ended, seen)
        tokens = tokens.at[place].set(jnp.where(position.ended, -1, token))
        return place + 1, after, tokens, log_probs.at[place].set(log_p)

    tokens = jnp.full((CHUNK, S), -1, jnp.int32)
    start: Any = (0, position, tokens, jnp.zeros((CHUNK, S)))
    _, position, tokens, log_probs = lax.while_loop(unfinished, draw_token, start)
    return position, tokens, log_probs
