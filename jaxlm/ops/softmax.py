"""Linear layer, softmax and cross-entropy in one: a plain reference, and the fused, chunked twin.

Letters: `N` rows (T * B), `H` width, `V` vocabulary. The fast path never holds [N, V]: it takes the
rows in chunks and, for a gradient, finishes each chunk's while its logits are still in the cache
(the idea of Liger Kernel's fused linear cross-entropy, arXiv:2410.10989). So memory is flat in N.
Under `parallel.spread` kernel and bias may be a device's own words of V, and x, targets and the results are
everyone's: a chunk then meets the other devices for its largest logit, its sum and its target, and dx once after all.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm import parallel

CHUNK_BYTES = 10 * 2**20  # of float32 logits at a time


def token_nats_reference(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
    """`token_nats` written plainly: all logits at once."""
    log_p = jax.nn.log_softmax(x @ kernel + bias)
    return -jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]


def summed_nats_reference(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array,
                          weights: jax.Array) -> jax.Array:
    """`summed_nats` written plainly, differentiated by JAX."""
    return jnp.vdot(token_nats_reference(x, kernel, bias, targets), weights)


def token_nats(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p of each target in nats, for evaluation.

    x [N, H], kernel [H, V], bias [V], targets [N] integers -> [N]. Raises ValueError where shapes do not fit.
    """
    _check_shapes(x, kernel, bias, targets)

    def chunk(_, rows):
        x, targets = rows
        logits = x @ kernel + bias
        lse, picked = _lse_and_pick(logits, targets)
        return None, lse - picked

    _, nats = lax.scan(chunk, None, _in_chunks(kernel.shape[1], x, targets))
    return nats.reshape(-1)[:x.shape[0]]


def summed_nats(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array,
                weights: jax.Array) -> jax.Array:
    """sum of weights * -log p of the targets, in nats: the loss, with gradients for x, kernel and bias.

    x [N, H], kernel [H, V], bias [V], targets [N] integers, weights [N] (constants: they get no gradient)
    -> scalar. Raises ValueError where shapes do not fit.
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

    def chunk(carry, rows):
        nats, dkernel, dbias = carry
        x, targets, weights = rows
        logits = x @ kernel + bias
        lse, picked = _lse_and_pick(logits, targets)
        nats += jnp.vdot(weights, lse - picked)
        hit = jnp.arange(logits.shape[-1]) == parallel.own_words(targets, logits.shape[-1])[:, None]
        dlogits = (jnp.exp(logits - lse[:, None]) - hit) * weights[:, None]
        return (nats, dkernel + x.T @ dlogits, dbias + dlogits.sum(0)), dlogits @ kernel.T

    zero = (jnp.zeros((), x.dtype), jnp.zeros_like(kernel), jnp.zeros_like(bias))
    (nats, dkernel, dbias), dx = lax.scan(chunk, zero, _in_chunks(kernel.shape[1], x, targets, weights))
    dx = parallel.sum_over_model(dx)
    return nats, (dx.reshape(-1, x.shape[1])[:x.shape[0]], dkernel, dbias)


def _backward(gradients, cotangent):
    dx, dkernel, dbias = (cotangent * gradient for gradient in gradients)
    return dx, dkernel, dbias, None, None


_summed_nats.defvjp(_forward, _backward)


def _lse_and_pick(logits, targets):
    """log sum exp of logits [rows, V] and the target's one; each device may hold the logits of a part of the words."""
    own = parallel.own_words(targets, logits.shape[-1])
    if own is targets:
        return jax.nn.logsumexp(logits, -1), jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    top = parallel.max_over_model(logits.max(-1))
    picked = jnp.take_along_axis(logits, own[:, None], -1, mode="fill", fill_value=0)[:, 0]
    total, picked = parallel.sum_over_model((jnp.exp(logits - top[:, None]).sum(-1), picked))
    return top + jnp.log(total), picked


def _in_chunks(vocab_size, *arrays):
    """Each [N, ...] as [chunks, rows, ...] with few, equal chunks; the last is padded with zeros."""
    N = arrays[0].shape[0]
    chunks = max(1, round(N * vocab_size * 4 / CHUNK_BYTES))
    rows = -(-N // min(chunks, N))
    chunks = -(-N // rows)

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
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets should be integers; they are {targets.dtype}")
