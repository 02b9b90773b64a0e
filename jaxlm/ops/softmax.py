"""Linear layer, softmax and cross-entropy in one: a plain reference, and the fused, chunked twin.

Letters: `N` rows (T * B), `H` width, `V` vocabulary. The fast path never holds [N, V]: it takes the
rows in chunks and, for a gradient, finishes each chunk's while its logits are still in the cache
(the idea of Liger Kernel's fused linear cross-entropy, arXiv:2410.10989). So memory is flat in N.
Under `shard_map` kernel and bias may be a device's own words of V; x, targets and the results are whole on every
device. The devices then reduce the largest logit, the sum and the target's logit of each chunk, and dx once at the end.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.distributed import collectives
from jaxlm.ops.processor import cpu_flags
from jaxlm.ops.product import product

# Rows of a chunk on CPU, measured in docs/performance.md: logits of about this size stay in the cache, and
# there are enough rows that reading the kernel and adding to its gradient, once a chunk, costs little: as many as the
# kernel has, up to three times that size.
CHUNK_BYTES = 10 * 2**20
LEAST_ROWS = 128
ACCELERATOR_CHUNK_BYTES = 512 * 2**20
# Bfloat16's products on CPUs want a multiple of so many rows: a tile of AMX; elsewhere more are only more to multiply.
NARROW_ROWS = 32 if "amx_bf16" in cpu_flags() else 4


def token_nats_reference(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
    """`token_nats` written plainly: all logits at once."""
    log_p = jax.nn.log_softmax(x @ kernel + bias)
    return -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]


def summed_nats_reference(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """`summed_nats` written plainly, differentiated by JAX."""
    return jnp.vdot(token_nats_reference(x, kernel, bias, targets), weights)


def token_nats(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p of each target in nats, for evaluation.

    Args:
      x: features [N, H].
      kernel: [H, V].
      bias: [V].
      targets: integers [N].

    Returns:
      Nats [N].

    Raises:
      ValueError: shapes or dtypes do not fit.

    Of V = 4 words without a preference each has log(4) = 1.386 nats:

    >>> x, kernel, bias = jnp.ones((2, 3)), jnp.zeros((3, 4)), jnp.zeros(4)
    >>> [round(nats, 3) for nats in token_nats(x, kernel, bias, jnp.array([0, 3])).tolist()]
    [1.386, 1.386]
    """
    _check_shapes(x, kernel, bias, targets)
    x, layer = _with_bias(x, kernel, bias)

    def chunk(_, rows):
        x, targets = rows
        _, total, top, picked = _odds_and_pick(product(x, layer, x.dtype), targets)
        return None, top + jnp.log(total) - picked

    _, nats = lax.scan(chunk, None, _in_chunks(kernel.shape, x, targets))
    return nats.reshape(-1)[: x.shape[0]]


def summed_nats(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of weights * -log p of the targets, in nats: the loss, with gradients for x, kernel and bias.

    Args:
      x: features [N, H]. In bfloat16 the products multiply bfloat16 and sum in float32; the logarithms, the loss and
        the gradients of kernel and bias keep the parameters' dtype.
      kernel: [H, V].
      bias: [V].
      targets: integers [N].
      weights: [N], constants without a gradient.

    Returns:
      The sum in nats, a scalar.

    Raises:
      ValueError: shapes or dtypes do not fit.

    The gradient of the bias is the probabilities, less one at the target:

    >>> x, kernel, target = jnp.ones((1, 3)), jnp.zeros((3, 4)), jnp.array([1])
    >>> gradient = jax.grad(lambda bias: summed_nats(x, kernel, bias, target, jnp.ones(1)))(jnp.zeros(4))
    >>> [round(one, 3) for one in gradient.tolist()]
    [0.25, -0.75, 0.25, 0.25]
    """
    _check_shapes(x, kernel, bias, targets)
    if weights.shape != targets.shape:
        raise ValueError(f"weights should have targets' shape {targets.shape}; its shape is {weights.shape}")
    return _summed_nats(x, kernel, bias, targets, weights)


@jax.custom_vjp
def _summed_nats(x, kernel, bias, targets, weights):
    return jnp.vdot(token_nats(x, kernel, bias, targets), weights)


def _forward(x, kernel, bias, targets, weights):
    """The loss and, in the same pass over the chunks, its gradients for a cotangent of one."""
    N, narrow = x.shape[0], kernel.astype(x.dtype)
    x, layer = _with_bias(x, kernel, bias)
    x, targets, weights = _in_chunks(kernel.shape, x, targets, weights)
    columns = jnp.swapaxes(x, 1, 2)  # written out here: a transpose that XLA folds into the product makes it slow

    def chunk(carry, rows):
        nats, dlayer = carry
        x, columns, targets, weights = rows
        logits = product(x, layer, x.dtype)
        odds, total, top, picked = _odds_and_pick(logits, targets)
        nats += jnp.vdot(weights, top + jnp.log(total) - picked)
        odds -= _hits(targets, logits) * total[:, None]
        dx, dchunk = _from_odds(odds, weights / total, narrow, columns)
        return (nats, dlayer + dchunk), dx.astype(x.dtype)

    zero = (jnp.zeros((), bias.dtype), jnp.zeros(layer.shape, kernel.dtype))
    (nats, dlayer), dx = lax.scan(chunk, zero, (x, columns, targets, weights))
    H, dx = kernel.shape[0], collectives.sum_over_model(dx)
    return nats, (dx.reshape(-1, H)[:N], dlayer[:H], dlayer[H])


def _backward(gradients, cotangent):
    dx, dkernel, dbias = ((cotangent * gradient).astype(gradient.dtype) for gradient in gradients)
    return dx, dkernel, dbias, None, None


_summed_nats.defvjp(_forward, _backward)


def _odds_and_pick(logits, targets):
    """exp(logits - top), of logits [rows, V]; their sum, the top and the target's logit, over all devices' words."""
    own = collectives.own_words(targets, logits.shape[-1])
    top = collectives.max_over_model(logits.max(-1))
    odds = jnp.exp(logits - top[:, None])
    picked = jnp.take_along_axis(logits, own[:, None], -1, mode="fill", fill_value=0)[:, 0]
    total, picked = collectives.sum_over_model((odds.sum(-1), picked))
    return odds, total, top, picked


def _from_odds(odds, scale, narrow, columns):
    """The gradients of x and the layer from odds [rows, V], which times `scale` [rows] are the logits' gradient.

    The scale multiplies the products' narrow sides. `columns` is x transposed.
    """
    dx = product(odds, narrow, narrow.dtype, transposed=True) * scale[:, None]
    scaled = lax.optimization_barrier((columns * scale).astype(narrow.dtype))
    return dx, product(scaled, odds, narrow.dtype)


def _hits(targets, logits):
    """1 at each row's target, else 0 [rows, V]; compared as float32, which is faster and exact below 2**24 words."""
    V = logits.shape[-1]
    own = collectives.own_words(targets, V)
    dtype = jnp.float32 if V <= 2**24 else jnp.int32
    return (jnp.arange(V, dtype=dtype) == own.astype(dtype)[:, None]).astype(logits.dtype)


def _with_bias(x, kernel, bias):
    """x and kernel, in x's dtype, with the bias as one more input of one: added by itself it is a pass over the logits.

    Where x's dtype is narrower than the bias's, the bias is the sum of three inputs, so that no digit of it is lost,
    and inputs of zero fill up a multiple of NARROW_ROWS.
    """
    rows, narrow = [bias], jnp.finfo(x.dtype)
    padding = 0
    if narrow.bits < jnp.finfo(bias.dtype).bits:
        for _ in range(2):
            head = lax.reduce_precision(rows[-1], narrow.nexp, narrow.nmant)
            rows[-1:] = [head, jnp.where(jnp.isfinite(head), rows[-1] - head, 0)]
        padding = -(len(kernel) + len(rows)) % NARROW_ROWS
    ones = jnp.pad(jnp.ones((x.shape[0], len(rows)), x.dtype), ((0, 0), (0, padding)))
    layer = jnp.concatenate([kernel, jnp.pad(jnp.stack(rows), ((0, padding), (0, 0)))])
    return jnp.concatenate([x, ones], 1), layer.astype(x.dtype)


def _in_chunks(kernel_shape, *arrays, parts=1):
    """Each [N, ...] as [chunks, rows, ...] with few, equal chunks; the last is padded with zeros.

    Each row stands for so many `parts` of logits [V].
    """
    N, (H, V) = arrays[0].shape[0], kernel_shape
    if jax.default_backend() == "cpu":
        cached = CHUNK_BYTES // (4 * V)
        wanted = max(cached, min(H, 3 * cached), LEAST_ROWS, H // 4)
    else:
        wanted = max(ACCELERATOR_CHUNK_BYTES // (4 * V), LEAST_ROWS)
    chunks = max(1, round(N * parts / wanted))
    rows = -(-N // chunks)

    def cut(a):
        padding = [(0, chunks * rows - N)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding).reshape(chunks, rows, *a.shape[1:])

    return tuple(cut(a) for a in arrays)


def _check_shapes(x, kernel, bias, targets):
    if x.ndim != 2 or kernel.ndim != 2:
        raise ValueError(f"x should be [N, H] and kernel [H, V]; their shapes are {x.shape} and {kernel.shape}")
    (N, H), V = x.shape, kernel.shape[1]
    for name, array, shape in (("kernel", kernel, (H, V)), ("bias", bias, (V,)), ("targets", targets, (N,))):
        if array.shape != shape:
            raise ValueError(f"{name} should have the shape {shape}; its shape is {array.shape}")
    for name, array in (("x", x), ("kernel", kernel), ("bias", bias)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} should be floating-point numbers; its dtype is {array.dtype}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets should be integers; they are {targets.dtype}")
