"""Neural cache (Grave et al. 2017, arXiv:1612.04426): words that came lately after features like these are likelier.

The cache holds the last W pairs of (the last layer's outputs, the word that came after them). At features h

    p(w) = (1 - lambda) p_model(w) + lambda * sum over pairs (h_i, w_i = w) of softmax_i(theta * h . h_i)

With `compatibility="awd-lstm"` it is silent where pointer.py of awd-lstm-lm is: at the first W + 1 predictions, and at
the first of each later chunk of `cache_chunk` tokens.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config.protocols import Cache
from jaxlm.models.stack import Carry
from jaxlm.scoring.reading import Reader
from jaxlm.scoring.token_scores import (
    Detail,
    Network,
    Tokens,
    TokenScores,
    nats_alone,
    score_logits,
)


class CacheState(NamedTuple):
    """The carry, and the cache: the last W features [W, H] and the words [W] after them, oldest first."""

    carry: Carry
    keys: jax.Array
    words: jax.Array
    position: jax.Array  # how many tokens were read


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CacheReader(Reader):
    """The model with a neural cache. Its state is a `CacheState`, whose size does not grow."""

    network: Network
    protocol: Cache

    def within(self, tokens: int) -> "CacheReader":
        window = min(self.protocol.cache_window, tokens)  # a text so short fills no more
        return replace(self, protocol=replace(self.protocol, cache_window=window))

    def start(self) -> CacheState:
        W = self.protocol.cache_window
        H = self.network.model.hidden_sizes[-1]
        keys = jnp.zeros((W, H), self.network.params["embedding"].dtype)
        return CacheState(self.network.carry(), keys, jnp.zeros(W, jnp.int32), jnp.int32(0))

    def read(
        self, state: CacheState, tokens: Tokens, detail: Detail
    ) -> tuple[TokenScores, CacheState]:
        inputs, targets, counted = tokens
        W = self.protocol.cache_window
        T = len(inputs)
        found, carry = self.network.features(inputs[:, None], state.carry)
        keys = jnp.concatenate([state.keys, found[:, 0]])
        words = jnp.concatenate([state.words, targets])
        row = jnp.arange(T)[:, None]
        pair = jnp.arange(W + T)
        seen = (
            (pair >= row) & (pair < row + W) & (pair >= W - state.position)
        )  # the W pairs before row t, if so many
        alike = self.protocol.theta * jnp.matmul(found[:, 0], keys.T, precision="highest")
        alike = jnp.where(seen, alike, -jnp.inf)
        position = state.position + jnp.arange(T)  # of each prediction, from 0
        speaks = position > 0
        if self.protocol.compatibility == "awd-lstm":
            speaks = (position > W) & (position % self.protocol.cache_chunk != 0)
        log_odds = alike - jnp.where(speaks, jax.nn.logsumexp(alike, 1), 0)[:, None]
        log_own = jnp.where(speaks, jnp.log1p(-self.protocol.lambda_), 0)
        log_weight = jnp.where(speaks, jnp.log(self.protocol.lambda_), -jnp.inf)
        if detail == Detail(full=False) and self.network.begins is None:
            log_p = -self.network.token_nats(found, targets[:, None])[:, 0]
            hits = jax.nn.logsumexp(jnp.where(words == targets[:, None], log_odds, -jnp.inf), 1)
            scores = nats_alone(-jnp.logaddexp(log_own + log_p, log_weight + hits))
        else:
            log_p = jax.nn.log_softmax(self.network.logits(found[:, 0]))
            cached = (
                jnp.zeros_like(log_p)
                .at[row, words]
                .add(jnp.where(speaks[:, None], jnp.exp(log_odds), 0))
            )
            mixed = jnp.logaddexp(log_own[:, None] + log_p, log_weight[:, None] + jnp.log(cached))
            scores = score_logits(mixed, targets, detail, self.network.begins)
        return scores, CacheState(
            carry, keys[T:], words[T:], state.position + counted.sum(dtype=jnp.int32)
        )
