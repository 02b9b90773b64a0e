"""What a kind of recurrent layer is: three functions and a number. Each kind has a file of its own beside this one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.config.models import Recurrent

Params = dict[str, Any]  # nested dicts and lists of arrays
State = Any  # one layer's carry: a pytree of arrays [B, H]


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent layer, over a whole sequence. `model` is the config's model.

    Attributes:
      init: (model, key, input width, H) -> the layer's parameters.
      state: (B, H, dtype) -> the carry before the first token.
      apply: (model, params, x [T, B, E], carry) -> (outputs [T, B, H], new carry).
      gates: how many matrices stand side by side in each of the layer's kernels (its parameters with two axes whose
        name ends in kernel), for optimisers of matrices; or a function of the model.
      change_recurrent: (params, H, function) -> the parameters with the function of their recurrent kernel
        [H, gates * H] in its place; None where nothing reads h (the config's kind then has no `recurrent_gates`).

    Where the config's kind `drops_state`, `apply` also takes `kept`: which units of h the gates read, bool [B, H].
    Where it has the field keep_update, `updated` likewise: which units of the cell are written.
    In windows of random length it takes `length=`: how many of the T steps count, traced; the new carry is that after
    them (`ops/bounded_scan.py`).
    """

    init: Callable[[Any, jax.Array, int, int], Params]
    state: Callable[[int, int, Any], State]
    apply: Callable[..., tuple[jax.Array, State]]
    gates: int | Callable[[Any], int]
    change_recurrent: Callable[[Params, int, Callable[[jax.Array], jax.Array]], Params] | None = None


def uniform(model: Recurrent, key: jax.Array, *shape: int) -> jax.Array:
    """Initial values, uniform in +-init_scale."""
    return model.init_scale * jax.random.uniform(key, shape, minval=-1.0)
