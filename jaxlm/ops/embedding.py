"""The embedding's rows: looked up, differentiated one row for each token read, and added back.

Letters: `T` steps, `B` batch, `E` width, `V` vocabulary. TensorFlow 1 gives the gradient of a lookup as IndexedSlices:
one row for each token, repeated where a token repeats. `Rows` is that: the global norm counts every occurrence by
itself, and an update touches the rows read and no others.
"""

from dataclasses import dataclass

import jax

from jaxlm.ops.sharing import everywhere


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The rows of an embedding that a window reads, or their gradient or update: [T, B, E]."""

    values: jax.Array


def look_up(table: jax.Array | Rows, ids: jax.Array) -> jax.Array:
    """Looks up the embedding of each token; with gradients.

    Args:
        table: [V, E]; or the rows already read.
        ids: tokens [T, B].

    Returns:
        [T, B, E].

    >>> array = jax.numpy.array
    >>> look_up(array([[0.0, 1.0], [2.0, 3.0]]), array([[1, 0]])).tolist()
    [[[2.0, 3.0], [0.0, 1.0]]]
    """
    return table.values if isinstance(table, Rows) else table[ids]


def add_rows(table: jax.Array, ids: jax.Array, rows: Rows) -> jax.Array:
    """Adds rows to a table.

    Args:
        table: [V, E].
        ids: tokens [T, B], the places of the rows.
        rows: [T, B, E].

    Returns:
        The new table [V, E].
    """
    # Devices send each other the rows, and not a table of every word.
    return table.at[everywhere(ids)].add(everywhere(rows.values))
