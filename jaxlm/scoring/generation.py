"""Text from a model: many samples in one compiled loop, or one without end; the state is the carry, however long it is.

The key of a word is the seed's, folded with its sample's number and its own, so that a sample is the same text alone
and among many, in one piece and as a stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring import sampling as sampled
from jaxlm.scoring.sampling import Sampling
from jaxlm.scoring.sentences import check_choice

CHUNK = 64  # words of one call, at most
READ = 256  # words of the prompt of one call, at most
STOPS = ("eos", "none")


@dataclass(frozen=True)
class Text:
    """What was generated after a prompt.

    Attributes:
        words: with `<eos>` where a line ends.
        log_probs: nats of each word under the model itself, before temperature and the like, float [n].
    """

    words: list[str]
    log_probs: np.ndarray

    def __str__(self) -> str:
        """The words with spaces between, and a newline for `<eos>`."""
        lines = " ".join("\n" if word == EOS else word for word in self.words)
        return lines.replace(" \n", "\n").replace("\n ", "\n")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Position:
    """Where S samples stand; its size does not grow with their text."""

    carry: Carry  # before `token`
    token: jax.Array  # the last word of each, which is read next, [S]
    step: jax.Array  # words drawn
    done: jax.Array  # which have ended, [S]
    seen: jax.Array | None  # words that were there already, bool [S, V]; only for a repetition penalty


def prompt_ids(vocab: Vocab, words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The ids [n + 1] that are read before the first word is drawn, `<eos>` first; and the prompt's unknown words."""
    if EOS not in vocab.ids:
        raise DataError(f"the vocabulary has no {EOS}, and the first word is predicted from it")
    unknown = list(dict.fromkeys(word for word in words if word not in vocab.ids))
    return np.concatenate([[vocab.eos], vocab.encode(words)]).astype(np.int32), unknown


def banned_words(vocab: Vocab, words: Iterable[str] = (), no_unk: bool = False) -> jax.Array | None:
    """Which words are never drawn, bool [V]; None where all may be. Raises JaxlmError where none would be left."""
    words = [*words, *([UNK] if no_unk and UNK in vocab.ids else [])]
    if not words:
        return None
    if unknown := [word for word in words if word not in vocab.ids]:
        raise JaxlmError(f"the banned word {unknown[0]!r} is not among the {len(vocab):,} words of the vocabulary")
    mask = np.zeros(len(vocab), bool)
    mask[[vocab.ids[word] for word in words]] = True
    if mask.all():
        raise JaxlmError("every word of the vocabulary is banned: leave at least one")
    return jnp.asarray(mask)


def generate(
    model: Recurrent,
    params: Params,
    vocab: Vocab,
    prompt: Sequence[str],
    sampling: Sampling,
    *,
    words: int,
    samples: int = 1,
    seed: int = 0,
    stop: str = "none",
) -> list[Text]:
    """Samples texts, all at once.

    Args:
        model: the config's model.
        params: its parameters.
        vocab: the model's.
        prompt: words that come before.
        sampling: checked.
        words: most words of each text.
        samples: how many texts.
        seed: of all of them.
        stop: "eos" ends a text at its first `<eos>`, "none" goes on.

    Raises:
        JaxlmError: a count is not at least 1, or `stop` is something else.
    """
    _check_counts(words=words, samples=samples)
    check_choice("stop", stop, STOPS)
    ids, _ = prompt_ids(vocab, prompt)
    position, key = begin(model, params, sampling, ids, samples), _key(seed)
    tokens, log_probs, left = [], [], words
    while left and not bool(position.done.all()):
        count = min(CHUNK, left)
        position, found, log_p = advance(
            model, params, sampling, position, key, jnp.arange(samples), jnp.int32(count), _end(vocab, stop)
        )
        tokens.append(np.asarray(found)[:count])
        log_probs.append(np.asarray(log_p, np.float64)[:count])
        left -= count
    drawn, nats = np.concatenate(tokens), np.concatenate(log_probs)
    texts = []
    for sample in range(samples):
        length = int((drawn[:, sample] >= 0).sum())
        texts.append(Text(vocab.decode(drawn[:length, sample]), nats[:length, sample]))
    return texts


def stream(
    model: Recurrent,
    params: Params,
    vocab: Vocab,
    prompt: Sequence[str],
    sampling: Sampling,
    *,
    words: int | None = None,
    seed: int = 0,
    stop: str = "none",
) -> Iterator[tuple[str, float]]:
    """The words of the first sample of `generate` as they come, each with its log-probability in nats.

    Args:
        words: most words; None: without end.
        (the others): as `generate` takes them.
    """
    if words is not None:
        _check_counts(words=words)
    check_choice("stop", stop, STOPS)
    ids, _ = prompt_ids(vocab, prompt)
    return _stream(model, params, vocab, ids, sampling, words, _key(seed), _end(vocab, stop))


def _key(seed: int) -> jax.Array:
    """The key of a seed of 63 bits, of which JAX itself takes 32. Raises JaxlmError for any other seed."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise JaxlmError(f"seed must be a whole number from 0 to {2**63 - 1:,}; it is {str(seed)[:40]}")
    key, high = jax.random.key(int(seed) % 2**32), int(seed) >> 32
    return jax.random.fold_in(key, high) if high else key


def _stream(
    model: Recurrent,
    params: Params,
    vocab: Vocab,
    ids: np.ndarray,
    sampling: Sampling,
    words: int | None,
    key: jax.Array,
    end: jax.Array,
) -> Iterator[tuple[str, float]]:
    position, count, made = begin(model, params, sampling, ids, 1), 1, 0
    while (words is None or made < words) and not bool(position.done[0]):
        count = count if words is None else min(count, words - made)
        position, found, log_p = advance(model, params, sampling, position, key, jnp.arange(1), jnp.int32(count), end)
        drawn = np.asarray(found)[:count, 0]
        yield from zip(vocab.decode(drawn[drawn >= 0]), np.asarray(log_p)[:, 0].tolist(), strict=False)
        made += count
        count = min(2 * count, CHUNK)  # the first word at once, later ones in longer calls


def begin(model: Recurrent, params: Params, sampling: Sampling, ids: np.ndarray, samples: int) -> Position:
    """The position of S samples after the ids [n] of their prompt, of which the last is still to be read."""
    carry, read = stack.zero_carry(model, 1, params["embedding"].dtype), ids[:-1]
    for start in range(0, len(read), READ):
        part = read[start : start + READ]
        carry = _read(model, params, np.pad(part, (0, READ - len(part))), len(part), carry)
    seen = None
    if sampling.repetition_penalty is not None:
        seen = jnp.zeros((samples, model.vocab_size), bool).at[:, ids[1:]].set(True)
    carry = jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, 0), carry)
    return Position(carry, jnp.full(samples, ids[-1], jnp.int32), jnp.int32(0), jnp.zeros(samples, bool), seen)


@jax.jit
def _read(model, params, tokens, count, carry):
    """The carry after the first `count` of tokens [N]."""

    def step(place, carry):
        return _next(model, params, tokens[place, None], carry)[1]

    return lax.fori_loop(0, count, step, carry)


def _next(model: Recurrent, params: Params, token: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """token [S] and the carry before it -> features [S, H] and the carry after it."""
    x = stack.embed(params, token[None])
    features, carry = stack.features(stack.exact(model), params, no_noise(model), x, carry)
    return features[0], carry


def next_logits(model: Recurrent, params: Params, token: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """token [S] and the carry before it -> logits [S, V] of the next word, and the carry after the token."""
    features, carry = _next(model, params, token, carry)
    return heads.logits(model, params, features), carry


@jax.jit
def advance(
    model: Recurrent,
    params: Params,
    sampling: Sampling,
    position: Position,
    key: jax.Array,
    lanes: jax.Array,
    count: jax.Array,
    end: jax.Array,
) -> tuple[Position, jax.Array, jax.Array]:
    """Draws `count` words, at most CHUNK, for each of S samples.

    Args:
        model: the config's model.
        params: its parameters.
        sampling: checked.
        position: of the samples.
        key: of the seed.
        lanes: the number of each sample, [S].
        count: how many words.
        end: the word that ends a sample; -1: none.

    Returns:
        The new position; words [CHUNK, S], -1 where a sample has ended; and their log-probabilities [CHUNK, S].
    """
    S = len(lanes)
    keys = jax.vmap(lambda lane: jax.random.fold_in(key, lane))(lanes)

    def unfinished(loop):
        place, position, _, _ = loop
        return (place < count) & ~position.done.all()

    def draw_word(loop):
        place, position, words, log_probs = loop
        logits, carry = next_logits(model, params, position.token, position.carry)
        uniform = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(one, position.step)))(keys)
        word, log_p = sampled.draw(sampling, logits, position.seen, uniform)
        seen = None if position.seen is None else position.seen.at[jnp.arange(S), word].set(True)
        new = Position(carry, word, position.step + 1, position.done | (word == end), seen)
        return (place + 1, new, words.at[place].set(jnp.where(position.done, -1, word)), log_probs.at[place].set(log_p))

    start: Any = (0, position, jnp.full((CHUNK, S), -1, jnp.int32), jnp.zeros((CHUNK, S)))
    _, position, words, log_probs = lax.while_loop(unfinished, draw_word, start)
    return position, words, log_probs


def _end(vocab: Vocab, stop: str) -> jax.Array:
    return jnp.int32(vocab.eos if stop == "eos" else -1)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise JaxlmError(f"{name} must be at least 1; it is {value}")
