"""A model with its parameters, as everything that scores or generates reads it: in float32, without noise."""

from dataclasses import dataclass

import jax
import numpy as np
from jax import lax

from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, drop_words, no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry

READ = 256  # words of one call of `carry_after` and `layer_states`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """A model and its parameters, as a pytree; and which tokens [V] begin a word, where that is to be scored."""

    model: Recurrent
    params: Params
    begins: jax.Array | None = None

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


def carry_after(network: Network, ids: np.ndarray, carry: Carry) -> Carry:
    """The carry of one row after ids [N], in one compiled program for any N."""
    for start in range(0, len(ids), READ):
        part = ids[start : start + READ]
        carry = _read(network, np.pad(part, (0, READ - len(part))), len(part), carry)
    return carry


@jax.jit
def _read(network, tokens, count, carry):
    """The carry after the first `count` of tokens [N]."""

    def step(place, carry):
        return network.features(tokens[place, None, None], carry)[1]

    return lax.fori_loop(0, count, step, carry)


def layer_states(network: Network, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The carry after each of ids [N], from zero: arrays [N, ...] by layer and name.

    `0.c` and `0.h` are those of an LSTM's first layer, `0.h` that of a layer whose carry is one array.
    """
    carry = network.carry()
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(ids), READ):
        part = ids[start : start + READ]
        carry, found = _walk(network, np.pad(part, (0, READ - len(part))), carry)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name if "." in name else f"{name}.h"
            parts.setdefault(name, []).append(np.asarray(leaf)[: len(part), 0])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@jax.jit
def _walk(network, tokens, carry):
    """The carry after tokens [N], and the carries after each of them [N, 1, H]."""

    def step(carry, token):
        _, carry = network.features(token[None, None], carry)
        return carry, carry

    return lax.scan(step, carry, tokens)
