"""How the next word is drawn: temperature, top-k, top-p, min-p, a penalty, and banned words.

Every number is traced, so that changing one compiles nothing, and no vocabulary is sorted: the
least probability that is kept is found by bisection over the bits of a float, exactly, in 30
passes.

Letters: `S` samples, `V` vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked, count, float32, number
from jaxlm.data.vocab import Vocab

LANES = 128  # of the two-level sum over the vocabulary


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How words are drawn. None: the mechanism is absent.

    Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751. min_p: Nguyen et al. 2024,
    arXiv:2407.01082. Penalty: Keskar et al. 2019, arXiv:1909.05858; it divides positive logits, and
    multiplies negative ones.

    Attributes:
        banned: Words that are never drawn, bool [V].
    """

    temperature: float | None = number(
        1.0, "divides the logits; 0: the likeliest word", low=0, optional=True
    )
    top_k: int | None = count(
        None, "draw from the K likeliest words, and those that tie with them", low=1, high=math.inf
    )
    top_p: float | None = number(
        None, "draw from the likeliest words that together have this probability", above=0, high=1
    )
    min_p: float | None = number(
        None, "draw from words at least this share as probable as the likeliest", low=0, high=1
    )
    repetition_penalty: float | None = number(
        None, "above 1 makes earlier words less likely", low=1e-6
    )
    banned: Array | None = None


def sampling_of(
    vocab: Vocab,
    *,
    ban: Iterable[str] = (),
    no_unk: bool = False,
    **numbers: Any,
) -> Sampling:
    """Checked numbers of sampling.

    Args:
        vocab: The tokens.
        ban: Words that never come.
        no_unk: Whether `<unk>` never comes.
        **numbers: Fields of `Sampling`; a temperature of 0 becomes None.

    Raises:
        JaxlmError: A number is outside its limits, two contradict each other, a banned word is
            unknown, or no word is left.
    """
    words = list(ban)
    if no_unk and vocab.unknown_id >= 0:
        words.append(vocab.tokens.unknown)
    for word in words:
        if word not in vocab.ids:
            known = f"the {len(vocab):,} words of the vocabulary"
            raise JaxlmError(f"the banned word {word!r} is not among {known}")
    mask = np.isin(np.arange(len(vocab)), [vocab.ids[word] for word in words])
    if mask.all():
        raise JaxlmError("every word of the vocabulary is banned: leave at least one")
    sampling = checked(Sampling(banned=jnp.asarray(mask) if words else None, **numbers))
    temperature = sampling.temperature
    if not temperature or not float32(temperature):  # which rounds the smallest numbers to 0
        temperature = None
        for name in ("top_k", "top_p", "min_p"):
            if getattr(sampling, name) is not None:
                raise JaxlmError(
                    f"temperature 0 always takes the likeliest word, and {name} is given: leave "
                    "one out"
                )
    top_k = sampling.top_k and min(sampling.top_k, len(vocab))
    return replace(sampling, temperature=temperature, top_k=top_k)


def draw(
    sampling: Sampling,
    logits: Array,
    seen: Array | None,
    uniform: Array,
) -> tuple[Array, Array]:
    """Draws one word for each sample.

    Args:
        sampling: How words are drawn.
        logits: Logits [S, V].
        seen: Words that were there already, bool [S, V]; needed for a repetition penalty.
        uniform: A number in [0, 1) for each sample [S].

    Returns:
        Ids, int32 [S], and the log-probability [S] of each under the logits themselves, before
        anything is changed.
    """
    changed = adjusted(sampling, logits, seen)
    if sampling.temperature is None:
        ids = changed.argmax(-1).astype(jnp.int32)
        return ids, _log_prob(logits, ids)
    highest = changed.max(-1, keepdims=True)
    odds = jnp.exp((changed - highest) / sampling.temperature)  # of each word against the likeliest
    ids, share = pick(filtered(sampling, odds), uniform)
    if len(jax.tree.leaves(sampling)) > 1:  # more than the temperature
        return ids, _log_prob(logits, ids)
    # At a temperature of 1 the sum of the odds is there already.
    return ids, lax.cond(
        sampling.temperature == 1, lambda: jnp.log(share), lambda: _log_prob(logits, ids)
    )


def _log_prob(logits: Array, ids: Array) -> Array:
    """Log p of one word a row: logits [S, V], ids [S] -> [S]."""
    return jnp.take_along_axis(logits, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, -1)


def adjusted(
    sampling: Sampling,
    logits: Array,
    seen: Array | None,
) -> Array:
    """Logits after the penalty and the ban.

    Args:
        sampling: How words are drawn.
        logits: Logits [S, V].
        seen: Words that were there already, bool [S, V].
    """
    penalty = sampling.repetition_penalty
    if penalty is not None and seen is not None:
        penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalised, logits)
    if sampling.banned is None:
        return logits
    return jnp.where(sampling.banned, -jnp.inf, logits)


def filtered(sampling: Sampling, odds: Array) -> Array:
    """Odds with those of words that may not be drawn set to 0.

    First top-k chooses words, then top-p among these, then min-p.

    Args:
        sampling: How words are drawn.
        odds: Odds of each word against the likeliest [S, V].
    """
    if sampling.top_k is not None:
        k = sampling.top_k
        odds = likeliest(odds, lambda among: among.sum(-1) >= k)
    if sampling.top_p is not None:
        mass = sampling.top_p * odds.sum(-1)
        odds = likeliest(odds, lambda among: jnp.where(among, odds, 0).sum(-1) >= mass)
    if sampling.min_p is not None:
        odds = jnp.where(odds >= sampling.min_p, odds, 0)
    return odds


def likeliest(odds: Array, enough: Callable[[Array], Array]) -> Array:
    """Odds with those of all but the fewest likeliest words that are enough set to 0.

    In each row these are the words of odds t or more, for the largest t in [0, 1] for which they
    are enough. It is found by bisection over whole numbers: the bits of floats in [0, 1], read as
    integers, have the order of the floats.

    Args:
        odds: Odds in [0, 1], [S, V].
        enough: From the words chosen, bool [S, V], to bool [S]; once true it stays true as more
            are chosen.
    """

    def at_least(bits: Array) -> Array:
        return odds >= lax.bitcast_convert_type(bits, jnp.float32)[:, None]

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        good = enough(at_least(middle))
        return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

    odds = odds.astype(jnp.float32)
    bits_of_one = lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    bounds = (jnp.zeros(len(odds), jnp.int32), jnp.full(len(odds), bits_of_one))
    low, _ = lax.fori_loop(0, 31, halve, bounds)
    return jnp.where(at_least(low), odds, 0)


def pick(odds: Array, uniform: Array) -> tuple[Array, Array]:
    """A word of each row in proportion to its odds, by the inverse of their running sum.

    The sum has two levels, blocks of 128 words and the words of one block, so that no running sum
    is over [S, V].

    Args:
        odds: Odds [S, V].
        uniform: A number in [0, 1) for each row [S].

    Returns:
        Ids, int32 [S], and the share of each in its row's odds [S].
    """
    S, V = odds.shape
    blocks = jnp.pad(odds, ((0, 0), (0, -V % LANES))).reshape(S, -1, LANES)
    # One pass makes the blocks; XLA would make them again for each use.
    blocks = lax.optimization_barrier(blocks)
    sums = jnp.cumsum(blocks.sum(-1), -1)
    total = sums[:, -1]
    target = uniform * total
    block = _first_above(sums, target)
    rows = jnp.arange(S)
    below = jnp.where(block > 0, sums[rows, jnp.maximum(block - 1, 0)], 0)
    words = blocks[rows, block]
    place = _first_above(jnp.cumsum(words, -1), target - below)
    return (block * LANES + place).astype(jnp.int32), words[rows, place] / total


def _first_above(sums: Array, target: Array) -> Array:
    """Where running sums [S, n] first exceed the target [S].

    Where rounding lets none exceed it, where they last grow.
    """
    last = (sums < sums[:, -1:]).sum(-1)
    return jnp.minimum((sums <= target[:, None]).sum(-1), last)
