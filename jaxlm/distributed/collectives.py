"""The axes of a mesh, where arrays lie on it, and the collectives. Without a mesh each collective is the identity.

A batch's rows lie over one axis, the vocabulary over another, the members of a sweep over a third. Each device runs the
one step on its own part (`jax.shard_map`), and values travel between devices through these functions alone. Letters as
everywhere; on a device `B` and `V` are its shares of the batch and of the vocabulary.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

DATA, MODEL, MEMBERS = "data", "model", "members"
SAME = P()  # whole on every device
ROWS, CARRY = P(None, DATA), P(DATA)  # [T, B] and [B, H] by their rows
WORDS, WORDS_LAST = P(MODEL), P(None, MODEL)  # [V, ...] and [H, V] by their words
MEMBER = P(MEMBERS)  # [M, ...] by members

Tree = TypeVar("Tree")


def sum_over_data(tree: Tree) -> Tree:
    """Sums over the devices that hold other rows."""
    return lax.psum(tree, DATA) if _present(DATA) else tree


def gather_rows(tree: Tree) -> Tree:
    """Concatenates each [T, B / devices, ...] over the devices that hold other rows: [T, B, ...]."""
    return lax.all_gather(tree, DATA, axis=1, tiled=True) if _present(DATA) else tree


def all_rows(rows: int) -> int:
    """B, given this device's number of rows."""
    return rows * lax.axis_size(DATA) if _present(DATA) else rows


def first_row(rows: int) -> jax.Array | int:
    """The index in the whole batch of this device's first row."""
    return rows * lax.axis_index(DATA) if _present(DATA) else 0


def sum_over_model(tree: Tree) -> Tree:
    """Sums over the devices that hold other words."""
    return lax.psum(tree, MODEL) if _present(MODEL) else tree


def max_over_model(x: jax.Array) -> jax.Array:
    """The largest over the devices that hold other words."""
    return lax.pmax(x, MODEL) if _present(MODEL) else x


def own_words(ids: jax.Array, words: int) -> jax.Array:
    """The place of each id within this device's part of the vocabulary.

    Args:
      ids: integers of any shape.
      words: how many words this device holds.

    Returns:
      Places of ids' shape; `words`, which is out of range, for ids that other devices hold.
    """
    if not _present(MODEL):
        return ids
    local = ids - words * lax.axis_index(MODEL)
    return jnp.where((local >= 0) & (local < words), local, words)


def own_rows(table: jax.Array, words: int) -> jax.Array:
    """This device's rows of a table [V, ...] that every device holds whole; `words` of them, zeros beyond V."""
    if not _present(MODEL):
        return table
    return table.at[words * lax.axis_index(MODEL) + jnp.arange(words)].get(mode="fill", fill_value=0)


def _present(axis: str) -> bool:
    return axis in jax.sharding.get_abstract_mesh().manual_axes and lax.axis_size(axis) > 1
