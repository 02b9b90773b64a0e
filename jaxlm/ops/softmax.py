"""Linear layer, softmax and cross-entropy in one: a plain reference, and the fused, chunked twin.

Letters: `T` steps, `B` batch, `H` width, `V` vocabulary. The axes of `rows` are [T, B], or [N]
without a batch. The fast path never holds [T, B, V]: it takes the steps in chunks, and computes the
gradient of a chunk while its logits are still in the cache (the idea of Liger Kernel's fused linear
cross-entropy, arXiv:2410.10989). So memory does not grow with T * B. The axis of the batch is not
merged with the steps, so that devices which share the batch need not exchange rows.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Scalar

from jaxlm.ops.devices import batch_devices, by_platform, check_array
from jaxlm.ops.product import columns_times_rows, product

Features = Float[Array, "*rows H"]
Kernel = Float[Array, "H V"]
Bias = Float[Array, " V"]
Targets = Int[Array, "*rows"]
Row = Float[Array, "*rows"]

# Rows of a chunk on CPU, by measurement (docs/performance.md): logits of about this size stay in
# the cache, and there are enough rows that reading the kernel and adding to its gradient, once a
# chunk, cost little: as many rows as the kernel has, up to three times the cached size.
CHUNK_BYTES = 10 * 2**20
LEAST_ROWS = 128
ACCELERATOR_CHUNK_BYTES = 512 * 2**20


def _narrow_rows() -> int:
    """Of how many rows a matrix should have a multiple, to multiply fast in bfloat16 on CPUs.

    AMX multiplies tiles of 32 rows.
    """
    with suppress(OSError):  # only Linux has the file, and a container may hide it
        if "amx_bf16" in Path("/proc/cpuinfo").read_text(errors="replace"):
            return 32
    return 4


NARROW_ROWS = _narrow_rows()


def token_nats_reference(
    x,
    kernel,
    bias,
    targets,
):
    """`token_nats` written plainly: all logits at once.

    Its weighted sum, differentiated by JAX, is `summed_nats`.

    Args:
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.
        targets: The word of each row.

    Returns:
        -log p of each target in nats.
    """
    log_p = jax.nn.log_softmax(x @ kernel + bias)
    return -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]


def token_nats(
    x: Features,
    kernel: Kernel,
    bias: Bias,
    targets: Targets,
) -> Row:
    """-log p of each target in nats, for evaluation.

    Args:
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.
        targets: The word of each row.

    Returns:
        The nats, in the bias's dtype.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Of V = 4 words without a preference each has log(4) = 1.386 nats:

    >>> x, kernel, bias = jnp.ones((2, 3)), jnp.zeros((3, 4)), jnp.zeros(4)
    >>> [round(nats, 3) for nats in token_nats(x, kernel, bias, jnp.array([0, 3])).tolist()]
    [1.386, 1.386]
    """
    check_shapes(x, kernel, bias, targets)
    return by_platform(_token_nats, x, kernel, bias, targets)


def _token_nats(
    on_cpu,
    x,
    kernel,
    bias,
    targets,
):
    inputs, layer = with_bias(on_cpu, x, kernel, bias)
    cut, join = chunking(on_cpu, targets.shape, kernel.shape)

    def chunk(_, rows):
        x, targets = rows
        _, total, top, picked = odds_and_pick(product(x, layer, x.dtype), targets)
        return None, top + jnp.log(total) - picked

    return join(lax.scan(chunk, None, (cut(inputs), cut(targets)))[1])


def summed_nats(
    x: Features,
    kernel: Kernel,
    bias: Bias,
    targets: Targets,
    weights: Row,
) -> Scalar:
    """The sum of weights * -log p of the targets, in nats: the loss, with gradients.

    With x in bfloat16 the products multiply bfloat16 and sum in float32; logarithms, loss and the
    gradients of kernel and bias keep the parameters' dtype.

    Args:
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.
        targets: The word of each row.
        weights: The weight of each row, a constant without a gradient.

    Returns:
        The loss.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    The gradient of the bias is the probabilities, less one at the target:

    >>> x, kernel, target = jnp.ones((1, 3)), jnp.zeros((3, 4)), jnp.array([1])
    >>> loss = lambda bias: summed_nats(x, kernel, bias, target, jnp.ones(1))
    >>> [round(slope, 3) for slope in jax.grad(loss)(jnp.zeros(4)).tolist()]
    [0.25, -0.75, 0.25, 0.25]
    """
    check_shapes(x, kernel, bias, targets, weights)
    return _summed_nats(x, kernel, bias, targets, weights)


def with_gradients(forward: Callable[..., tuple[Scalar, Any]]) -> Callable[..., Scalar]:
    """Makes a loss whose forward pass computes its gradients.

    Args:
        forward: Returns the loss, and for a cotangent of one the gradient of each argument; None
            for constants.

    Returns:
        The loss.
    """

    def backward(gradients, cotangent):
        def scaled(gradient):
            return (cotangent * gradient).astype(gradient.dtype)

        return jax.tree.map(scaled, gradients)

    loss = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    loss.defvjp(forward, backward)
    return loss


def _nats_and_gradients(
    on_cpu,
    x,
    kernel,
    bias,
    targets,
    weights,
):
    """The loss and, in the same pass over the chunks, its gradients."""
    narrow = kernel.astype(x.dtype)
    inputs, layer = with_bias(on_cpu, x, kernel, bias)
    cut, join = chunking(on_cpu, targets.shape, kernel.shape)
    inputs = cut(inputs)
    # Written out here: a transpose that XLA folds into the product makes it slow.
    columns = jnp.moveaxis(inputs, -1, 1)

    def chunk(carry, rows):
        nats, dlayer = carry
        x, columns, targets, weights = rows
        logits = product(x, layer, x.dtype)
        odds, total, top, picked = odds_and_pick(logits, targets)
        nats += jnp.sum(weights * (top + jnp.log(total) - picked))
        odds -= is_target(targets, logits) * total[..., None]
        dx, dchunk = gradients_from_odds(odds, weights / total, narrow, columns)
        return (nats, dlayer + dchunk), dx.astype(x.dtype)

    zero = (jnp.zeros((), bias.dtype), jnp.zeros(layer.shape, kernel.dtype))
    (nats, dlayer), dx = lax.scan(chunk, zero, (inputs, columns, cut(targets), cut(weights)))
    H = len(kernel)
    return nats, (join(dx), dlayer[:H], dlayer[H], None, None)


nats_and_gradients = partial(by_platform, _nats_and_gradients)
_summed_nats = with_gradients(nats_and_gradients)


def odds_and_pick(
    logits: Float[Array, "*rows V"], targets: Targets
) -> tuple[Float[Array, "*rows V"], Row, Row, Row]:
    """Prepares the softmax of rows of logits.

    Args:
        logits: The logits.
        targets: The word of each row.

    Returns:
        The odds exp(logits - top), their sum, the largest logit (top), and the target's logit.
    """
    top = logits.max(-1)
    odds = jnp.exp(logits - top[..., None])
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return odds, odds.sum(-1), top, picked


def gradients_from_odds(
    odds: Float[Array, "*rows V"],
    scale: Row,
    narrow: Kernel,
    columns: Float[Array, "inputs *rows"],
) -> tuple[Features, Float[Array, "inputs V"]]:
    """The gradients of a layer whose logits have the gradient odds * scale.

    The scale multiplies the narrow sides of the products.

    Args:
        odds: The logits' gradient before it is scaled.
        scale: A factor for each row.
        narrow: The kernel, in x's dtype.
        columns: x transposed, with the inputs of the bias.

    Returns:
        The gradients of x and of the layer with its bias.
    """
    dx = product(odds, narrow, narrow.dtype, transposed=True) * scale[..., None]
    scaled = lax.optimization_barrier((columns * scale).astype(narrow.dtype))
    return dx, columns_times_rows(scaled, odds, narrow.dtype)


def is_target(targets: Targets, logits: Float[Array, "... V"]) -> Float[Array, "*rows V"]:
    """Marks the targets.

    Args:
        targets: The word of each row.
        logits: Gives V and the dtype.

    Returns:
        1 at each row's target, else 0. Words are compared as float32, which is faster, and exact up
        to a model's 2**24 words.
    """
    words = jnp.arange(logits.shape[-1], dtype=jnp.float32)
    return (words == targets.astype(jnp.float32)[..., None]).astype(logits.dtype)


def with_bias(
    on_cpu: bool,
    x: Features,
    kernel: Kernel,
    bias: Bias,
) -> tuple[Float[Array, "*rows inputs"], Float[Array, "inputs V"]]:
    """Makes the bias one more input, of one: adding it by itself is a pass over the logits.

    Where x's dtype is narrower than the bias's, the bias is the sum of three inputs, so that no
    digit of it is lost, and inputs of zero fill up a multiple of NARROW_ROWS; on accelerators of 8,
    as tensor cores want.

    Args:
        on_cpu: Whether the program is for CPUs.
        x: What the layer reads.
        kernel: The layer's matrix.
        bias: Its bias.

    Returns:
        x with inputs of one, and the kernel with rows of the bias, in x's dtype.
    """
    rows = [bias]
    narrow = jnp.finfo(x.dtype)
    padding = 0
    if narrow.bits < jnp.finfo(bias.dtype).bits:
        for _ in range(2):
            head = lax.reduce_precision(rows[-1], narrow.nexp, narrow.nmant)
            rows[-1:] = [head, jnp.where(jnp.isfinite(head), rows[-1] - head, 0)]
        padding = -(len(kernel) + len(rows)) % (NARROW_ROWS if on_cpu else 8)
    ones = jnp.zeros((*x.shape[:-1], len(rows) + padding), x.dtype).at[..., : len(rows)].set(1)
    layer = jnp.concatenate([kernel, jnp.pad(jnp.stack(rows), ((0, padding), (0, 0)))])
    return jnp.concatenate([x, ones], -1), layer.astype(x.dtype)


def chunking(
    on_cpu: bool,
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    logits: int = 1,
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Cuts steps into few, equal chunks.

    Where a single step already has more rows than a chunk should, its batch is cut too: into every
    n-th row, so that each part has rows of every device that shares the batch.

    Args:
        on_cpu: Whether the program is for CPUs.
        shape: Of the rows, [T, B] or [N].
        kernel_shape: [H, V].
        logits: How many logits [V] a row has.

    Returns:
        Two functions: arrays [T, B, ...] -> chunks [chunks, t, B, ...], the last of them padded;
        and chunks -> arrays.
    """
    H, V = kernel_shape
    T, *batch = shape
    wanted = ACCELERATOR_CHUNK_BYTES // (4 * V)
    if on_cpu:
        cached = CHUNK_BYTES // (4 * V)
        wanted = max(cached, min(H, 3 * cached), H // 4)
    # Devices share each chunk, and add up the kernel's gradient once a chunk.
    wanted = max(wanted, LEAST_ROWS) * batch_devices()
    parts = 1
    rows = logits * math.prod(batch)
    if batch and rows > 2 * wanted:
        divisors = (n for n in range(1, batch[0]) if batch[0] % n == 0)
        parts = next((n for n in divisors if rows // n <= wanted), batch[0])
    chunks = min(T * parts, max(1, round(T * rows / wanted)))
    steps = math.ceil(T * parts / chunks)
    chunks = math.ceil(T * parts / steps)  # none of padding alone

    def cut(array):
        """[T, B, ...] -> [chunks, steps, B / parts, ...]: part p has the rows p, p + parts, ..."""
        if parts > 1:
            array = jnp.moveaxis(array.reshape(T, -1, parts, *array.shape[2:]), 2, 1)
            array = array.reshape(-1, *array.shape[2:])
        padding = [(0, chunks * steps - len(array))] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(chunks, steps, *array.shape[1:])

    def join(array):
        """Undoes `cut`."""
        rest = array.shape[2 + len(batch) :]
        array = array.reshape(-1, *array.shape[2:])[: T * parts]
        if parts > 1:
            array = jnp.moveaxis(array.reshape(T, parts, *array.shape[1:]), 1, 2)
        return array.reshape(*shape, *rest)

    return cut, join


def check_shapes(
    x: Array,
    kernel: Array,
    bias: Array,
    targets: Array,
    weights: Array | None = None,
) -> None:
    """Checks the arguments of a loss.

    Args:
        x: [T, B, H] or [N, H].
        kernel: [H, V].
        bias: [V].
        targets: [T, B] or [N].
        weights: As the targets.

    Raises:
        ValueError: They do not fit each other.
    """
    if x.ndim - targets.ndim != 1 or kernel.ndim != 2:
        raise ValueError(
            "x should be [T, B, H], targets [T, B] and kernel [H, V]; "
            f"their shapes are {x.shape}, {targets.shape} and {kernel.shape}"
        )
    *rows, H = x.shape
    check_array("x", x, x.shape)
    check_array("kernel", kernel, (H, kernel.shape[1]))
    check_array("bias", bias, (kernel.shape[1],))
    check_array("targets", targets, (*rows,), integers=True)
    if weights is not None:
        check_array("weights", weights, (*rows,))
