"""Many runs in one program: members of equal shapes, which differ in their numbers, seeds and parameters.

Letters: `M` members. One member's step is `train_step`, and nothing that a member does reaches another.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Scalar

from jaxlm.config.config import Recipe
from jaxlm.data.windows import Windows
from jaxlm.distributed.mesh import MEMBER, place
from jaxlm.training.step import Metrics, TrainState, traced, train_windows

Members = tuple[Recipe, TrainState]  # every leaf with an axis M before its own


def stacked(recipe: Recipe, state: TrainState, size: int, mesh: Mesh | None) -> Members:
    """`size` equal members, spread over the devices of a mesh."""
    columns = jax.tree.map(
        lambda leaf: jnp.stack([jnp.asarray(leaf)] * size), (traced(recipe), state)
    )
    return place(mesh, columns, MEMBER)


@partial(jax.jit, donate_argnums=0)
def with_member(members: Members, slot: Scalar | int, recipe: Recipe, state: TrainState) -> Members:
    """The members with another one in a slot; the old arrays are donated."""
    return jax.tree.map(lambda column, one: column.at[slot].set(one), members, (recipe, state))


def member_at(tree: Any, slot: int) -> Any:
    """One member's leaves of any tree with an axis M, each from the device that holds it.

    Indexing a leaf that is spread over devices would be a program with a collective for each leaf. Many such programs
    in flight at once can wait for each other's devices for ever where cores are few.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf[slot]
        shards = ((shard.index[0].start or 0, shard.data) for shard in leaf.addressable_shards)
        return next(
            data[slot - first] for first, data in shards if first <= slot < first + len(data)
        )

    return jax.tree.map(one, tree)


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
    *,
    bptt_length: int,
    vmapped: bool,
    small_batch: int = 0,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Windows of every member, in one call.

    Members share each operation (`vmapped`) or follow one another; with a mesh each device has some of them. Of a
    window whose cost or gradient is not finite no update is made, and the member continues with the next.

    Recipes, states (donated) and windows have an axis M, and so have the new states and the metrics [M, W]. `counts`
    says how many windows each member trains; with `vmapped` all train as many as the first.
    """

    def one(
        recipe: Recipe, state: TrainState, windows: Windows, count: Scalar | int
    ) -> tuple[TrainState, Metrics]:
        return train_windows(
            recipe,
            state,
            tokens,
            windows,
            count,
            None,
            bptt_length=bptt_length,
            small_batch=small_batch,
        )

    def all_of_a_device(recipes, states, tokens, windows, counts):
        if vmapped:
            return jax.vmap(one, in_axes=(0, 0, 0, None))(recipes, states, windows, counts[0])
        return lax.map(lambda member: one(*member), (recipes, states, windows, counts))

    if mesh is not None:  # each device runs its own members, which share nothing
        where = (MEMBER, MEMBER, P(), MEMBER, MEMBER)
        all_of_a_device = jax.shard_map(
            all_of_a_device, mesh=mesh, in_specs=where, out_specs=MEMBER, check_vma=False
        )
    return all_of_a_device(recipes, states, tokens, windows, counts)
