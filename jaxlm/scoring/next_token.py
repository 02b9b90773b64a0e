"""What a model expects after a text: the carry that is left, and the next token's probabilities.

Letters: `S` texts side by side, `n` tokens, `V` vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.models.stack import Carry
from jaxlm.scoring.token_scores import Network

LEAST_LENGTH = 256  # tokens of the shortest program that reads a text


def carry_after(network: Network, ids: np.ndarray) -> Carry:
    """The carry of one text after some tokens, from zero.

    Texts are padded to few lengths, so that few programs are compiled.

    Args:
        network: The model.
        ids: Ids [n].
    """
    length = max(LEAST_LENGTH, 1 << len(ids).bit_length())
    return _carry_after(network, np.pad(ids, (0, length - len(ids))), len(ids))


@jax.jit
def _carry_after(
    network,
    tokens,
    count,
):
    """The carry after the first `count` of the tokens [n]."""

    def step(place, carry):
        return network.features(tokens[place, None, None], carry)[1]

    return lax.fori_loop(0, count, step, network.carry())


def repeated(carry: Carry, texts: int) -> Carry:
    """The carry of S texts that begin alike.

    Args:
        carry: The carry of one text.
        texts: S.
    """
    # By NumPy: JAX would compile a program for each shape of the carry.
    return jax.tree.map(lambda leaf: jnp.asarray(np.repeat(leaf, texts, 0)), carry)


def next_logits(
    network: Network,
    token: Array,
    carry: Carry,
) -> tuple[Array, Carry]:
    """Reads one token of each text.

    Args:
        network: The model.
        token: Ids, int32 [S].
        carry: The carry before them.

    Returns:
        Logits [S, V] of the next token, and the carry after `token`.
    """
    features, carry = network.features(token[None], carry)
    return network.logits(features[0]), carry


@jax.jit
def next_probabilities(
    network,
    token,
    carry,
):
    """Reads one token of one text.

    Args:
        network: The model.
        token: Its id, int32 [1].
        carry: The carry before it.

    Returns:
        The probabilities [V] of the next token, and the carry after `token`.
    """
    logits, carry = next_logits(network, token, carry)
    return jax.nn.softmax(logits[0]), carry


def probabilities_after(network: Network, ids: np.ndarray) -> np.ndarray:
    """The probabilities [V] of the token after a text.

    Args:
        network: The model.
        ids: Ids [n] of the text, n >= 1.
    """
    probabilities, _ = next_probabilities(network, ids[-1:], carry_after(network, ids[:-1]))
    return np.asarray(probabilities)
