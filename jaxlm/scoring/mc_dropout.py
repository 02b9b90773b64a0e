"""Monte Carlo dropout: the mean of the probabilities of many networks with dropout.

Gal and Ghahramani 2016, arXiv:1512.05287. The same networks read every text: the seed, the
network's number and the number of the window decide what is dropped. A window is as long as in
training. The protocol's `dropout_factor` scales all rates of dropout (Melis et al. 2020).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.base.errors import JaxlmError
from jaxlm.config.protocols import MCDropout
from jaxlm.models.noise import draw_noise, drop_rows
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MCReader(Reader):
    """The mean of networks with dropout. Its state: the number of the window, and every carry.

    Attributes:
        network: The network, with the rates that masks are drawn with.
        protocol: The number of networks, and the seed.
        segment: Steps T of a window, for each of which dropout is drawn anew.
    """

    network: Network
    protocol: MCDropout
    segment: int = field(metadata={"static": True})

    @staticmethod
    def of(
        network: Network,
        protocol: MCDropout,
        bptt_length: int,
    ) -> "MCReader":
        """The reader of a model by a protocol.

        Args:
            network: The network, with the rates of training.
            protocol: The protocol, whose `dropout_factor` scales the rates.
            bptt_length: Steps T of a window.

        Raises:
            JaxlmError: The model has no dropout, or a rate becomes 1 or more.
        """
        model = network.model
        keep_rates = {name: getattr(model, name) for name in model.dropout_fields}
        keep_rates = {name: keep for name, keep in keep_rates.items() if keep < 1}
        if not keep_rates:
            raise JaxlmError(
                "the protocol mc averages networks with dropout, and this model was trained "
                "without: evaluate it by another protocol"
            )
        factor = protocol.dropout_factor
        for name, keep in keep_rates.items():
            if np.float32(factor * (1 - keep)) >= 1:  # in float32, as masks are drawn
                raise JaxlmError(
                    f"dropout_factor {factor:g} drops every unit of {name}, which is {keep:g}: "
                    f"set it below {1 / (1 - keep):g}"
                )
        scaled = {name: keep + (1 - factor) * (1 - keep) for name, keep in keep_rates.items()}
        return MCReader(network._replace(model=replace(model, **scaled)), protocol, bptt_length)

    def start(self) -> tuple[jax.Array, Carry]:
        """As `Reader.start`."""
        samples = self.protocol.samples
        carries = jax.tree.map(lambda leaf: jnp.stack([leaf] * samples), self.network.carry())
        return jnp.int32(0), carries

    def read(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """As `Reader.read`."""
        window, carries = state
        inputs, targets, _ = tokens
        T = len(inputs)
        model = self.network.model
        samples = self.protocol.samples
        nats_only = detail == NATS_ALONE and self.network.begins is None
        key = jax.random.fold_in(jax.random.key(self.protocol.seed), window)

        def add(total, sample):
            number, carry = sample
            noise = draw_noise(model, jax.random.fold_in(key, number), T, 1)
            network = self.network._replace(params=drop_rows(model, noise, self.network.params))
            features, carry = network.features(inputs[:, None], carry, noise)
            if nats_only:
                log_p = -network.token_nats(features, targets[:, None], noise)[:, 0]
            else:
                log_p = jax.nn.log_softmax(network.logits(features, noise)[:, 0])
            return jnp.logaddexp(total, log_p), carry

        shape = (T,) if nats_only else (T, model.vocab_size)
        nothing = jnp.full(shape, -jnp.inf)
        total, carries = lax.scan(add, nothing, (jnp.arange(samples), carries))
        if nats_only:
            scores = nats_alone(jnp.log(samples) - total)
        else:
            scores = score_logits(total, targets, detail, self.network.begins)
        return scores, (window + 1, carries)
