"""ops/mixture.py: the fused op equals its reference, never holds [N, V],
and refuses shapes that do not fit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parallel import on_devices
from test_softmax import largest_array

from jaxlm.ops import mixture, softmax
from jaxlm.ops.mixture import log_probs, summed_nats, token_nats, token_nats_reference


def summed_nats_reference(latents, choice, kernel, bias, targets, weights, epsilon=None):
    return jnp.vdot(token_nats_reference(latents, choice, kernel, bias, targets, epsilon), weights)


def draw(N, K, D, V, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (
        *(
            jax.device_put(rng.normal(size=shape).astype(dtype))
            for shape in ((N, K, D), (N, K), (D, V), (V,))
        ),
        jax.device_put(rng.integers(0, V, N)),
        jax.device_put(rng.uniform(0, 2, N).astype(dtype)),
    )


def values_and_gradients(op, *arguments, **options):
    return jax.jit(jax.value_and_grad(lambda some, rest: 3 * op(*some, *rest, **options)))(
        arguments[:4], arguments[4:]
    )


# Each alone, the least and the usual; chunks of one row, of some that do not divide N, and of all.
@pytest.mark.parametrize(
    ("N", "K", "D", "V", "wide", "epsilon", "chunk_bytes"),
    [
        (1, 1, 1, 1, False, None, 2**20),
        (9, 1, 5, 7, True, 1e-8, 64),
        (5, 4, 1, 6, True, 0.1, 1),
        pytest.param(8, 2, 3, 1, False, 1e-8, 64, marks=pytest.mark.slow),
        (7, 3, 4, 5, True, None, 64),
        (6, 4, 5, 7, False, 0.1, 2**20),
    ],
)
def test_equals_the_reference(N, K, D, V, wide, epsilon, chunk_bytes):
    with jax.enable_x64(wide), pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(softmax, "LEAST_ROWS", 1)
        tolerance = 1e-11 if wide else 5e-5
        close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)

        @jax.jit
        def both(x, choice, kernel, bias, targets, weights):
            def gradients(op):
                return jax.value_and_grad(
                    lambda x, choice, kernel, bias: (
                        3 * op(x, choice, kernel, bias, targets, weights, epsilon=epsilon)
                    ),
                    (0, 1, 2, 3),
                )(x, choice, kernel, bias)

            every = log_probs(x, choice, kernel, bias, epsilon)
            return (
                token_nats_reference(x, choice, kernel, bias, targets, epsilon),
                token_nats(x, choice, kernel, bias, targets, epsilon),
                -jnp.take_along_axis(every, targets[:, None], 1)[:, 0],
                gradients(summed_nats),
                gradients(summed_nats_reference),
            )

        @settings(max_examples=10)
        @given(st.integers(0, 99))  # what varies here compiles nothing anew
        def with_values(seed):
            plain, fast, every, *costs = both(
                *draw(N, K, D, V, jnp.float64 if wide else jnp.float32, seed)
            )
            close(fast, plain)
            close(every, plain)
            jax.tree.map(close, *costs)

        with_values()


def test_one_expert_is_a_softmax():
    latents, choice, kernel, bias, targets, _ = draw(6, 1, 3, 5, jnp.float32)
    np.testing.assert_allclose(
        jax.jit(token_nats)(latents, choice, kernel, bias, targets),
        jax.jit(softmax.token_nats)(np.asarray(latents)[:, 0], kernel, bias, targets),
        rtol=1e-5,
    )


def test_bfloat16_multiplies_in_bfloat16_and_sums_in_float32():
    latents, choice, kernel, bias, targets, weights = draw(64, 3, 32, 50, jnp.float32)
    arrays = (latents.astype(jnp.bfloat16), choice, kernel / 8, 10 + bias, targets, weights)
    fast, plain = (values_and_gradients(op, *arrays) for op in (summed_nats, summed_nats_reference))
    assert [leaf.dtype for leaf in jax.tree.leaves(fast)] == [
        leaf.dtype for leaf in jax.tree.leaves(plain)
    ]
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        assert np.abs(np.float32(a) - np.float32(b)).max() < 0.02 * np.abs(np.float32(b)).max()


def test_vmap_equals_a_loop():
    members = [draw(6, 2, 3, 5, jnp.float32, seed) for seed in range(3)]
    gradients = jax.jit(jax.grad(summed_nats, argnums=(0, 1, 2, 3)))
    together = jax.jit(jax.vmap(gradients))(*(np.stack(a) for a in zip(*members, strict=True)))
    for i, member in enumerate(members):
        for a, b in zip(jax.device_get(together), gradients(*member), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_words_on_several_devices_give_one_devices_numbers():
    on_devices(
        2,
        """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from test_mixture import draw, summed_nats
from jaxlm.distributed.mesh import MODEL, make_mesh
arguments = draw(7, 3, 4, 6, jnp.float32)
gradients = jax.jit(jax.value_and_grad(summed_nats, argnums=(0, 1, 2, 3)))
where = (jax.P(), jax.P(), jax.P(None, MODEL), jax.P(MODEL), jax.P(), jax.P())
mesh = make_mesh(1, 1, 2)[0]
spread = [jax.device_put(a, jax.NamedSharding(mesh, spec)) for a, spec in zip(arguments, where)]
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
jax.tree.map(close, gradients(*spread), gradients(*arguments))
""",
    )


def test_no_array_of_all_logits_exists():
    N = 4096
    K = 4
    D = 8
    V = 2048
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (
            ((N, K, D), "float32"),
            ((N, K), "float32"),
            ((D, V), "float32"),
            ((V,), "float32"),
            ((N,), "int32"),
            ((N,), "float32"),
        )
    ]
    forward = functools.partial(mixture._nats_and_gradients, True, epsilon=None)  # the CPU's
    jaxpr = jax.make_jaxpr(forward)(*shapes).jaxpr
    assert largest_array(jaxpr) <= 1.5 * softmax.CHUNK_BYTES / 4 < N * V / 2
    few = [jax.ShapeDtypeStruct((64, *shape.shape[1:]), shape.dtype) for shape in shapes[:2]]
    assert (
        largest_array(jax.make_jaxpr(log_probs)(*few, *shapes[2:4]).jaxpr) <= 64 * V
    )  # one expert after the other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(kernel=np.zeros((3, 5))),
            r"kernel should be floating-point numbers of the shape \(4, 5\)",
        ),
        (dict(targets=np.zeros(3, np.float32)), "targets should be integers .* it is float32"),
        (
            dict(weights=np.zeros(2)),
            r"weights should be floating-point numbers of the shape \(3,\)",
        ),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_named(change, message):
    names = ("latents", "choice", "kernel", "bias", "targets", "weights")
    with pytest.raises(ValueError, match=message):
        summed_nats(**{**dict(zip(names, draw(3, 2, 4, 5, jnp.float32), strict=True)), **change})
