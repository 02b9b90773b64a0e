"""A recurrence whose cell multiplies by matrices, each of whose gradients is one product.

Differentiating a scan adds an array of the matrix's size at each step instead. Letters: `T` steps,
`B` batch, `E` input width, `H` units.
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
    cell,
    x,
    matrices,
    others,
    state,
    length,
    dtype,
):
    """`recurrence` written plainly: a scan of the cell, differentiated by JAX.

    Args:
        cell: As the other arguments, what `recurrence` takes.
        x: The inputs.
        matrices: By name.
        others: What else the cell reads at each step.
        state: The carry before the first step.
        length: How many steps count.
        dtype: Has no effect: products multiply in the dtype of their factors.

    Returns:
        The outputs, and the new carry.
    """

    def step(state, x):
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
    """Runs a cell over time.

    Args:
        cell: (linear, state, x [B, ...], others) -> (new state, output [B, H]). It multiplies by a
            matrix as `linear(name, a)`, by each once a step.
        x: The inputs.
        matrices: By name.
        others: What else the cell reads at each step, a pytree.
        state: The carry before the first step, a pytree of arrays [B, ...].
        length: How many steps count.
        dtype: What products multiply in; they sum in float32 or wider.

    Returns:
        The outputs, and the new carry.
    """
    return _run(cell, dtype, x, matrices, others, state, length)


_run = jax.custom_vjp(
    lambda cell, dtype, x, matrices, *rest: _scan(cell, dtype, matrices, None, x, *rest)[0],
    nondiff_argnums=(0, 1),
)


def _forward(
    cell,
    dtype,
    x,
    matrices,
    *rest,
):
    wide = jnp.promote_types(dtype, jnp.float32)
    zeros = {
        name: jnp.zeros((*x.shape[:2], matrix.shape[-1]), wide) for name, matrix in matrices.items()
    }
    outputs, back, operands = jax.vjp(
        partial(_scan, cell, dtype, matrices), zeros, x, *rest, has_aux=True
    )
    return outputs, (back, operands, matrices)


def _backward(
    cell,
    dtype,
    saved,
    cotangents,
):
    back, operands, matrices = saved
    of_products, dx, *rest = back(cotangents)
    dmatrices = {
        name: product_over_rows(operands[name], of_products[name], dtype).astype(matrix.dtype)
        for name, matrix in matrices.items()
    }
    return dx, dmatrices, *rest


_run.defvjp(_forward, _backward)


def _scan(
    cell,
    dtype,
    matrices,
    zeros,
    x,
    others,
    state,
    length,
):
    """Runs the cell over time, and records what the matrices multiply.

    Args:
        cell: As `recurrence` takes it.
        dtype: What products multiply in.
        matrices: By name.
        zeros: By the name of a matrix, [T, B, out] to be added to its products: the gradient of the
            zeros is that of the products. None: nothing.
        x: The inputs.
        others: What else the cell reads.
        state: The carry before the first step.
        length: How many steps count.

    Returns:
        The outputs and the new carry; and by the name of a matrix the operands of its products
        [T, B, in].
    """
    # Cast once, not at each step.
    matrices = {name: matrix.astype(dtype) for name, matrix in matrices.items()}

    def step(state, inputs):
        x, zeros = inputs
        operands = {}

        def linear(name, a):
            operands[name] = a
            z = checkpoint_name(product(a, matrices[name], dtype), "product")
            return z if zeros is None else z + zeros[name]

        state, y = cell(linear, state, x, others)
        return state, (y, operands)

    # The backward scan computes all but the products again, which is faster than to keep it.
    step = jax.checkpoint(
        step, policy=jax.checkpoint_policies.save_only_these_names("product"), prevent_cse=False
    )
    final, (y, operands) = scan(step, state, (x, zeros), length)
    return (y, final), operands
