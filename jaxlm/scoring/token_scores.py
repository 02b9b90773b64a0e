"""What a model gives each token of a text: nats, entropy, rank and likelier words, without ever holding [T * B, V].

Letters: `N` tokens, `K` likeliest words, `T` steps, `B` batch, `R` rows of features, `H` their width, `V` vocabulary.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry

LONGEST = 256  # steps of one call on one text; a longer one takes several, the carry passed on
STEPS = 8  # of one call on sentences side by side: few, so that little is read beyond the longest
BATCHES = (1, 8, 64)  # sentences of one call
CHUNKS = (1, 8)  # of one call
NEAR = 20.0  # a sum of odds within exp(+-NEAR) loses no digit of the entropy
CALLS = 2  # that run at once: parts of a program use one core
ROWS, ACCELERATOR_ROWS = 128, 1024  # of a chunk, whose logits [R, V] exist at a time; on CPU they stay in the cache

Columns = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]  # the attributes of TokenScores, in their order


@dataclass(frozen=True)
class TokenScores:
    """Of each of N tokens, given those before it.

    Attributes:
        nats: -log p of the token, float32 [N].
        entropy: of the distribution that predicts it, in nats, float32 [N].
        rank: 1 where no word is more probable, int32 [N].
        top: ids of the K most probable words, int32 [N, K].
        top_nats: their -log p, float32 [N, K].
    """

    nats: np.ndarray
    entropy: np.ndarray
    rank: np.ndarray
    top: np.ndarray
    top_nats: np.ndarray

    @staticmethod
    def joined(parts: Sequence["TokenScores"]) -> "TokenScores":
        """One after the other."""
        return TokenScores(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in TokenScores.__dataclass_fields__)
        )


class Scoring(Protocol):
    """A way to turn sentences into scores; what it remembers between calls is its own matter."""

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        """Scores every token but the first of each sentence, one after the other.

        Args:
            sentences: ids, each [n + 1] with n >= 1; the first token is what the second is predicted from.
        """
        ...


@dataclass(frozen=True)
class BySentence:
    """Each sentence from a carry of zeros; sentences of about one length are read together.

    Attributes:
        model: the config's model.
        params: its parameters.
        top: how many likeliest words K to find.
        full: whether to find more than the nats: entropy and rank are else zero.
    """

    model: Recurrent
    params: Params
    top: int = 0
    full: bool = True

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        rows: list[np.ndarray] = [np.empty(0)] * len(sentences)
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        batches = [order[start : start + BATCHES[-1]] for start in range(0, len(order), BATCHES[-1])]
        found = _calls(
            lambda places: _read(self.model, self.params, [sentences[place][:-1] for place in places]), batches
        )
        for place, row in zip(order, (row for batch in found for row in batch), strict=True):
            rows[place] = row
        return score_rows(self.model, self.params, rows, [sentence[1:] for sentence in sentences], self.top, self.full)


class Streamed:
    """The carry is passed on from each sentence to the next, as in evaluation; one sentence is read after the other."""

    def __init__(self, model: Recurrent, params: Params, top: int = 0, full: bool = True):
        self._model, self._params, self._top, self._full = model, params, top, full
        self._carry = stack.zero_carry(model, 1, params["embedding"].dtype)

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        ids = np.concatenate([sentence[:-1] for sentence in sentences])
        rows, self._carry = read_on(self._model, self._params, ids, self._carry)
        return score_rows(
            self._model, self._params, [rows], [sentence[1:] for sentence in sentences], self._top, self._full
        )


def read_on(model: Recurrent, params: Params, ids: np.ndarray, carry: Carry) -> tuple[np.ndarray, Carry]:
    """Features [N, H] of one text's ids [N], and the carry after the last; no padding is ever read into the carry."""
    rows, done = [], 0
    while done < len(ids):
        length = min(LONGEST, 1 << ((len(ids) - done).bit_length() - 1))  # 45 tokens are read as 32, 8, 4 and 1
        features, carry = _features(model, params, ids[done : done + length, None], carry)
        rows.append(np.asarray(features)[:, 0])
        done += length
    return np.concatenate(rows), carry


def score_rows(
    model: Recurrent,
    params: Params,
    rows: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    top: int = 0,
    full: bool = True,
) -> TokenScores:
    """The scores of targets, N in all, given the features [N, H] before them; both may come in parts.

    Args:
        model: the config's model.
        params: its parameters.
        rows: float32 features.
        targets: ids.
        top: how many likeliest words K to find.
        full: whether to find entropy and rank.
    """
    x, ids = np.concatenate(rows), np.concatenate(targets)
    top, R = min(top, model.vocab_size), ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS

    def score(part: slice) -> TokenScores:
        count = part.stop - part.start
        chunks = next(chunks for chunks in CHUNKS if chunks * R >= count)
        missing = chunks * R - count
        scores = _scores(
            model,
            params,
            np.pad(x[part], ((0, missing), (0, 0))).reshape(chunks, R, -1),
            np.pad(ids[part], (0, missing)).reshape(chunks, R),
            top=top,
            full=full,
        )
        return TokenScores(*(np.asarray(column)[:count] for column in scores))

    most = CHUNKS[-1] * R
    return TokenScores.joined(
        _calls(score, [slice(start, min(start + most, len(ids))) for start in range(0, len(ids), most)])
    )


def _calls(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """The function of each argument, some at once."""
    if len(arguments) == 1:
        return [function(arguments[0])]
    with ThreadPoolExecutor(CALLS) as pool:
        return list(pool.map(function, arguments))


def _read(model: Recurrent, params: Params, sentences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The features [n, H] of each of at most 64 sentences, ids [n]."""
    size = next(size for size in BATCHES if size >= len(sentences))
    steps = -(-max(map(len, sentences)) // STEPS) * STEPS
    tokens = np.zeros((steps, size), np.int32)
    for column, ids in enumerate(sentences):
        tokens[: len(ids), column] = ids
    carry, found = stack.zero_carry(model, size, params["embedding"].dtype), []
    for start in range(0, steps, STEPS):
        features, carry = _features(model, params, tokens[start : start + STEPS], carry)
        found.append(np.asarray(features))
    features = np.concatenate(found)
    return [features[: len(ids), column] for column, ids in enumerate(sentences)]


@jax.jit
def _features(model, params, tokens, carry):
    """Tokens [T, B] -> features [T, B, H] and the new carry, in float32 and without noise."""
    return stack.features(stack.exact(model), params, no_noise(model), stack.embed(params, tokens), carry)


@partial(jax.jit, static_argnames=("top", "full"))
def _scores(model, params, rows, targets, *, top, full):
    """rows [C, R, H], targets [C, R] -> the columns of TokenScores, of C * R tokens."""

    def score(chunk):
        rows, targets = chunk
        return score_logits(heads.logits(model, params, rows), targets, top, full)

    columns = lax.map(score, (rows, targets))
    return tuple(column.reshape(targets.size, *column.shape[2:]) for column in columns)


def score_logits(logits: jax.Array, targets: jax.Array, top: int, full: bool) -> Columns:
    """The columns of `TokenScores` of targets [R], given logits [R, V], which need not be normalised.

    Args:
        logits: of every word.
        targets: ids.
        top: how many likeliest words to find.
        full: whether to find entropy and rank; they are else zero.
    """
    picked, odds = jnp.take_along_axis(logits, targets[:, None], 1), jnp.exp(logits)
    total = odds.sum(1)

    def columns(logits: jax.Array, odds: jax.Array, total: jax.Array, picked: jax.Array) -> Columns:
        log_total = jnp.log(total)
        entropy = rank = jnp.zeros(len(targets))
        if full:
            entropy = log_total - (odds * logits).sum(1) / total
            rank = 1 + jnp.where(logits > picked, 1.0, 0.0).sum(1)  # (whole numbers are summed more slowly)
        none = jnp.zeros((len(targets), 0))
        values, ids = lax.top_k(logits, min(top, logits.shape[1])) if top else (none, none)
        return (
            log_total - picked[:, 0],
            entropy,
            rank.astype(jnp.int32),
            ids.astype(jnp.int32),
            log_total[:, None] - values,
        )

    def far_from_zero() -> Columns:
        highest = logits.max(1, keepdims=True)
        shifted = logits - highest
        odds = jnp.exp(shifted)
        return columns(shifted, odds, odds.sum(1), picked - highest)

    # Most models' logits are near 0, and to look for the highest first is to read them all once more.
    near = (jnp.abs(jnp.log(total)) < NEAR).all()
    return lax.cond(near, lambda: columns(logits, odds, total, picked), far_from_zero)
