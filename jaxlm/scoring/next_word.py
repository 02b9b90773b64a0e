"""The probability of every word after a text."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.models.recurrent import Params, Recurrent


def next_word(model: Recurrent, params: Params, ids: np.ndarray) -> np.ndarray:
    """The probabilities [V] of the word after a text's ids [N], of which there is at least one.

    The text is padded to a power of two, so that texts of many lengths share a few compiled programs.
    """
    length = max(16, 1 << (len(ids) - 1).bit_length())
    return np.asarray(
        _next_word(model, params, jnp.asarray(np.pad(ids, (0, length - len(ids)))[:, None]), len(ids) - 1)
    )


@jax.jit
def _next_word(model, params, tokens, last):
    """Probabilities [V] of the word after tokens [T, 1], of which those after `last` are padding."""
    carry = stack.zero_carry(model, 1, params["embedding"].dtype)
    features, _ = stack.features(stack.exact(model), params, no_noise(model), stack.embed(params, tokens), carry)
    return jax.nn.softmax(heads.logits(model, params, features[last, 0]))
