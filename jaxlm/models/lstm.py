"""The stacked LSTM language model: word embedding, LSTM layers of any widths, and a softmax layer.

The parameter tree: `embedding` [V, E]; `lstm[i]` with `kernel` [in + H, 4H] and `bias` [4H];
`softmax` with `kernel` [H, V] and `bias` [V].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config.config import Hyper, ModelConfig
from jaxlm.distributed import mesh as parallel
from jaxlm.ops.cudnn import lstm_cudnn
from jaxlm.ops.dropout import dropout
from jaxlm.ops.lstm import LSTMState, lstm, zero_state

Params = Any  # the tree described above: dicts and a list of arrays
Carry = tuple[LSTMState, ...]
RECURRENT_OPS = {"scan": lstm, "cudnn": lstm_cudnn}


def init_params(key: jax.Array, config: ModelConfig, hyper: Hyper) -> Params:
    """Fresh parameters: all uniform in +-init_scale, the softmax's bias too, but zero LSTM biases."""
    V, E, hidden = config.vocab_size, config.embedding_size, config.hidden_sizes
    keys = iter(jax.random.split(key, len(hidden) + 3))

    def uniform(*shape: int) -> jax.Array:
        return hyper.init_scale * jax.random.uniform(next(keys), shape, minval=-1.0)

    return {
        "embedding": uniform(V, E),
        "lstm": [{"kernel": uniform(width + H, 4 * H), "bias": jnp.zeros(4 * H)}
                 for width, H in zip((E, *hidden), hidden, strict=False)],
        "softmax": {"kernel": uniform(hidden[-1], V), "bias": uniform(V)},
    }


def zero_carry(params: Params, batch_size: int) -> Carry:
    """The carry before the first token, one state a layer."""
    return tuple(zero_state(batch_size, layer["bias"].shape[0] // 4, layer["bias"].dtype)
                 for layer in params["lstm"])


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """tokens [T, B] -> their embeddings [T, B, E]."""
    return parallel.look_up(params["embedding"], tokens)


def apply(params: Params, hyper: Hyper, embedded: jax.Array, carry: Carry,
          dropout_key: jax.Array | None = None, recurrent_op: str = "scan") -> tuple[jax.Array, Carry]:
    """Embedded tokens [T, B, E] and the carry -> the last layer's outputs [T, B, H] and the new carry.

    With a key, dropout falls on the embedded input and on each layer's output, never on the recurrence;
    without one there is none.
    """

    def drop(x: jax.Array, keep: jax.Array | float, place: int) -> jax.Array:
        return x if dropout_key is None else dropout(jax.random.fold_in(dropout_key, place), x, keep,
                                                     parallel.first_row(x.shape[1]))

    layer_op = RECURRENT_OPS[recurrent_op]
    x = drop(embedded, hyper.keep_embedding, 0)
    new_carry = []
    for place, (layer, state) in enumerate(zip(params["lstm"], carry, strict=True), start=1):
        x, state = layer_op(x, layer["kernel"], layer["bias"], state, hyper.forget_bias)
        x = drop(x, hyper.keep_output, place)
        new_carry.append(state)
    return x, tuple(new_carry)
