"""Many runs in one program: members of equal shapes with their own numbers and seeds.

Letters: `M` members. One member's step is `train_step`; no member reads what another one computes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Scalar

from jaxlm.config.recipe import Recipe
from jaxlm.data.windows import Windows
from jaxlm.distributed.mesh import MEMBER, place
from jaxlm.training.step import Metrics, TrainState, traced, train_windows

Members = tuple[Recipe, TrainState]  # every leaf with an axis M before its own


def stacked(
    recipe: Recipe,
    state: TrainState,
    size: int,
    mesh: Mesh | None,
) -> Members:
    """Members that all have the same recipe and state, spread over the devices of a mesh.

    Args:
        recipe: Their recipe.
        state: Their state.
        size: How many there are.
        mesh: The devices (`mesh.members_mesh`); None: one device.
    """
    return place(mesh, _repeated((traced(recipe), state), size), MEMBER)


@partial(jax.jit, static_argnames="size")
def _repeated(tree: Any, size: int) -> Any:
    """Each leaf so many times on a new leading axis, by one program for all leaves."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * size), tree)


@partial(jax.jit, donate_argnums=0)
def with_member(
    members: Members,
    slot: Scalar | int,
    recipe: Recipe,
    state: TrainState,
) -> Members:
    """The members with another one in a slot.

    Args:
        members: The members, donated.
        slot: The place of the new one.
        recipe: Its recipe.
        state: Its state.
    """
    return jax.tree.map(lambda column, leaf: column.at[slot].set(leaf), members, (recipe, state))


def member_at(tree: Any, slot: int) -> Any:
    """One member's leaves, each from the device that holds it.

    Indexing a leaf that is spread over devices would be a program with a collective for each leaf.
    Many such programs in flight at once can wait for each other's devices for ever where cores are
    few.

    Args:
        tree: Any tree whose leaves have a leading axis M.
        slot: The member's place on it.
    """

    def on_one_device(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == 1

    def leaf_at(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf[slot]
        for shard in leaf.addressable_shards:
            first = shard.index[0].start or 0
            if first <= slot < first + len(shard.data):
                return shard.data[slot - first]
        raise IndexError(slot)

    if all(map(on_one_device, jax.tree.leaves(tree))):
        return _row(tree, slot)
    return jax.tree.map(leaf_at, tree)


@jax.jit
def _row(tree: Any, slot: Scalar | int) -> Any:
    """One place of every leaf's leading axis, by one program for all leaves."""
    return jax.tree.map(lambda leaf: leaf[slot], tree)


@partial(
    jax.jit,
    static_argnames=("bptt_length", "small_batch", "vmapped", "mesh"),
    donate_argnames="states",
)
def train_members(
    recipes: Recipe,
    states: TrainState,
    tokens: Int[Array, "R B"],
    windows: Windows,
    counts: Int[Array, " M"],
    ranked: Int[Array, " V"] | None = None,
    *,
    bptt_length: int,
    vmapped: bool,
    small_batch: int = 0,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains windows of every member, in one call.

    A window whose cost or gradient is not finite makes no update, and its member continues with the
    next window.

    Args:
        recipes: Every leaf has an axis M.
        states: Likewise; donated.
        tokens: The text at hand [R, B], the same for all.
        windows: Where each window lies; arrays [M, W].
        counts: How many windows each member trains; with `vmapped` all train as many as the first.
        ranked: All ids, the most frequent word's first; None: they are in this order.
        bptt_length: Steps T; of random lengths the longest.
        vmapped: Whether members share each operation, or follow one another.
        small_batch: Rows that one gradient is computed of; 0: all.
        mesh: The devices, each of which has some of the members; None: one device.

    Returns:
        The new states, and metrics [M, W].
    """

    def train_one(
        recipe: Recipe,
        state: TrainState,
        windows: Windows,
        count: Scalar | int,
    ) -> tuple[TrainState, Metrics]:
        return train_windows(
            recipe,
            state,
            tokens,
            windows,
            count,
            None,
            ranked,
            bptt_length=bptt_length,
            small_batch=small_batch,
        )

    def all_of_a_device(
        recipes,
        states,
        windows,
        counts,
    ):
        if vmapped:
            return jax.vmap(train_one, in_axes=(0, 0, 0, None))(recipes, states, windows, counts[0])
        return lax.map(lambda member: train_one(*member), (recipes, states, windows, counts))

    if mesh is not None:  # each device runs its own members, which share nothing
        all_of_a_device = jax.shard_map(
            all_of_a_device, mesh=mesh, in_specs=MEMBER, out_specs=MEMBER, check_vma=False
        )
    return all_of_a_device(recipes, states, windows, counts)
