"""A network interpolated with an n-gram model (Jelinek and Mercer 1980).

    p(w) = (1 - weight) p_network(w) + weight p_ngram(w)

The weight that makes a text likeliest is found by expectation maximisation from the nats of both.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.config.protocols import Interpolation
from jaxlm.data.vocab import Vocab
from jaxlm.ngrams import folder
from jaxlm.scoring.ngram_network import NgramNetwork
from jaxlm.scoring.token_scores import (
    Detail,
    Network,
    Reader,
    Tokens,
    TokenScores,
    merged,
    score_logits,
)

_ROUNDS = 100  # of expectation maximisation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterpolationReader(Reader):
    """Reads a text by a network and an n-gram model; its state is the carry and the context.

    Attributes:
        network: The network.
        ngram: The n-gram model, of the same vocabulary.
        protocol: The weight of the n-gram model.
    """

    network: Network
    ngram: NgramNetwork
    protocol: Interpolation

    @classmethod
    def of(
        cls,
        network: Network,
        protocol: Interpolation,
        vocab: Vocab,
    ) -> "InterpolationReader":
        """The reader of a protocol, whose n-gram model is loaded.

        Args:
            network: The network.
            protocol: Names the n-gram model's directory.
            vocab: The network's vocabulary.

        Raises:
            JaxlmError: There is no n-gram model, or its vocabulary is another.
        """
        if not protocol.with_ or not folder.is_ngram_folder(protocol.with_):
            raise JaxlmError(
                f"interpolation needs an n-gram model, and {protocol.with_ or 'none'!r} is none: "
                "make one with `jaxlm ngram`, and name its directory with --with"
            )
        ngrams = folder.load(protocol.with_)
        if ngrams.vocab.sha256 != vocab.sha256:
            raise JaxlmError(
                f"the vocabulary of {protocol.with_} is not the run's: make the n-gram model of "
                "the run's own corpus, with the run's --vocab-size and --tokens"
            )
        return cls(network, NgramNetwork(ngrams.model, network.model), protocol)

    def start_all(self, texts: int) -> Any:
        """The carry and the context of B texts, as `Reader.start_all`."""
        return self.network.carry(texts), self.ngram.carry(texts)

    def read_all(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """Reads one segment of B texts, as `Reader.read_all`."""
        carry, context = state
        features, carry = self.network.features(tokens.inputs, carry)
        contexts, context = self.ngram.features(tokens.inputs, context)
        network_log_p = jax.nn.log_softmax(self.network.logits(features))
        ngram_log_p = self.ngram.logits(contexts)
        weight = self.protocol.weight
        mixed = jnp.logaddexp(jnp.log1p(-weight) + network_log_p, jnp.log(weight) + ngram_log_p)
        shape = tokens.targets.shape
        begins = self.network.begins
        scores = score_logits(merged(mixed), merged(tokens.targets), detail, begins)
        scores = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), scores)
        return scores, (carry, context)


def likeliest_weight(network_nats: np.ndarray, ngram_nats: np.ndarray) -> float:
    """The weight of the n-gram model that makes a text likeliest.

    Args:
        network_nats: -log p of each token under the network `[N]`.
        ngram_nats: The same under the n-gram model.

    Returns:
        A number from 0 to 1, by expectation maximisation from one half.
    """
    odds = np.exp(network_nats.astype(float) - ngram_nats)  # of the n-gram model
    weight = 0.5
    for _ in range(_ROUNDS):
        weight = float(np.mean(weight * odds / (weight * odds + 1 - weight)))
    return weight
