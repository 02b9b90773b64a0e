"""The state of every layer after each word of a text."""

import jax
import numpy as np
from jax import lax

from jaxlm.scoring.network import Network

CHUNK = 256  # words of one call


def layer_states(network: Network, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The carry after each of ids [N], from zero: arrays [N, H] by layer and name.

    `0.c` and `0.h` are those of an LSTM's first layer, `0.h` that of a GRU's.
    """
    carry = network.carry()
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        carry, found = _walk(network, np.pad(chunk, (0, CHUNK - len(chunk))), carry)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name if "." in name else f"{name}.h"
            parts.setdefault(name, []).append(np.asarray(leaf)[: len(chunk), 0])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@jax.jit
def _walk(network, tokens, carry):
    """The carry after tokens [N], and those after each of them [N, 1, H]."""

    def step(carry, token):
        _, carry = network.features(token[None, None], carry)
        return carry, carry

    return lax.scan(step, carry, tokens)
