"""Monte Carlo dropout: the probabilities of many networks, each with units dropped as in training, averaged.

Gal and Ghahramani 2016, arXiv:1512.05287. The same networks read every text: the seed, the network's number and the
number of the window decide what is dropped. A window is as long as in training.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.config.protocols import MCDropout
from jaxlm.models.noise import draw_noise, drop_rows
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MCReader(Reader):
    """The mean of networks with dropout. Its state is the number of the window, and every network's carry."""

    network: Network
    protocol: MCDropout
    segment: int = field(
        metadata={"static": True}
    )  # T of the windows, in each of which dropout is drawn anew

    def start(self) -> tuple[jax.Array, Carry]:
        carry = self.network.carry()
        return jnp.int32(0), jax.tree.map(
            lambda leaf: jnp.stack([leaf] * self.protocol.samples), carry
        )

    def read(self, state: Any, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Any]:
        (window, carries), (inputs, targets, _) = state, tokens
        model = self.network.model
        samples = self.protocol.samples
        nats_only = detail == Detail(full=False) and self.network.begins is None
        key = jax.random.fold_in(jax.random.key(self.protocol.seed), window)

        def add(total, sample):
            number, carry = sample
            noise = draw_noise(model, jax.random.fold_in(key, number), len(inputs), 1)
            network = self.network._replace(params=drop_rows(model, noise, self.network.params))
            found, carry = network.features(inputs[:, None], carry, noise)
            if nats_only:
                log_p = -network.token_nats(found, targets[:, None], noise)[:, 0]
            else:
                log_p = jax.nn.log_softmax(network.logits(found, noise)[:, 0])
            return jnp.logaddexp(total, log_p), carry

        nothing = jnp.full(
            (len(inputs),) if nats_only else (len(inputs), model.vocab_size), -jnp.inf
        )
        total, carries = lax.scan(add, nothing, (jnp.arange(samples), carries))
        if nats_only:
            return nats_alone(jnp.log(samples) - total), (window + 1, carries)
        return score_logits(total, targets, detail, self.network.begins), (window + 1, carries)
