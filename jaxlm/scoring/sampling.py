"""How the next word is drawn: temperature, top-k, top-p, min-p, a penalty on repetition, and words that are banned.

Every number is traced, so that changing one compiles nothing, and no vocabulary is sorted: the least probability that
is kept is found by bisection over the bits of a float, exactly, in 30 passes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.data.vocab import UNK, Vocab
from jaxlm.errors import JaxlmError
from jaxlm.fields import float32

LANES = 128  # of the two-level sum over the vocabulary
MOST_WORDS = 2**31 - 1  # of a vocabulary: as a top_k it keeps every word


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How words are drawn. None: the mechanism is absent.

    Attributes:
        temperature: divides the logits; None: always the likeliest word.
        top_k: only the k likeliest words (with all that tie with the last).
        top_p: only the likeliest words that together have this probability (Holtzman et al. 2020, arXiv:1904.09751).
        min_p: only words at least this share as probable as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).
        repetition_penalty: of words that were there already positive logits are divided by it, negative ones
            multiplied (Keskar et al. 2019, arXiv:1909.05858).
        banned: words that are never drawn, bool [V].
    """

    temperature: float | jax.Array | None = 1.0
    top_k: int | jax.Array | None = None
    top_p: float | jax.Array | None = None
    min_p: float | jax.Array | None = None
    repetition_penalty: float | jax.Array | None = None
    banned: jax.Array | None = None

    def checked(self) -> "Sampling":
        """Itself with a temperature of 0 as None, and one type for each number, so that one program serves all.

        Raises:
            JaxlmError: a number is outside its limits, or two contradict each other.
        """
        numbers: dict[str, Any] = {name: value for name in LIMITS if (value := getattr(self, name)) is not None}
        for name, value in numbers.items():
            allowed, limit = LIMITS[name]
            if not math.isfinite(value) or not math.isfinite(float32(float(value))):
                raise JaxlmError(f"{name} must be a finite number; it is {value}")
            if name == "top_k" and int(value) != value:
                raise JaxlmError(f"top_k must be a whole number; it is {value}")
            if not allowed(value):
                raise JaxlmError(f"{name} must be {limit}; it is {value:g}")
            numbers[name] = min(int(value), MOST_WORDS) if name == "top_k" else float(value)
        if not numbers.get("temperature") or not float32(numbers["temperature"]):
            numbers["temperature"] = None
            for name in ("top_k", "top_p", "min_p"):
                if name in numbers:
                    raise JaxlmError(
                        f"temperature 0 always takes the likeliest word, and {name} is given: leave one out"
                    )
        return replace(self, **numbers)


LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: value >= 0, "at least 0"),
    "top_k": (lambda value: value >= 1, "at least 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
}


def sampling_of(vocab: Vocab, *, ban: Iterable[str] = (), no_unk: bool = False, **numbers: Any) -> Sampling:
    """Checked sampling that never draws some words.

    Args:
        vocab: the model's.
        ban: words that never come.
        no_unk: `<unk>` never comes.
        **numbers: fields of `Sampling`.

    Raises:
        JaxlmError: a number is outside its limits, a banned word is unknown, or no word is left.
    """
    words = [*ban, *([UNK] if no_unk and UNK in vocab.ids else [])]
    if unknown := [word for word in words if word not in vocab.ids]:
        raise JaxlmError(f"the banned word {unknown[0]!r} is not among the {len(vocab):,} words of the vocabulary")
    mask = np.isin(np.arange(len(vocab)), [vocab.ids[word] for word in words])
    if mask.all():
        raise JaxlmError("every word of the vocabulary is banned: leave at least one")
    return Sampling(banned=jnp.asarray(mask) if words else None, **numbers).checked()


def draw(
    sampling: Sampling, logits: jax.Array, seen: jax.Array | None, uniform: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One word a row.

    Args:
        sampling: checked.
        logits: [S, V].
        seen: words that were there already, bool [S, V]; needed for a repetition penalty.
        uniform: a number in [0, 1) for each row, [S].

    Returns:
        ids [S], int32, and the log-probability of each under the logits themselves, before anything is changed, [S].
    """
    changed = adjusted(sampling, logits, seen)
    if sampling.temperature is None:
        ids = changed.argmax(-1).astype(jnp.int32)
        return ids, _log_prob(logits, ids)
    highest = changed.max(-1, keepdims=True)
    odds = jnp.exp((changed - highest) / sampling.temperature)  # of each word against the likeliest
    ids, share = pick(kept(sampling, odds), uniform)
    if len(jax.tree.leaves(sampling)) > 1:  # more than the temperature
        return ids, _log_prob(logits, ids)
    # At a temperature of 1 the sum of the odds is there already.
    return ids, lax.cond(sampling.temperature == 1, lambda: jnp.log(share), lambda: _log_prob(logits, ids))


def _log_prob(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """log p of one word a row: logits [S, V], ids [S] -> [S]."""
    return jnp.take_along_axis(logits, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, -1)


def adjusted(sampling: Sampling, logits: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Logits [S, V] after the penalty and the ban."""
    if sampling.repetition_penalty is not None and seen is not None:
        penalised = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    return logits if sampling.banned is None else jnp.where(sampling.banned, -jnp.inf, logits)


def kept(sampling: Sampling, odds: jax.Array) -> jax.Array:
    """Odds [S, V] with those of words that are not among the likeliest set to 0: top-k, then top-p, then min-p."""
    if sampling.top_k is not None:
        k = sampling.top_k
        least = threshold(odds, lambda among: among.sum(-1) >= k)
        odds = jnp.where(odds >= least[:, None], odds, 0)
    if sampling.top_p is not None:
        mass = sampling.top_p * odds.sum(-1)
        least = threshold(odds, lambda among: jnp.where(among, odds, 0).sum(-1) >= mass)
        odds = jnp.where(odds >= least[:, None], odds, 0)
    if sampling.min_p is not None:
        odds = jnp.where(odds >= sampling.min_p, odds, 0)
    return odds


def threshold(odds: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest number t in [0, 1] of each row for which `enough(odds >= t)`; 0 where none is.

    Args:
        odds: float32 [S, V] in [0, 1]. Their bits, read as integers, are in the same order.
        enough: from the words chosen, bool [S, V], to bool [S]; once true it stays so as more are chosen.

    Returns:
        [S].
    """

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        good = enough(odds >= lax.bitcast_convert_type(middle, jnp.float32)[:, None])
        return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

    odds = odds.astype(jnp.float32)
    one = lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    low, _ = lax.fori_loop(0, 31, halve, (jnp.zeros(len(odds), jnp.int32), jnp.full(len(odds), one)))
    return lax.bitcast_convert_type(low, jnp.float32)


def pick(odds: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A word of each row in proportion to its odds [S, V], by the inverse of their running sum at `uniform` [S].

    The sum has two levels, blocks of 128 words and the words of one block, so that no running sum is over [S, V].

    Returns:
        ids [S], int32, and the share of each in its row's odds [S].
    """
    S, V = odds.shape
    blocks = jnp.pad(odds, ((0, 0), (0, -V % LANES))).reshape(S, -1, LANES)
    blocks = lax.optimization_barrier(blocks)  # one pass makes them; XLA would make them again for each use
    sums = jnp.cumsum(blocks.sum(-1), -1)
    total = sums[:, -1]
    target = uniform * total
    block = _first_above(sums, target)
    rows = jnp.arange(S)
    below = jnp.where(block > 0, sums[rows, jnp.maximum(block - 1, 0)], 0)
    words = blocks[rows, block]
    place = _first_above(jnp.cumsum(words, -1), target - below)
    return (block * LANES + place).astype(jnp.int32), words[rows, place] / total


def _first_above(sums: jax.Array, target: jax.Array) -> jax.Array:
    """Where running sums [S, n] first exceed the target [S]; where rounding lets none, where they last grow."""
    last = (sums < sums[:, -1:]).sum(-1)
    return jnp.minimum((sums <= target[:, None]).sum(-1), last)
