"""A network interpolated with other models (Jelinek and Mercer 1980), n-grams or networks.

    p(w) = (1 - sum_k weight_k) p_network(w) + sum_k weight_k p_k(w)

The weights that make a text likeliest are found by expectation maximisation from the nats of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import setting_text
from jaxlm.config.protocols import Mixable
from jaxlm.data.vocab import Vocab
from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.scoring.token_scores import Network

_MOST_ROUNDS = 10_000  # of expectation maximisation, slow for models that are alike
_SMALLEST_STEP = 1e-7  # of a weight


def cannot_open(directory: str) -> NoReturn:
    """Raises JaxlmError: a model that was made in a program opens no directory."""
    raise JaxlmError(
        f"{directory} joins only a model that `jaxlm.load` has opened: write this one to a "
        "directory, and open it"
    )


class MixedFeatures(NamedTuple):
    """What a `MixedNetwork` knows before each token.

    Attributes:
        outputs: Of the network's last layer [T, B, H].
        others: The features of each other model [T, B, ...].
    """

    outputs: Array
    others: tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixedNetwork:
    """A network and other models with the methods of a `Network`; its logits are log p.

    Attributes:
        network: The network that the others join.
        others: The other models, of the same vocabulary: each a `Network` or `NgramNetwork`.
        weights: Of the other models.
    """

    network: Network
    others: tuple[Any, ...]
    weights: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        network: Network,
        protocol: Mixable,
        vocab: Vocab,
        open_model: Callable[[str], Any],
    ) -> "MixedNetwork":
        """The mixture that a protocol names.

        Args:
            network: The network.
            protocol: Names the directories of the other models, and their weights.
            vocab: The network's vocabulary.
            open_model: From a directory to its model.

        Raises:
            JaxlmError: There is no other model, its vocabulary is another, or a weight is missing.
        """
        names = protocol.others
        if not names:
            raise JaxlmError(
                "interpolation needs another model: make an n-gram model with `jaxlm ngram`, or "
                "train a run, and name its directory with --with"
            )
        if len(names) != len(protocol.weight):
            raise JaxlmError(
                f"each other model needs a weight, and {', '.join(names)} have "
                f"{setting_text(protocol.weight)}: give as many with --weight, or --tune them"
            )
        others = []
        for name in names:
            other = open_model(name)
            if other.vocab.sha256 != vocab.sha256:
                raise JaxlmError(
                    f"the vocabulary of {name} is not the run's: make the other model of the run's "
                    "own corpus, with the run's --vocab-size and --tokens"
                )
            others.append(other.network)
        return cls(network, tuple(others), protocol.weight)

    @property
    def model(self) -> Recurrent:
        """The network's model."""
        return self.network.model

    @property
    def params(self) -> Params:
        """The network's parameters."""
        return self.network.params

    @property
    def members(self) -> tuple[Any, ...]:
        """All models, the network first."""
        return self.network, *self.others

    @property
    def learnt(self) -> tuple[Params, ...]:
        """The parameters of each network, as `Network.learnt`."""
        return tuple(member.params for member in self.members if isinstance(member, Network))

    def with_learnt(self, learnt: tuple[Params, ...]) -> "MixedNetwork":
        """The mixture with other parameters of each network.

        Args:
            learnt: As the property has them.
        """
        own, *rest = learnt
        others = []
        for other in self.others:
            if isinstance(other, Network):
                others.append(other.with_learnt(rest.pop(0)))
            else:
                others.append(other)
        return replace(self, network=self.network.with_learnt(own), others=tuple(others))

    @property
    def begins(self) -> Array | None:
        """Which tokens begin a word, as the network knows it."""
        return self.network.begins

    def _replace(self, **changes: Any) -> "MixedNetwork":
        """The mixture with some fields of its network changed, as `Network._replace`."""
        return replace(self, network=self.network._replace(**changes))

    def carry(self, rows: int = 1) -> Any:
        """The carries of B rows before the first token, the network's first."""
        return tuple(member.carry(rows) for member in self.members)

    def features(
        self,
        tokens: Array,
        carry: Any,
        noise: Noise | None = None,
        length: Array | None = None,
    ) -> tuple[MixedFeatures, Any]:
        """Runs all models over some tokens.

        Args:
            tokens: Ids, int32 [T, B].
            carry: As `carry` returns it.
            noise: What the network drops; None: nothing.
            length: Steps after which the carries are taken; None: all T.

        Returns:
            The features [T, B, ...], and the carry after the last step.
        """
        outputs, after = self.network.features(tokens, carry[0], noise, length)
        features = []
        carries = [after]
        for other, before in zip(self.others, carry[1:], strict=True):
            known, after = other.features(tokens, before, None, length)
            features.append(known)
            carries.append(after)
        return MixedFeatures(outputs, tuple(features)), tuple(carries)

    def outputs(self, features: MixedFeatures) -> Array:
        """As `Network.outputs`."""
        return features.outputs

    def logits(self, features: MixedFeatures, noise: Noise | None = None) -> Array:
        """log p of every token under the mixture [..., V]."""
        own = jax.nn.log_softmax(self.network.logits(features.outputs, noise))
        others = []
        for other, known in zip(self.others, features.others, strict=True):
            logits = other.logits(known)
            if isinstance(other, Network):  # those of an n-gram model are log p
                logits = jax.nn.log_softmax(logits)
            others.append(logits)
        return self._mixed(own, others)

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
        own = -self.network.token_nats(features.outputs, targets, noise)
        others = [
            -other.token_nats(known, targets)
            for other, known in zip(self.others, features.others, strict=True)
        ]
        return -self._mixed(own, others)

    def summed_nats(
        self,
        features: MixedFeatures,
        targets: Array,
        weights: Array,
    ) -> Array:
        """The weighted sum of each network's own nats, from which it learns.

        Args:
            features: Before each target [T, B, ...].
            targets: Ids, int32 [T, B].
            weights: Of each target [T, B].
        """
        total = self.network.summed_nats(features.outputs, targets, weights)
        for other, known in zip(self.others, features.others, strict=True):
            if isinstance(other, Network):
                total += other.summed_nats(known, targets, weights)
        return total

    def _mixed(self, own: Array, others: Sequence[Array]) -> Array:
        """log p of the mixture, of log p of the network and of each other model."""
        rest = jnp.minimum(sum(self.weights), 1.0)
        terms = [jnp.log1p(-rest) + own]
        for weight, log_p in zip(self.weights, others, strict=True):
            terms.append(jnp.log(weight) + log_p)
        return reduce(jnp.logaddexp, terms)


def likeliest_weights(nats: np.ndarray) -> np.ndarray:
    """The weights of models whose mixture makes a text likeliest.

    Args:
        nats: -log p of each token under each model `[M, N]`.

    Returns:
        Numbers from 0 to 1 that sum to 1 `[M]`, by expectation maximisation from equal ones.
    """
    odds = np.exp(nats.min(0) - nats.astype(float))  # of the likeliest model
    weights = np.full(len(nats), 1 / len(nats))
    for _ in range(_MOST_ROUNDS):
        before = weights
        shares = weights[:, None] * odds
        weights = (shares / shares.sum(0)).mean(1)
        if np.abs(weights - before).max() < _SMALLEST_STEP:
            break
    return weights
