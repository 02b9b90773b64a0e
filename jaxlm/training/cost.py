"""What a step minimises: the window's nats, and the penalties that its recipe adds; reported are the nats alone.

Letters: `T` steps, `B` batch, `H` hidden width.
"""

import jax
import jax.numpy as jnp

from jaxlm.config.config import Recipe
from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry


def minimised(
    recipe: Recipe,
    params: Params,
    noise: Noise,
    inputs: jax.Array,
    targets: jax.Array,
    carry: Carry,
    length: jax.Array | None = None,
    exact: jax.Array | bool = False,
) -> tuple[jax.Array, tuple[jax.Array, Carry]]:
    """What a step minimises.

    AR and TAR (Merity et al. 2017, arXiv:1708.01009) are per token, as the nats are: where the cost is summed over the
    steps, so are they. L2 is added as it is.

    Args:
        recipe: model and optimiser.
        params: the parameters, or with the embedding's rows read in its place.
        noise: of the window.
        inputs, targets: [T, B].
        carry: before the window.
        length: how many of the steps count, traced; None: all.
        exact: whether all words count where the noise has words drawn, traced.

    Returns:
        What is minimised; and the cost in nats, summed over T and averaged over B, with the new carry.
    """
    model, optimizer, (T, B) = recipe.model, recipe.optimizer, inputs.shape
    steps = T if length is None else length
    counted = None if length is None else jnp.broadcast_to((jnp.arange(T) < length)[:, None], (T, B))
    kept, raw, features, new_carry = stack.read(model, params, noise, inputs, carry, length)
    weights = None if counted is None else counted.astype(jnp.float32)
    cost = total = heads.summed_nats(model, kept, features, targets, weights, noise.latents, noise.drawn, exact) / B
    if optimizer.activation_penalty is not None:
        total += optimizer.activation_penalty * _squares(features, counted) / (B * features.shape[-1])
    if optimizer.temporal_penalty is not None and T > 1:
        between = _squares(raw[1:] - raw[:-1], None if counted is None else counted[1:]) / (B * raw.shape[-1])
        total += optimizer.temporal_penalty * between * (steps / jnp.maximum(steps - 1, 1))
    if optimizer.cost == "mean":
        total /= steps
    if optimizer.l2_penalty is not None:
        total += optimizer.l2_penalty / 2 * sum(_squares(leaf) for leaf in jax.tree.leaves(params))
    return total, (cost, new_carry)


def _squares(x: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """The sum of squares; of x [T, B, H], those at counted [T, B]."""
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return squares.sum() if counted is None else jnp.where(counted[..., None], squares, 0).sum()
