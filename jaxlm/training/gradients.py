"""A gradient over devices, its global norm, and its application; dense or, for the embedding, one row a token."""

import jax
import jax.numpy as jnp
import optax

from jaxlm.distributed import collectives
from jaxlm.models.cell import Params
from jaxlm.ops.embedding import Rows, add_rows


def _is_rows(node: object) -> bool:
    return isinstance(node, Rows)


def summed(grads: Params) -> Params:
    """The gradient of the whole batch. Rows stay apart: they are those of this device's tokens."""
    dense = collectives.sum_over_data({name: part for name, part in grads.items() if not _is_rows(part)})
    return {**grads, **dense}


def global_norm(grads: Params, specs: Params) -> jax.Array:
    """The 2-norm of all gradients, of which devices may hold parts; `specs` says which leaves lie by words."""

    def squares(spec: jax.P, part: object) -> object:
        total = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), part)
        if _is_rows(part):
            return collectives.sum_over_data(total)
        return collectives.sum_over_model(total) if spec != collectives.SAME else total

    return jnp.sqrt(optax.tree.sum(jax.tree.map(squares, specs, grads, is_leaf=lambda node: isinstance(node, jax.P))))


def dense(grads: Params, params: Params, tokens: jax.Array) -> Params:
    """The gradient with rows added up to a whole table; those of all devices, for tokens [T, B]."""
    return {
        name: add_rows(jnp.zeros_like(params[name]), tokens, part) if _is_rows(part) else part
        for name, part in grads.items()
    }


def apply_updates(params: Params, updates: Params, tokens: jax.Array) -> Params:
    """params + updates; those that are rows belong to tokens [T, B]."""
    return {
        name: add_rows(part, tokens, updates[name])
        if _is_rows(updates[name])
        else jax.tree.map(jnp.add, part, updates[name])
        for name, part in params.items()
    }
