"""An n-gram model in the place of a network: the carry is the last tokens, features the context.

So `ModelReader`, generation and prediction run it as they run a recurrent model. The tables stay in
the host's memory, where NumPy searches them.

Letters: `T` steps, `B` batch, `C` tokens of context, `V` vocabulary.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlm.models.recurrent import Recurrent
from jaxlm.ngrams.backoff import BackoffModel

LEAST_LOG_PROBABILITY = -228.0  # of a token that an ARPA file gives 10 ** -99


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NgramNetwork:
    """An n-gram model with the methods of a `Network`.

    Attributes:
        ngram: The tables.
        model: Names the size of the vocabulary to what generates text.
        begins: Which tokens `[V]` begin a word, where that is to be scored.
    """

    ngram: BackoffModel = field(metadata={"static": True})
    model: Recurrent = field(metadata={"static": True})
    begins: Array | None = None

    @property
    def _width(self) -> int:
        """C: how many tokens the longest n-gram has before its last."""
        return max(1, self.ngram.order - 1)

    def with_boundaries(self, begins: Array) -> "NgramNetwork":
        """The network, which also scores where words begin.

        Args:
            begins: Which tokens `[V]` begin a word.
        """
        return replace(self, begins=begins)

    def carry(self, rows: int = 1) -> Array:
        """The contexts of B rows before the first token: the beginning C times, int32 `[B, C]`."""
        return jnp.full((rows, self._width), self.ngram.begin, jnp.int32)

    def features(
        self,
        tokens: Array,
        carry: Array,
        *_: Any,
    ) -> tuple[Array, Array]:
        """The context after each token.

        Args:
            tokens: Ids `[T, B]`.
            carry: Contexts `[B, C]` before the first.

        Returns:
            Contexts int32 `[T, B, C]`, and the last of them `[B, C]`.
        """
        stream = jnp.concatenate([carry.T, tokens.astype(jnp.int32)])
        steps = jnp.arange(len(tokens))[:, None] + 1 + jnp.arange(self._width)
        contexts = jnp.moveaxis(stream[steps], 1, 2)
        if self.ngram.end is not None:
            is_end = contexts == self.ngram.end
            later_ends = jnp.flip(jnp.cumsum(jnp.flip(is_end, -1), -1), -1)
            contexts = jnp.where(later_ends > 0, self.ngram.begin, contexts)
        return contexts, contexts[-1]

    def logits(self, features: Array, *_: Any) -> Array:
        """The log probability of every next token, float32 `[..., V]`.

        Args:
            features: Contexts `[..., C]`.
        """
        shape = jax.ShapeDtypeStruct((*features.shape[:-1], self.ngram.vocab_size), jnp.float32)
        return jax.pure_callback(self._host_logits, shape, features, vmap_method="expand_dims")

    def token_nats(
        self,
        features: Array,
        targets: Array,
        *_: Any,
    ) -> Array:
        """-log p of targets `[T, B]` after contexts `[T, B, C]`, float32.

        Args:
            features: Contexts.
            targets: Ids.
        """
        shape = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        return jax.pure_callback(
            self._host_nats, shape, features, targets, vmap_method="expand_dims"
        )

    def _host_logits(self, contexts: Any) -> np.ndarray:
        rows = np.asarray(contexts)
        unique, inverse = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
        scores = np.stack([self.ngram.next_log_probabilities(context) for context in unique])
        scores = np.maximum(scores, LEAST_LOG_PROBABILITY).astype(np.float32)
        return scores[inverse.ravel()].reshape(*rows.shape[:-1], -1)

    def _host_nats(self, contexts: Any, targets: Any) -> np.ndarray:
        rows = np.asarray(contexts)
        ids = np.asarray(targets)
        scores = self.ngram.log_probabilities_after(rows.reshape(-1, rows.shape[-1]), ids.ravel())
        return -np.maximum(scores, LEAST_LOG_PROBABILITY).astype(np.float32).reshape(ids.shape)
