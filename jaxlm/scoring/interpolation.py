"""A network interpolated with an n-gram model (Jelinek and Mercer 1980).

    p(w) = (1 - weight) p_network(w) + weight p_ngram(w)

The weight that makes a text likeliest is found by expectation maximisation from the nats of both.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlm.base.errors import JaxlmError
from jaxlm.config.protocols import Mixable
from jaxlm.data.vocab import Vocab
from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.ngrams import folder
from jaxlm.scoring.ngram_network import NgramNetwork
from jaxlm.scoring.token_scores import Network

_MOST_ROUNDS = 10_000  # of expectation maximisation, slow for models that are alike
_SMALLEST_STEP = 1e-7  # of the weight


class MixedFeatures(NamedTuple):
    """What a `MixedNetwork` knows before each token.

    Attributes:
        outputs: Of the network's last layer [T, B, H].
        contexts: Of the n-gram model [T, B, C].
    """

    outputs: Array
    contexts: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixedNetwork:
    """A network and an n-gram model with the methods of a `Network`; its logits are log p.

    Attributes:
        network: The network, whose parameters are the mixture's.
        ngram: The n-gram model, of the same vocabulary.
        weight: Of the n-gram model.
    """

    network: Network
    ngram: NgramNetwork
    weight: Any

    @classmethod
    def of(
        cls,
        network: Network,
        protocol: Mixable,
        vocab: Vocab,
    ) -> "MixedNetwork":
        """The mixture that a protocol names.

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
        return cls(network, NgramNetwork(ngrams.model, network.model), protocol.weight)

    @property
    def model(self) -> Recurrent:
        """The network's model."""
        return self.network.model

    @property
    def params(self) -> Params:
        """The network's parameters."""
        return self.network.params

    @property
    def begins(self) -> Array | None:
        """Which tokens begin a word, as the network knows it."""
        return self.network.begins

    def _replace(self, **changes: Any) -> "MixedNetwork":
        """The mixture with some fields of its network changed, as `Network._replace`."""
        return replace(self, network=self.network._replace(**changes))

    def carry(self, rows: int = 1) -> Any:
        """The carry and the contexts of B rows before the first token."""
        return self.network.carry(rows), self.ngram.carry(rows)

    def features(
        self,
        tokens: Array,
        carry: Any,
        noise: Noise | None = None,
        length: Array | None = None,
    ) -> tuple[MixedFeatures, Any]:
        """Runs both over some tokens.

        Args:
            tokens: Ids, int32 [T, B].
            carry: As `carry` returns it.
            noise: What the network drops; None: nothing.
            length: Steps after which the network's carry is taken; None: all T.

        Returns:
            The features [T, B, ...], and the carry after the last step.
        """
        carry, context = carry
        outputs, carry = self.network.features(tokens, carry, noise, length)
        contexts, context = self.ngram.features(tokens, context)
        return MixedFeatures(outputs, contexts), (carry, context)

    def outputs(self, features: MixedFeatures) -> Array:
        """As `Network.outputs`."""
        return features.outputs

    def logits(self, features: MixedFeatures, noise: Noise | None = None) -> Array:
        """log p of every token under the mixture [..., V]."""
        own = jax.nn.log_softmax(self.network.logits(features.outputs, noise))
        return self._mixed(own, self.ngram.logits(features.contexts))

    def token_nats(
        self,
        features: MixedFeatures,
        targets: Array,
        noise: Noise | None = None,
    ) -> Array:
        """The nats of each target under the mixture.

        Args:
            features: Before each target [T, B, ...].
            targets: Ids, int32 [T, B].
            noise: What the network drops; None: nothing.

        Returns:
            -log p of each target, float32 [T, B].
        """
        own = self.network.token_nats(features.outputs, targets, noise)
        return -self._mixed(-own, -self.ngram.token_nats(features.contexts, targets))

    def summed_nats(
        self,
        features: MixedFeatures,
        targets: Array,
        weights: Array,
    ) -> Array:
        """The weighted sum of the network's own nats, from which it learns.

        Args:
            features: Before each target [T, B, ...].
            targets: Ids, int32 [T, B].
            weights: Of each target [T, B].
        """
        return self.network.summed_nats(features.outputs, targets, weights)

    def _mixed(self, own: Array, counted: Array) -> Array:
        """log p of the mixture, of log p of both."""
        return jnp.logaddexp(jnp.log1p(-self.weight) + own, jnp.log(self.weight) + counted)


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
    for _ in range(_MOST_ROUNDS):
        before = weight
        weight = float(np.mean(weight * odds / (weight * odds + 1 - weight)))
        if abs(weight - before) < _SMALLEST_STEP:
            break
    return weight
