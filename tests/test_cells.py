"""Matrix-valued states and sLSTM beside their authors' code,
and the op of such states beside a plain one.

The recordings and their draws: tests/golden/published/README.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import MODELS
from recordings import recorded, summary

from jaxlm.models.recurrent import LayerNoise, zeros_of
from jaxlm.models.stack import zero_carry
from jaxlm.ops import linear_attention as op
from jaxlm.ops.activations import unit_norm

GOLDEN = recorded("cells")
CASES = GOLDEN["cases"]
B, H, N, HALF = (GOLDEN[name] for name in ("B", "H", "heads", "first_window"))


def layers(kind, **options) -> Any:
    model: Any = MODELS[kind]
    return model(hidden_sizes=(H,), heads=N, **options)


def drawn(case):
    rng = np.random.default_rng(case["seed"])
    return {
        name: jax.device_put(rng.uniform(-scale, scale, shape).astype(np.float32))
        for name, (scale, shape) in case["shapes"].items()
    }


def assert_recorded(case, y, state, grads):
    """Outputs, the carry after them and the gradients' triples are those of a recording."""
    np.testing.assert_allclose(y.ravel(), case["output"], rtol=1e-5, atol=1e-5)
    for part, expected in case["state"].items():
        np.testing.assert_allclose(
            state[part].ravel(), expected, rtol=1e-5, atol=1e-5, err_msg=part
        )
    for part, expected in case["gradients"].items():
        np.testing.assert_allclose(
            summary(grads[part]), expected, rtol=1e-5, atol=1e-5 * expected[0] + 1e-5, err_msg=part
        )


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("gated")])
def test_xlstm_s_layers_are_the_authors(name):
    """Two windows with the carry between them."""
    case = CASES[name]
    params = drawn(case)
    x = params.pop("x")
    weights = params.pop("weights")
    options = {"gate_cap": case["gate_cap"]} if "gate_cap" in case else {}
    model = layers(case["kind"], **options)

    def total(params):
        first, state = model.apply_layer(
            params, x[:HALF], model.zero_state(zeros_of(B, x.dtype), H), LayerNoise(), None
        )
        second, state = model.apply_layer(
            params, x[HALF:], jax.lax.stop_gradient(state), LayerNoise(), None
        )
        y = jnp.concatenate([first, second])
        return (y * weights).sum(), (y, state._asdict())

    grads, (y, state) = jax.jit(jax.grad(total, has_aux=True))(params)
    assert_recorded(case, y, state, grads)


@pytest.mark.parametrize(
    "attention",  # by default the fast one, which is held to the plain one below
    [op.linear_attention, pytest.param(op.linear_attention_reference, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", ["gated-delta-rule", "gated-linear-attention"])
def test_the_rules_of_matrix_valued_states_are_the_authors(attention, name, monkeypatch):
    """Gated DeltaNet's, and HGRN2's with a decay for each key unit."""
    monkeypatch.setattr(op, "CHUNK", 7)
    monkeypatch.setattr(op, "DIAGONAL_CHUNK", 7)
    monkeypatch.setattr(op, "DELTA_CHUNK", 7)
    case = CASES[name]
    inputs = drawn(case)
    state = inputs.pop("state")
    weights = inputs.pop("weights")

    def total(inputs):
        q, k, v, g = (jnp.moveaxis(inputs[name], 1, 0) for name in ("q", "k", "v", "g"))
        log_decay = jax.nn.log_sigmoid(g)
        beta = None
        if "beta" in inputs:
            q = unit_norm(q)
            k = unit_norm(k)
            log_decay = -jax.nn.softplus(g)[..., None]
            beta = jax.nn.sigmoid(jnp.moveaxis(inputs["beta"], 1, 0))[..., None]
        y, S = attention(q / (H // N) ** 0.5, k, v, log_decay, state, beta)
        y = jnp.moveaxis(y, 0, 1)
        return (y * weights).sum(), (y, {"S": S})

    grads, (y, state) = jax.jit(jax.grad(total, has_aux=True))(inputs)
    assert_recorded(case, y, state, grads)


def test_gated_deltanet_is_the_paper_s_equations():
    """A layer of two windows, step by step in float64 as arXiv:2412.06464 has it."""
    T = 9
    E = 3
    D = H // N
    model = layers("gated-deltanet", init_scale=0.7)
    params = jax.jit(model.init_layer, static_argnums=(1, 2))(jax.random.key(0), E, H)
    rng = np.random.default_rng(0)
    params["norm"] = jax.device_put(rng.uniform(0.5, 2, H).astype(np.float32))
    x = rng.normal(size=(T, B, E)).astype(np.float32)

    @jax.jit
    def windows(x):
        zero = model.zero_state(zeros_of(B, x.dtype), H)
        first, state = model.apply_layer(params, x[:4], zero, LayerNoise(), None)
        second, state = model.apply_layer(params, x[4:], state, LayerNoise(), None)
        return first, second, state

    first, second, state = jax.device_get(windows(x))

    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    x = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for b in range(B):
        S = np.zeros((N, D, D))
        projected = np.zeros((T + 3, 3 * H))
        projected[3:] = x[:, b] @ p["kernel"][:, : 3 * H]
        for t in range(T):
            z = (p["convolution"] * projected[t : t + 4]).sum(0)
            gate = x[t, b] @ p["kernel"][:, 3 * H :]
            alpha, beta = np.split(x[t, b] @ p["gate"], 2)
            y = np.zeros(H)
            for n in range(N):
                q, k, v = (part[n * D : (n + 1) * D] for part in np.split(z * sigmoid(z), 3))
                q, k = (part / np.sqrt((part**2).sum() + 1e-6) for part in (q, k))
                decay = np.exp(
                    -np.exp(p["rate"][n]) * np.log1p(np.exp(alpha[n] + p["time_step"][n]))
                )
                beta_n = sigmoid(beta[n])
                S[n] = decay * (np.eye(D) - beta_n * np.outer(k, k)) @ S[n] + beta_n * np.outer(
                    k, v
                )
                h = q @ S[n] / np.sqrt(D)
                y[n * D : (n + 1) * D] = h / np.sqrt((h**2).mean() + 1e-5)
            y *= p["norm"] * gate * sigmoid(gate)
            output = first[t, b] if t < 4 else second[t - 4, b]
            np.testing.assert_allclose(output, y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.S[b], S, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.inputs[b], projected[-3:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("T", "length", "decays", "delta"),
    [
        (1, None, 1, True),
        (7, None, 1, False),
        pytest.param(7, None, 2, False, marks=pytest.mark.slow),
        (7, 5, 1, False),
        (7, 5, 1, True),
        (7, 5, 2, False),
        pytest.param(7, 1, 1, True, marks=pytest.mark.slow),
    ],
)
def test_chunks_of_matrix_valued_states_are_the_plain_recurrence(T, length, decays, delta):
    """Values and gradients; a decay a head, with and without the delta rule,
    and one for each key unit.
    """
    B = 2
    N = 2
    D = 2
    F = 3
    rng = np.random.default_rng(3)
    q, k, v, log_decay, state, beta = (
        jax.device_put(rng.normal(size=shape).astype(np.float32))
        for shape in (
            (T, B, N, D),
            (T, B, N, D),
            (T, B, N, F),
            (T, B, N, decays),
            (B, N, D, F),
            (T, B, N, 1),
        )
    )
    arguments = (q, k, v, log_decay, state, beta)
    steps = T if length is None else min(length, T)

    def scalar(attention):
        def total(q, k, v, log_decay, state, beta):
            k = unit_norm(k)
            log_decay = -jax.nn.softplus(log_decay)
            beta = jax.nn.sigmoid(beta)
            bound = None if length is None else jnp.int32(steps)
            y, state = attention(q, k, v, log_decay, state, beta if delta else None, bound)
            return jnp.sin(y[:steps]).sum() + (state**2).sum(), (y[:steps], state)

        return jax.value_and_grad(total, argnums=range(6), has_aux=True)(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "CHUNK", 3)
        patch.setattr(op, "DIAGONAL_CHUNK", 3)
        patch.setattr(op, "DELTA_CHUNK", 3)
        found = jax.jit(scalar, static_argnums=0)(op.linear_attention)
    expected = jax.jit(scalar, static_argnums=0)(op.linear_attention_reference)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected
    )


@pytest.mark.parametrize("units, delta", [(1, False), (1, True), (9, False)])
def test_chunks_are_as_exact_as_steps(units, delta):
    """Of a decay for all keys and of one for each, some as hard as exp(-20),
    by the error against float64.
    """
    rng = np.random.default_rng(units)
    shape = (301, 2, 1, 9)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    log_decay = -np.logaddexp(0, 6 * rng.normal(size=(*shape[:3], units))).astype(np.float32)
    beta = 1 / (1 + np.exp(-v[..., :1])) if delta else None
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    S = np.zeros((2, 1, 9, 9))
    exact = np.empty(shape)
    for t in range(len(q)):
        S = np.exp(log_decay[t].astype(np.float64))[..., None] * S
        u = v[t] if beta is None else beta[t] * (v[t] - np.einsum("bnd,bndf->bnf", k[t], S))
        S = S + k[t][..., None] * u[..., None, :]
        exact[t] = np.einsum("bnd,bndf->bnf", q[t], S)
    y, _ = jax.jit(op.linear_attention)(q, k, v, log_decay, jnp.zeros(S.shape), beta)
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize(
    "kind",
    [
        "slstm",
        "mlstm",
        "gated-deltanet",
        # A window of these is its steps in tests/test_linear_cells.py too.
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hgrn2", "hawk")),
    ],
)
def test_a_window_is_its_steps(kind):
    """Chunks and single steps, as training and generation run them."""
    T = 301
    E = 3
    model = layers(kind, init_scale=0.7)
    params = jax.jit(model.init_layer, static_argnums=(1, 2))(jax.random.key(1), E, H)
    x = jax.device_put(np.random.default_rng(2).normal(size=(T, B, E)).astype(np.float32))
    zero = model.zero_state(zeros_of(B, x.dtype), H)
    y, end = jax.jit(lambda x: model.apply_layer(params, x, zero, LayerNoise(), None))(x)

    def step(state, x):
        y, state = model.apply_layer(params, x[None], state, LayerNoise(), None)
        return state, y[0]

    last, steps = jax.jit(lambda x: jax.lax.scan(step, zero, x))(x)
    np.testing.assert_allclose(y, steps, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), end, last)


@pytest.mark.parametrize("kind, gate", [("slstm", "bias"), ("mlstm", "gate_bias")])
def test_exponential_gates_do_not_overflow(kind, gate):
    """Input gates of exp(+-200), in values and gradients."""
    model = layers(kind, **({"gate_cap": None} if kind == "mlstm" else {}))
    params = jax.jit(model.init_layer, static_argnums=(1, 2))(jax.random.key(0), 3, H)
    inputs = len(params[gate]) // (4 if kind == "slstm" else 2)

    def total(params, added):
        params = {**params, gate: params[gate].at[:inputs].add(added)}
        y, state = model.apply_layer(
            params,
            jnp.ones((5, 1, 3)),
            model.zero_state(zeros_of(1, "float32"), H),
            LayerNoise(),
            None,
        )
        return (y**2).sum(), (y, state)

    found = jax.jit(jax.vmap(jax.grad(total, has_aux=True), (None, 0)))(
        params, jnp.array([-200.0, 200.0])
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(found)))


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_a_carry_begins_with_zeros_of_the_parameters_dtype(block):
    """For every kind; each leaf has the batch's rows first."""
    for name, kind in MODELS.items():
        model = kind(block=block, hidden_sizes=(16,), convolution=2 if block == "residual" else 0)
        carry = jax.eval_shape(lambda model=model: zero_carry(model, 3, jnp.bfloat16))
        leaves = jax.tree.leaves(carry)
        assert {(leaf.dtype, leaf.shape[0]) for leaf in leaves} == {(jnp.dtype(jnp.bfloat16), 3)}, (
            name
        )
