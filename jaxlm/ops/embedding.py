"""The embedding's rows: looked up, differentiated one row for each token read, and added back.

Letters: `T` steps, `B` batch, `E` width, `V` vocabulary. TensorFlow 1 gives the gradient of a lookup as IndexedSlices:
one row for each token, repeated where a token repeats. `Rows` is that: the global norm counts every occurrence by
itself, and an update touches the rows read and no others.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlm.distributed import collectives


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The rows of an embedding that a window reads, or their gradient or update: [T, B, E]."""

    values: jax.Array


def look_up(table: jax.Array | Rows, ids: jax.Array) -> jax.Array:
    """Looks up the embedding of each token; with gradients.

    Args:
      table: [V, E], whose rows may lie on other devices; or the rows already read.
      ids: tokens [T, B].

    Returns:
      [T, B, E].

    >>> look_up(jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([[1, 0]])).tolist()
    [[[2.0, 3.0], [0.0, 1.0]]]
    """
    return table.values if isinstance(table, Rows) else _look_up(table, ids)


@jax.custom_vjp
def _look_up(table, ids):
    own = collectives.own_words(ids, len(table))
    if own is ids:
        return table[ids]
    return collectives.sum_over_model(table.at[own].get(mode="fill", fill_value=0))


def _forward(table, ids):
    return _look_up(table, ids), (table, ids)


def _backward(saved, cotangent):
    # The cotangent is the same on every device of the model axis, so that each sums only its own words.
    table, ids = saved
    return jnp.zeros_like(table).at[collectives.own_words(ids, len(table))].add(cotangent.astype(table.dtype)), None


_look_up.defvjp(_forward, _backward)


def add_rows(table: jax.Array, ids: jax.Array, rows: Rows) -> jax.Array:
    """Adds rows to a table; every device adds the rows of all.

    Args:
      table: [V, E].
      ids: tokens [T, B], the places of the rows.
      rows: [T, B, E].

    Returns:
      The new table [V, E].
    """
    read, values = collectives.gather_rows((ids, rows.values))
    return table.at[collectives.own_words(read, len(table))].add(values)
