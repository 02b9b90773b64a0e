"""The matrix product in mixed precision, which the other ops share.

On a processor that multiplies bfloat16 by itself (AMX, AVX512_BF16), XLA's product is fast whether
or not its second factor is transposed. It is slow, in float32, if XLA folds a transpose of the
first factor into it. So the first factor of a caller is transposed in memory.

Float32 is multiplied as float32 on every device, though accelerators are faster with fewer digits
(TF32, bfloat16), unless `jax.default_matmul_precision` is set: a training step sets it to the
recipe's `matmul_precision`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def product(
    a: Float[Array, "*rows K"],
    b: Float[Array, "_ _"],
    dtype: Any,
    transposed: bool = False,
) -> Float[Array, "*rows N"]:
    """a @ b, multiplied in one dtype and summed in float32 or wider, as its gradients are.

    Args:
        a: The first factor.
        b: The second, [K, N].
        dtype: What both factors are rounded to.
        transposed: b lies as [N, K], and nothing is moved in memory.

    Returns:
        The product, in float32 or wider.
    """
    return _product(dtype, transposed, a, b)


def product_over_rows(
    a: Float[Array, "*rows K"],
    b: Float[Array, "*rows N"],
    dtype: Any,
) -> Float[Array, "K N"]:
    """The gradient of a matrix between a and b: the sum over rows of their outer products.

    Args:
        a: The inputs of the matrix.
        b: The gradient of its outputs.
        dtype: What both factors are rounded to.

    Returns:
        The gradient, in float32 or wider.
    """
    columns = jnp.moveaxis(a, -1, 0).astype(dtype)
    if jnp.finfo(dtype).bits < 32:  # a concatenation that XLA keeps writes the transpose out
        columns = lax.optimization_barrier(jnp.concatenate(jnp.split(columns, [len(columns) // 2])))
    return columns_times_rows(columns, b, dtype)


def columns_times_rows(
    columns: Float[Array, "K *rows"],
    rows: Float[Array, "*rows N"],
    dtype: Any,
) -> Float[Array, "K N"]:
    """`product_over_rows` of a first factor that lies transposed.

    The axes of the rows are summed as they are: merging them first would gather rows that lie on
    many devices.

    Args:
        columns: The first factor.
        rows: The second.
        dtype: What both factors are rounded to.

    Returns:
        The sum, in float32 or wider.
    """
    return _dot(dtype, columns, rows, (tuple(range(1, columns.ndim)), tuple(range(rows.ndim - 1))))


def contraction(
    spec: str,
    dtype: Any,
    a: Float[Array, "..."],
    b: Float[Array, "..."],
) -> Float[Array, "..."]:
    """An einsum of two factors, multiplied in one dtype and summed in float32 or wider.

    So are its gradients.

    Args:
        spec: As "tbk,kn->tbn". Every letter of a factor is in the other factor or in the result.
        dtype: What both factors are rounded to.
        a: The first factor.
        b: The second.

    Returns:
        The contraction, in float32 or wider.
    """
    return _contraction(spec, dtype, a, b)


def _dot(
    dtype,
    a,
    b,
    summed,
):
    """The product of a and b, summed over the axes (of a, of b)."""
    return lax.dot_general(a.astype(dtype), b.astype(dtype), (summed, ((), ())), **_digits(dtype))


def _digits(dtype: Any) -> dict[str, Any]:
    """How precisely factors of a dtype are multiplied, and what the products are summed in."""
    wide = jnp.promote_types(dtype, jnp.float32)
    precision = lax.Precision.HIGHEST
    if dtype != wide:  # narrow factors lose no digits
        precision = lax.Precision.DEFAULT
    elif jax.config.jax_default_matmul_precision:  # pyright: ignore (made at run time)
        precision = None
    return {"precision": precision, "preferred_element_type": wide}


_product = jax.custom_vjp(
    lambda dtype, transposed, a, b: _dot(dtype, a, b, ((a.ndim - 1,), (int(transposed),))),
    nondiff_argnums=(0, 1),
)


def _forward(
    dtype,
    transposed,
    a,
    b,
):
    return _product(dtype, transposed, a, b), (a, b)


def _backward(
    dtype,
    transposed,
    factors,
    dz,
):
    a, b = factors
    db = product_over_rows(dz, a, dtype) if transposed else product_over_rows(a, dz, dtype)
    return product(dz, b, dtype, not transposed).astype(a.dtype), db.astype(b.dtype)


_product.defvjp(_forward, _backward)


_contraction = jax.custom_vjp(
    lambda spec, dtype, a, b: jnp.einsum(spec, a.astype(dtype), b.astype(dtype), **_digits(dtype)),
    nondiff_argnums=(0, 1),
)


def _contraction_forward(
    spec,
    dtype,
    a,
    b,
):
    return _contraction(spec, dtype, a, b), (a, b)


def _contraction_backward(
    spec,
    dtype,
    factors,
    dz,
):
    a, b = factors
    of_a, of_b, of_z = re.split(",|->", spec)
    da = contraction(f"{of_z},{of_b}->{of_a}", dtype, dz, b)
    db = contraction(f"{of_a},{of_z}->{of_b}", dtype, a, dz)
    return da.astype(a.dtype), db.astype(b.dtype)


_contraction.defvjp(_contraction_forward, _contraction_backward)
