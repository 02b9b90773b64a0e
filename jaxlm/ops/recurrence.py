"""A recurrence whose cell multiplies by matrices: the gradient of each is one product over all steps.

Differentiating a scan adds an array of the matrix's size at each step instead. Letters: `T` steps, `B` batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxlm.ops.product import product, product_over_rows
from jaxlm.ops.scans import Length, Units, scan

LinearMap = Callable[[str, Array], Array]  # (a matrix's name, [B, in]) -> [B, out]
LinearCell = Callable[[LinearMap, Any, Array, Any], tuple[Any, Array]]
Inputs = Float[Array, "T B *E"]
Matrices = dict[str, Float[Array, "_ _"]]  # [in, out] each, by name


def recurrence_reference(
    cell: LinearCell, x: Inputs, matrices: Matrices, others: Any, state: Any, length: Length = None
) -> tuple[Units, Any]:
    """`recurrence` written plainly: a scan of the cell, differentiated by JAX."""

    def step(state: Any, x: Float[Array, "B *E"]) -> tuple[Any, Float[Array, "B H"]]:
        return cell(lambda name, a: a @ matrices[name], state, x, others)

    final, y = scan(step, state, x, length)
    return y, final


def recurrence(
    cell: LinearCell,
    x: Inputs,
    matrices: Matrices,
    others: Any,
    state: Any,
    length: Length,
    dtype: Any,
) -> tuple[Units, Any]:
    """Runs a cell over time: its outputs, and the new carry.

    The cell is (linear, state, x [B, ...], others) -> (new state, output [B, H]), and multiplies by a matrix as
    `linear(name, a)`, by each once a step. The products multiply in `dtype` and sum in float32 or wider.
    """
    return _run(cell, dtype, x, matrices, others, state, length)  # pyright: ignore (a custom_vjp has no type)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(cell, dtype, x, matrices, others, state, length):
    return _scan(cell, dtype, matrices, None, x, others, state, length)[0]


def _forward(cell, dtype, x, matrices, others, state, length):
    # Each product has zeros of its own added at each step: their gradient is the product's, step by step.
    (T, B), wide = x.shape[:2], jnp.promote_types(dtype, jnp.float32)
    zeros = {name: jnp.zeros((T, B, matrix.shape[-1]), wide) for name, matrix in matrices.items()}
    done, back, operands = jax.vjp(
        partial(_scan, cell, dtype, matrices), zeros, x, others, state, length, has_aux=True
    )
    return done, (back, operands, matrices)


def _backward(cell, dtype, saved, cotangents):
    back, operands, matrices = saved
    of_products, dx, *rest = back(cotangents)
    dmatrices = {
        name: product_over_rows(operands[name], of_products[name], dtype).astype(matrix.dtype)
        for name, matrix in matrices.items()
    }
    return dx, dmatrices, *rest


_run.defvjp(_forward, _backward)


def _scan(
    cell: LinearCell,
    dtype: Any,
    matrices: Matrices,
    added: Any,
    x: Inputs,
    others: Any,
    state: Any,
    length: Length,
) -> tuple[tuple[Units, Any], dict[str, Float[Array, "T B _"]]]:
    """((outputs, new carry), each product's operand at each step). `added`: to each product [T, B, out], or None."""
    matrices = {
        name: matrix.astype(dtype) for name, matrix in matrices.items()
    }  # cast once, not at each step

    def step(state, inputs):
        x, added = inputs
        operands = {}

        def linear(name, a):
            operands[name] = a
            z = checkpoint_name(product(a, matrices[name], dtype), "product")
            if added is None:
                return z
            return z + added[name]

        state, y = cell(linear, state, x, others)
        return state, (y, operands)

    # The backward scan computes again what follows from the products: keeping it would be slower.
    step = jax.checkpoint(
        step, policy=jax.checkpoint_policies.save_only_these_names("product"), prevent_cse=False
    )
    final, (y, operands) = scan(step, state, (x, added), length)
    return (y, final), operands
