"""The recurrent language model: an embedding, a stack of layers of one kind, and a head.

The parameter tree: `embedding` [V, E]; the layers in a list under the name of their kind, as in `lstm[i].kernel`;
`softmax.kernel` [H, V] (unless tied) and `softmax.bias` [V]. `model` is the config's model, a pytree of its numbers.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

import jaxlm.config.pytrees  # noqa: F401 (makes the model's config a pytree)
from jaxlm.config.config import kind_of
from jaxlm.config.models import Recurrent
from jaxlm.distributed import collectives
from jaxlm.models import gru, lstm, mingru
from jaxlm.models.cell import Cell, Params, State, uniform
from jaxlm.models.heads import init_head
from jaxlm.ops.dropout import apply_mask, draw_mask
from jaxlm.ops.embedding import Rows, look_up

CELLS: dict[str, Cell] = {"lstm": lstm.CELL, "gru": gru.CELL, "mingru": mingru.CELL}  # by the names of config's MODELS

Carry = tuple[State, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """What is random in a window: for each place the units that dropout keeps, bool [T, B, D]; None: no dropout."""

    embedding: jax.Array | None
    outputs: tuple[jax.Array | None, ...]  # one for each layer


def init_params(model: Recurrent, key: jax.Array) -> Params:
    """Fresh parameters: uniform in +-init_scale, the softmax's bias too; the layers' biases are zero."""
    cell, name = _cell(model)
    widths = (model.embedding_size, *model.hidden_sizes)
    embedding_key, *layer_keys, kernel_key, bias_key = jax.random.split(key, len(model.hidden_sizes) + 3)
    return {
        "embedding": uniform(model, embedding_key, model.vocab_size, model.embedding_size),
        name: [cell.init(model, one, inputs, width)
               for one, inputs, width in zip(layer_keys, widths, model.hidden_sizes, strict=False)],
        "softmax": init_head(model, kernel_key, bias_key),
    }


def zero_carry(model: Recurrent, batch_size: int, dtype: Any = jnp.float32) -> Carry:
    """The carry before the first token, one state a layer."""
    cell, _ = _cell(model)
    return tuple(cell.state(batch_size, width, dtype) for width in model.hidden_sizes)


def param_specs(model: Recurrent) -> Params:
    """Where the parameters lie on a mesh: the embedding and the softmax by their words, the layers on every device."""
    kernel = {} if model.tied else {"kernel": collectives.WORDS_LAST}
    return {"embedding": collectives.WORDS, _cell(model)[1]: collectives.SAME,
            "softmax": {**kernel, "bias": collectives.WORDS}}


def gates_per_kernel(model: Recurrent) -> int:
    """How many matrices stand side by side in each of a layer's kernels."""
    return _cell(model)[0].gates


def is_inner_matrix(model: Recurrent, params: Params) -> Params:
    """For each parameter whether it is a kernel of a layer: not the embedding, the softmax or a bias."""
    name = _cell(model)[1]
    nothing = jax.tree.map(lambda leaf: False, params)
    return {**nothing, name: jax.tree.map(lambda leaf: leaf.ndim == 2, params[name])}


def is_random(model: Recurrent) -> bool:
    """Whether `draw_noise` draws anything."""
    return model.keep_embedding is not None or model.keep_output is not None


def draw_noise(model: Recurrent, key: jax.Array | None, steps: int, rows: int) -> Noise:
    """What is random in one window of `steps` x `rows`, the rows being this device's part of the batch.

    The key is the window's own; it may be None where nothing is random.
    """

    def mask(place: int, keep: jax.Array | float | None, width: int) -> jax.Array | None:
        if keep is None or key is None:
            return None
        return draw_mask(jax.random.fold_in(key, place), keep, (steps, rows, width), collectives.first_row(rows))

    return Noise(mask(0, model.keep_embedding, model.embedding_size),
                 tuple(mask(place, model.keep_output, width) for place, width in enumerate(model.hidden_sizes, 1)))


def no_noise(model: Recurrent) -> Noise:
    """The noise of evaluation: none."""
    return Noise(None, (None,) * len(model.hidden_sizes))


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """tokens [T, B] -> their rows of the embedding [T, B, E]; where they have been read already, those."""
    return look_up(params["embedding"], tokens)


def read_rows(params: Params, tokens: jax.Array) -> Params:
    """The parameters with the embedding's rows that tokens [T, B] read in its place."""
    return {**params, "embedding": Rows(embed(params, tokens))}


def features(model: Recurrent, params: Params, noise: Noise, x: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """Embedded tokens [T, B, E] and the carry -> the last layer's outputs [T, B, H] and the new carry.

    Dropout falls on the embedded input and on each layer's output, never on the recurrence (arXiv:1409.2329).
    """
    cell, name = _cell(model)
    x = apply_mask(x, noise.embedding, model.keep_embedding)
    new_carry = []
    for layer, mask, state in zip(params[name], noise.outputs, carry, strict=True):
        x, state = cell.apply(model, layer, x, state)
        x = apply_mask(x, mask, model.keep_output)
        new_carry.append(state)
    return x, tuple(new_carry)


def exact(model: Recurrent) -> Recurrent:
    """The model as evaluation runs it: float32 on any device, whatever trained it."""
    plain = {item.name: item.default for item in fields(model) if item.name in ("compute_dtype", "recurrent_op")}
    return replace(model, **plain)


def _cell(model: Recurrent) -> tuple[Cell, str]:
    name = kind_of("model", model)
    return CELLS[name], name
