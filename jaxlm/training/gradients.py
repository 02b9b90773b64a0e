"""Gradients of parameters, dense or, for the embedding, one row a token: their norm and their application."""

import jax
import jax.numpy as jnp

from jaxlm.models.recurrent import Params
from jaxlm.ops.embedding import Rows, add_rows


def dense(grads: Params, params: Params, tokens: jax.Array) -> Params:
    """The gradient with rows, those of tokens [T, B], added up to a whole table."""
    return {
        name: add_rows(jnp.zeros_like(params[name]), tokens, part) if isinstance(part, Rows) else part
        for name, part in grads.items()
    }


def apply_updates(params: Params, updates: Params, tokens: jax.Array) -> Params:
    """params + updates; updates that are rows belong to tokens [T, B]."""
    return {
        name: add_rows(part, tokens, updates[name])
        if isinstance(updates[name], Rows)
        else jax.tree.map(jnp.add, part, updates[name])
        for name, part in params.items()
    }
