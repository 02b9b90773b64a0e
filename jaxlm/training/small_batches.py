"""A window's gradient from a few rows at a time: small batches, each with a carry and dropout masks of its own.

The gradients are averaged, and clipped once. So memory is that of a small batch, and masks that all rows of a batch
share, such as those of words and weights, vary within it (Yang et al. 2018, arXiv:1711.03953). Letters: `S` small
batches, of this device's rows; `T` steps, `B` batch, `H` hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxlm.config.settings import TrainConfig
from jaxlm.distributed import collectives
from jaxlm.errors import JaxlmError
from jaxlm.models.cell import Params
from jaxlm.models.noise import Noise
from jaxlm.models.stack import Carry
from jaxlm.ops.embedding import Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """What one gradient is computed of.

    Attributes:
      inputs, targets: [T, B].
      carry: before the window.
      number: of the small batch in the whole batch; None: there are none.
      first: number of the first row within its small batch; None: within the whole batch.
      noise: in place of what the step draws.
    """

    inputs: jax.Array
    targets: jax.Array
    carry: Carry
    number: jax.Array | int | None = None
    first: jax.Array | int | None = None
    noise: Noise | None = None


def check_small_batch(mesh: Mesh | None, counts: TrainConfig) -> None:
    """Raises JaxlmError where a device would have several small batches of which one is not whole."""
    devices = 1 if mesh is None else mesh.shape[collectives.DATA]
    rows, small = counts.batch_size // devices, counts.small_batch
    if small and rows % small and small % rows:
        raise JaxlmError(
            f"small batches of {small} rows do not lie on {devices} devices of {rows} rows each: take a "
            f"small_batch or a number of devices such that one of the two divides the other"
        )


Gradient = tuple[jax.Array, Carry, Params]  # the cost, the new carry, and the gradient of what is minimised


def gradient_of(of_part: Callable[[Part], Gradient], whole: Part, small_batch: int) -> Gradient:
    """The mean cost of all small batches, their carries as one, and the mean of their gradients.

    Args:
      of_part: the cost, the new carry and the gradient of one small batch.
      whole: of this device's rows; noise that is given has an axis S before its own.
      small_batch: rows b; 0: the whole batch at once.
    """
    if not small_batch:
        return of_part(whole)
    rows = whole.inputs.shape[1]
    count, start = max(1, rows // small_batch), collectives.first_row(rows)

    def columns(tokens: jax.Array) -> jax.Array:
        return jnp.moveaxis(tokens.reshape(len(tokens), count, -1), 1, 0)

    parts = Part(
        columns(whole.inputs),
        columns(whole.targets),
        jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), whole.carry),
        start // small_batch + jnp.arange(count),
        jnp.full(count, start % small_batch),
        whole.noise,
    )

    def add(total: tuple[jax.Array, Params], part: Part) -> tuple[tuple[jax.Array, Params], tuple[Carry, Params]]:
        cost, carry, grads = of_part(part)
        apart, dense = _apart(grads)
        total = jax.tree.map(lambda a, b: a + b / count, total, (cost, dense))
        return total, (carry, jax.tree.map(lambda leaf: leaf / count, apart))

    cost, _, grads = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (cost, _apart(grads)[1]))
    (cost, dense), (carry, apart) = lax.scan(add, zeros, parts)
    apart = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], rows, -1), apart)
    return cost, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry), {**dense, **apart}


def _apart(grads: Params) -> tuple[Params, Params]:
    """Those gradients that are one row a token read, and the others."""
    rows = {name: part for name, part in grads.items() if isinstance(part, Rows)}
    return rows, {name: part for name, part in grads.items() if name not in rows}
