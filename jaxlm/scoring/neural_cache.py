"""Neural cache (Grave et al. 2017, arXiv:1612.04426).

Words that came lately after features like these are likelier. The cache holds the last W pairs of
(outputs of the last layer, the word that came after them). At features h

    p(w) = (1 - lambda) p_model(w) + lambda * sum over i of [w_i = w] softmax_i(theta * h . h_i)

With `compatibility="awd-lstm"` it is silent where pointer.py of awd-lstm-lm is: at the first W + 1
predictions, and at the first of each later chunk of `cache_chunk` tokens.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlm.config.protocols import Cache
from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import (
    NATS_ALONE,
    Detail,
    Network,
    Reader,
    Tokens,
    TokenScores,
    nats_alone,
    score_logits,
)


class CacheState(NamedTuple):
    """The carry, and the cache, oldest pair first.

    Attributes:
        carry: The carry of the network.
        keys: The last W features [W, H].
        words: The words after them, int32 [W].
        position: How many tokens were read, an int32 scalar.
    """

    carry: Carry
    keys: Array
    words: Array
    position: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CacheReader(Reader):
    """The model with a neural cache. Its state is a `CacheState`, whose size does not grow.

    Attributes:
        network: The network.
        protocol: The numbers of the cache.
    """

    network: Network
    protocol: Cache

    def sized_for(self, tokens: int) -> "CacheReader":
        """As `Reader.sized_for`: a short text fills no more of the cache than it has tokens."""
        window = min(self.protocol.cache_window, tokens)
        return replace(self, protocol=replace(self.protocol, cache_window=window))

    def start(self) -> CacheState:
        """As `Reader.start`."""
        W = self.protocol.cache_window
        H = self.network.model.hidden_sizes[-1]
        keys = jnp.zeros((W, H), self.network.params["embedding"].dtype)
        return CacheState(self.network.carry(), keys, jnp.zeros(W, jnp.int32), jnp.int32(0))

    def read(
        self,
        state: CacheState,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, CacheState]:
        """As `Reader.read`."""
        inputs, targets, _ = tokens
        network = self.network
        protocol = self.protocol
        W = protocol.cache_window
        T = len(inputs)
        features, carry = network.features(inputs[:, None], state.carry)
        outputs = network.outputs(features)[:, 0]
        keys = jnp.concatenate([state.keys, outputs])
        words = jnp.concatenate([state.words, targets])
        row = jnp.arange(T)[:, None]
        pair = jnp.arange(W + T)
        # Row t sees the W pairs before it, if that many were read.
        seen = (pair >= row) & (pair < row + W) & (pair >= W - state.position)
        alike = protocol.theta * jnp.matmul(outputs, keys.T, precision="highest")
        alike = jnp.where(seen, alike, -jnp.inf)
        position = state.position + jnp.arange(T)  # of each prediction, from 0
        speaks = position > 0
        if protocol.compatibility == "awd-lstm":
            speaks = (position > W) & (position % protocol.cache_chunk != 0)
        log_odds = alike - jnp.where(speaks, jax.nn.logsumexp(alike, 1), 0)[:, None]
        log_own = jnp.where(speaks, jnp.log1p(-protocol.lambda_), 0)
        log_weight = jnp.where(speaks, jnp.log(protocol.lambda_), -jnp.inf)
        if detail == NATS_ALONE and network.begins is None:
            log_p = -network.token_nats(features, targets[:, None])[:, 0]
            hits = jnp.where(words == targets[:, None], log_odds, -jnp.inf)
            hits = jax.nn.logsumexp(hits, 1)
            scores = nats_alone(-jnp.logaddexp(log_own + log_p, log_weight + hits))
        else:
            log_p = jax.nn.log_softmax(network.logits(features)[:, 0])
            odds = jnp.where(speaks[:, None], jnp.exp(log_odds), 0)
            cached = jnp.zeros_like(log_p).at[row, words].add(odds)
            mixed = jnp.logaddexp(log_own[:, None] + log_p, log_weight[:, None] + jnp.log(cached))
            scores = score_logits(mixed, targets, detail, network.begins)
        return scores, CacheState(carry, keys[T:], words[T:], state.position + T)
