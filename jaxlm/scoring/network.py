"""A model with its parameters, as everything that scores or generates reads it: in float32, without noise."""

from dataclasses import dataclass

import jax

from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, drop_words, no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """A model and its parameters, as a pytree."""

    model: Recurrent
    params: Params

    def carry(self, rows: int = 1) -> Carry:
        """The carry before the first token of B rows: zeros."""
        return stack.zero_carry(self.model, rows, self.params["embedding"].dtype)

    def features(self, tokens: jax.Array, carry: Carry, noise: Noise | None = None) -> tuple[jax.Array, Carry]:
        """Ids [T, B] and the carry -> the last layer's outputs [T, B, H] and the new carry."""
        model, noise = stack.exact(self.model), noise or no_noise(self.model)
        x = drop_words(model, noise, stack.embed(self.params, tokens), tokens)
        return stack.features(model, self.params, noise, x, carry)

    def logits(self, features: jax.Array, noise: Noise | None = None) -> jax.Array:
        """features [..., H] -> logits [..., V]; of a mixture, log p. For a few rows at a time."""
        return heads.logits(self.model, self.params, features, noise and noise.latents)

    def token_nats(self, features: jax.Array, targets: jax.Array, noise: Noise | None = None) -> jax.Array:
        """The nats of targets [T, B] after features [T, B, H]."""
        return heads.token_nats(self.model, self.params, features, targets, noise and noise.latents)
