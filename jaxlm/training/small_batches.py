"""A window's gradient from a few rows at a time: small batches, each with a carry and dropout masks of its own.

The gradients are averaged, and clipped once. So memory is that of a small batch, and masks that all rows of a batch
share, such as those of words and weights, vary within it (Yang et al. 2018, arXiv:1711.03953). Letters: `S` small
batches; `T` steps, `B` batch, `H` hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.ops.embedding import Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """What one gradient is computed of.

    Attributes:
      inputs, targets: [T, B].
      carry: before the window.
      number: of the small batch; None: there are none.
      noise: in place of what the step draws.
    """

    inputs: jax.Array
    targets: jax.Array
    carry: Carry
    number: jax.Array | None = None
    noise: Noise | None = None


Gradient = tuple[jax.Array, Carry, Params]  # the cost, the new carry, and the gradient of what is minimised


def gradient_of(of_part: Callable[[Part], Gradient], whole: Part, small_batch: int) -> Gradient:
    """The mean cost of all small batches, their carries as one, and the mean of their gradients.

    Args:
      of_part: the cost, the new carry and the gradient of one small batch.
      whole: the batch; noise that is given has an axis S before its own.
      small_batch: rows of a small batch; 0: the whole batch at once.
    """
    if not small_batch:
        return of_part(whole)
    T, B = whole.inputs.shape
    S = B // small_batch

    def columns(tokens: jax.Array) -> jax.Array:
        return jnp.moveaxis(tokens.reshape(T, S, -1), 1, 0)

    def add(total: tuple[jax.Array, Params], part: Part) -> tuple[tuple[jax.Array, Params], tuple[Carry, Params]]:
        cost, carry, grads = of_part(part)
        rows, dense = _apart(grads)
        total = jax.tree.map(lambda a, b: a + b / S, total, (cost, dense))
        return total, (carry, jax.tree.map(lambda leaf: leaf / S, rows))

    carry = jax.tree.map(lambda leaf: leaf.reshape(S, -1, *leaf.shape[1:]), whole.carry)
    parts = Part(columns(whole.inputs), columns(whole.targets), carry, jnp.arange(S), whole.noise)
    cost, _, grads = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (cost, _apart(grads)[1]))
    (cost, dense), (carry, rows) = lax.scan(add, zeros, parts)
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(T, B, -1), rows)
    return cost, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry), {**dense, **rows}


def _apart(grads: Params) -> tuple[Params, Params]:
    """Those gradients that are one row a token read, and the others."""
    rows = {name: part for name, part in grads.items() if isinstance(part, Rows)}
    return rows, {name: part for name, part in grads.items() if name not in rows}
