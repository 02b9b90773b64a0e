"""ops/softmax.py: the fused op equals its reference, never holds [N, V],
and refuses shapes that do not fit.
"""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from jaxlm.ops import softmax
from jaxlm.ops.softmax import summed_nats, token_nats, token_nats_reference


def summed_nats_reference(x, kernel, bias, targets, weights):
    return jnp.vdot(token_nats_reference(x, kernel, bias, targets), weights)


def draw(N, H, V, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jax.device_put(rng.normal(size=(N, H)).astype(dtype)),
        jax.device_put(rng.normal(size=(H, V)).astype(dtype)),
        jax.device_put(rng.normal(size=V).astype(dtype)),
        jax.device_put(rng.integers(0, V, N)),
        jax.device_put(rng.uniform(0, 2, N).astype(dtype)),
    )


# Each alone, the least and the usual; chunks of one row, of some that do not divide N, and of all.
@pytest.mark.parametrize(
    ("N", "H", "V", "wide", "chunk_bytes"),
    [
        (1, 1, 1, False, 2**20),
        (9, 5, 7, True, 64),
        (5, 1, 6, True, 1),
        pytest.param(8, 3, 1, False, 64, marks=pytest.mark.slow),
        (7, 4, 5, False, 1),
        (6, 5, 7, True, 2**20),
    ],
)
def test_equals_the_reference(N, H, V, wide, chunk_bytes):
    with jax.enable_x64(wide), pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(softmax, "LEAST_ROWS", 1)
        tolerance = 1e-11 if wide else 3e-5
        close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)

        @jax.jit
        def both(x, kernel, bias, targets, weights):
            def thrice(op):
                value = jax.value_and_grad(
                    lambda *args: 3 * op(*args, targets, weights), argnums=(0, 1, 2)
                )
                return value(x, kernel, bias)

            return (
                token_nats(x, kernel, bias, targets),
                token_nats_reference(x, kernel, bias, targets),
                thrice(summed_nats),
                thrice(summed_nats_reference),
            )

        @settings(max_examples=10)
        @given(st.integers(0, 99))  # what varies here compiles nothing anew
        def with_values(seed):
            fast, plain, *costs = both(*draw(N, H, V, jnp.float64 if wide else jnp.float32, seed))
            close(fast, plain)
            jax.tree.map(close, *costs)

        with_values()


@pytest.mark.parametrize("op", ["summed", "token"])
def test_bfloat16_multiplies_in_bfloat16_and_sums_in_float32(op):
    x, kernel, bias, targets, weights = draw(64, 32, 50, jnp.float32)
    x = x.astype(jnp.bfloat16)
    bias = 10 + bias  # a bias that bfloat16 cannot hold
    if op == "token":
        both = jax.jit(lambda *given: (token_nats(*given), token_nats_reference(*given)))
        fast, plain = both(x, kernel / 8, bias, targets)
        assert fast.dtype == jnp.float32
        np.testing.assert_allclose(fast, plain, atol=0.03)
        only_bias, plain = both(0 * x, kernel, bias, targets)
        np.testing.assert_allclose(only_bias, plain, rtol=1e-6)
        return
    fast, plain = (
        jax.jit(
            jax.value_and_grad(lambda *args, op=op: op(*args, targets, weights), argnums=(0, 1, 2))
        )(x, kernel / 8, bias)
        for op in (summed_nats, summed_nats_reference)
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(fast)] == [
        leaf.dtype for leaf in jax.tree.leaves(plain)
    ]
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        difference = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()
        assert difference < 0.02 * np.abs(np.asarray(b, np.float32)).max()


@pytest.mark.parametrize("shape", [(3, 4), (1, 7), pytest.param((2, 12), marks=pytest.mark.slow)])
def test_a_batch_larger_than_a_chunk_is_cut_too(monkeypatch, shape):
    """[T, B] gives the numbers of its rows [T * B], whatever divides B."""
    monkeypatch.setattr(softmax, "CHUNK_BYTES", 1)
    monkeypatch.setattr(softmax, "LEAST_ROWS", 2)
    x, kernel, bias, targets, weights = draw(shape[0] * shape[1], 3, 5, jnp.float32)

    def both(*shape):
        rows = x.reshape(*shape, 3), kernel, bias, targets.reshape(shape)
        nats, gradients = jax.value_and_grad(summed_nats, argnums=(0, 1, 2))(
            *rows, weights.reshape(shape)
        )
        return token_nats(*rows).ravel(), nats, gradients[0].reshape(-1, 3), gradients[1:]

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    both = jax.jit(both, static_argnums=(0, 1))
    jax.tree.map(close, both(*shape), both(shape[0] * shape[1]))
    assert (
        jax.eval_shape(softmax.chunking(True, shape, (3, 5))[0], targets.reshape(shape)).shape[-1]
        <= 4
    )


def test_vmap_equals_a_loop():
    members = [draw(6, 3, 5, jnp.float32, seed) for seed in range(3)]
    gradients = jax.jit(jax.grad(summed_nats, argnums=(0, 1, 2)))
    together = jax.jit(jax.vmap(gradients))(*(np.stack(a) for a in zip(*members, strict=True)))
    for i, member in enumerate(members):
        for a, b in zip(together, gradients(*member), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_probabilities_sum_to_one():
    x, kernel, bias, _, _ = draw(1, 4, 9, jnp.float32)
    nats = jax.jit(token_nats)(np.repeat(x, 9, 0), kernel, bias, np.arange(9))
    assert np.exp(-np.asarray(nats)).sum() == pytest.approx(1, rel=1e-5)


def test_huge_logits_stay_finite():
    given = (np.array(values, np.float32) for values in ([[1.0]], [[1e4, -1e4]], [0, 0]))
    nats = jax.jit(token_nats)(*given, np.array([1]))
    assert float(nats[0]) == pytest.approx(2e4)


def largest_array(jaxpr) -> int:
    """Elements of the largest array that any equation makes, those inside loops too."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(out.aval.shape)) for out in equation.outvars]
        sizes += [largest_array(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


def test_no_array_of_all_logits_exists():
    N = 4096
    H = 8
    V = 2048
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (
            ((N, H), "float32"),
            ((H, V), "float32"),
            ((V,), "float32"),
            ((N,), "int32"),
            ((N,), "float32"),
        )
    ]
    jaxpr = jax.make_jaxpr(functools.partial(softmax._nats_and_gradients, True))(
        *shapes
    ).jaxpr  # (the CPU's)
    assert largest_array(jaxpr) <= 1.5 * softmax.CHUNK_BYTES / 4 < N * V / 2


def test_a_processor_that_cannot_be_asked_has_no_wide_tiles(monkeypatch):
    def refused(*_: object, **__: object):
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(Path, "read_text", refused)
    assert runpy.run_path(softmax.__file__)["NARROW_ROWS"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(kernel=np.zeros((3, 5))),
            r"kernel should be floating-point numbers of the shape \(4, 5\); .*\(3, 5\)",
        ),
        (
            dict(bias=np.zeros(6, np.float32)),
            r"bias should be floating-point numbers of the shape \(5,\); it is float32 \(6,\)",
        ),
        (
            dict(targets=np.zeros(2, np.int32)),
            r"targets should be integers of the shape \(3,\); it is int32 \(2,\)",
        ),
        (dict(targets=np.zeros(3, np.float32)), "targets should be integers .* it is float32"),
        (
            dict(weights=np.zeros(2)),
            r"weights should be floating-point numbers of the shape \(3,\)",
        ),
        (dict(x=np.zeros(3)), r"x should be \[T, B, H\]"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_named(change, message):
    names = ("x", "kernel", "bias", "targets", "weights")
    with pytest.raises(ValueError, match=message):
        summed_nats(**{**dict(zip(names, draw(3, 4, 5, jnp.float32), strict=True)), **change})


@pytest.mark.parametrize("rows", [100, 250, 1000])
def test_no_chunk_is_padding_alone(rows):
    T = 20
    tokens = jnp.zeros((20, rows))
    cut, _ = softmax.chunking(True, tokens.shape, (128, 10_000))
    chunks, steps, batch = jax.eval_shape(cut, tokens).shape
    assert (chunks - 1) * steps * batch < T * rows
