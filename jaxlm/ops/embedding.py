"""The embedding's gradient, one row for each token read.

TensorFlow 1 gives the gradient of a lookup as IndexedSlices: one row for each token, repeated where
a token repeats. `Rows` is that: the global norm counts every occurrence by itself, and an update
touches no row but those that are read. Letters: `T` steps, `B` batch, `E` width, `V` vocabulary.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from jaxlm.ops.devices import batch_devices


class Rows(NamedTuple):
    """The rows of an embedding that a window reads, or their gradient or update."""

    values: Float[Array, "T B E"]


def add_rows(
    table: Float[Array, "V E"],
    ids: Int[Array, "T B"],
    rows: Rows,
) -> Float[Array, "V E"]:
    """Adds rows to a table.

    Args:
        table: The table.
        ids: The place of each row; a place may repeat.
        rows: The rows.

    Returns:
        The table with the rows added.
    """
    values = rows.values
    if batch_devices() > 1:  # devices send each other the rows, and not a table of every word
        ids, values = (jax.lax.with_sharding_constraint(array, jax.P()) for array in (ids, values))
    return table.at[ids].add(values)
