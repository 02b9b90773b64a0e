"""Cells that are linear in their state:
beside their papers' equations in float64, and beside published code.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import MODELS
from recordings import recorded, summary

from jaxlm.models.hawk import Hawk
from jaxlm.models.recurrent import LayerNoise, zeros_of

T = 23
B = 3
E = 5
H = 4  # T: more than a chunk, and no multiple of one
near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, epsilon=1e-5):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)


def drawn(kind, **fields):
    """A model of the kind, a layer's parameters with none at zero, inputs [T, B, E] and a carry."""
    model = MODELS[kind](**fields)
    rng = np.random.default_rng(0)
    params = jax.jit(model.init_layer, static_argnums=(1, 2))(jax.random.key(0), E, H)
    params, state = (
        jax.tree.map(
            lambda leaf: leaf + jnp.asarray(0.7 * rng.normal(size=leaf.shape), leaf.dtype), tree
        )
        for tree in (params, model.zero_state(zeros_of(B, jnp.float32), H))
    )
    return model, params, jax.device_put(rng.normal(size=(T, B, E)).astype(np.float32)), state


def step_by_step(kind, step, **fields):
    """Holds a window, and T windows of one step, to `step(params, state, x [B,
    E]) -> (y [B, H], state)`.
    """
    model, params, x, state = drawn(kind, **fields)
    apply = jax.jit(lambda x, state: model.apply_layer(params, x, state, LayerNoise(), None))
    exact, theirs, ours, after, outputs, singly = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params),
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state),
        *apply(x, state),
        [],
        [],
    )
    for now in x:
        y, theirs = step(exact, theirs, np.asarray(now, np.float64))
        outputs.append(y)
        y, state = apply(now[None], state)
        singly.append(y[0])
    near(ours, np.stack(outputs))
    near(np.stack(singly), ours)
    for found in (after, state):
        jax.tree.map(near, found, theirs)


@pytest.mark.parametrize("kind", ["mingru", "minlstm"])
def test_minimal_cells_are_the_paper_s_equations(kind):
    """arXiv:2410.01201, section 3: one gate and its rest, or the gates f and i over their sum."""

    def step(params, h, x):
        *gates, candidate = np.split(
            x @ params["kernel"] + params["bias"], 2 if kind == "mingru" else 3, -1
        )
        i = sigmoid(gates[-1])
        f = 1 - i if kind == "mingru" else sigmoid(gates[0])
        h = f / (f + i) * h + i / (f + i) * candidate
        return h, h

    step_by_step(kind, step)


HAWK = recorded("hawk")
CASES = [
    pytest.param(
        case, id=f"{case['heads']} heads", marks=[] if case["heads"] == 2 else [pytest.mark.slow]
    )
    for case in HAWK["cases"]
]


@pytest.mark.parametrize("case", CASES)
def test_hawk_is_the_published_block(case):
    """recurrentgemma's norm and block:
    outputs, state and gradients of a window, and three steps decoded after it.
    """
    rng = np.random.default_rng(case["seed"])
    expected = case["float64"]
    W, T, B, more = (HAWK["shapes"][name] for name in ("W", "T", "B", "decoded"))
    sizes = {"4": 4, "W": W, "N": case["heads"], "D": W // case["heads"]}
    theirs = {}
    for weight in HAWK["weights"]:
        name, *shape = re.findall(r"[\w.]+", weight)
        theirs[name] = rng.uniform(
            -case["scale"], case["scale"], [sizes[one] for one in shape]
        ).astype(np.float32)
    x = jax.device_put(rng.normal(size=(T + more, B, W)).astype(np.float32))
    ours = {"linear_x.kernel": "x_kernel", "linear_x.bias": "x_bias", "linear_y.kernel": "y_kernel"}
    ours |= {
        "linear_y.bias": "y_bias",
        "linear_out.kernel": "output_kernel",
        "linear_out.bias": "output_bias",
    }
    ours |= {"conv_1d.w": "convolution", "conv_1d.b": "convolution_bias", "rg_lru.a_param": "decay"}
    params = {name: theirs[their] for their, name in ours.items()}
    for name, part in (("gates", "w"), ("gates_bias", "b")):
        params[name] = np.concatenate(
            [theirs[f"rg_lru.{gate}.{part}"] for gate in ("input_gate", "a_gate")], -1
        )
    model = Hawk(heads=case["heads"])

    @jax.jit
    def run(params, x, state):
        return model.apply_layer(params, x, state, LayerNoise(), None)

    def cost(params, x):
        y, state = run(params, x, model.zero_state(zeros_of(B, jnp.float32), W))
        return jnp.sin(y).sum() + jnp.square(state["h"]).sum(), (y, state)

    (found, dx), (y, state) = jax.jit(jax.grad(cost, (0, 1), has_aux=True))(params, x[:T])
    near(y, expected["outputs"])
    near(state["h"], expected["rg_lru_state"])
    near(state["inputs"], expected["conv1d_state"])
    grads = {their: found[name] for their, name in ours.items()} | {"x": dx}
    for name, part in (("gates", "w"), ("gates_bias", "b")):
        for gate, grad in zip(
            ("input_gate", "a_gate"), np.split(np.asarray(found[name]), 2, -1), strict=True
        ):
            grads[f"rg_lru.{gate}.{part}"] = grad
    for name, values in expected["gradients"].items():
        np.testing.assert_allclose(summary(grads[name]), values, rtol=2e-5, atol=2e-4, err_msg=name)
    assert grads.keys() == expected["gradients"].keys()
    for now, decoded in zip(x[T:], expected["decoded"], strict=True):
        y, state = run(params, now[None], state)
        near(y[0], decoded)
    near(state["h"], expected["state_after_decoding"])


def test_hawk_is_the_paper_s_equations():
    """arXiv:2402.19427, equations 1 to 4 and section 2.3:
    another input width, two heads, a state from before.
    """

    def step(params, state, x):
        x = rms_norm(x, 1e-6)
        inputs = np.concatenate(
            [state["inputs"], (x @ params["x_kernel"] + params["x_bias"])[:, None]], 1
        )
        u = (inputs * params["convolution"]).sum(1) + params["convolution_bias"]
        z = np.einsum("bnd,nde->bne", u.reshape(B, 2, -1), params["gates"]) + params["gates_bias"]
        i, r = (sigmoid(part).reshape(u.shape) for part in np.split(z, 2, -1))
        a = sigmoid(-params["decay"]) ** (8 * r)
        h = a * state["h"] + np.sqrt(1 - a**2) * i * u
        y = x @ params["y_kernel"] + params["y_bias"]
        gelu = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return gelu * h @ params["output_kernel"] + params["output_bias"], {
            "h": h,
            "inputs": inputs[:, 1:],
        }

    step_by_step("hawk", step)


@pytest.mark.parametrize("bound", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_hgrn2_is_the_paper_s_equations(bound):
    """arXiv:2404.07904, section 3.2: the state's rows decay by the forget gate,
    and 1 minus the gate writes them.
    """

    def step(params, state, x):
        q, f, v = (
            part.reshape(B, 2, -1) for part in np.split(rms_norm(x) @ params["kernel"], 3, -1)
        )
        a = bound + (1 - bound) * sigmoid(f)
        state = a[..., None] * state + (1 - a)[..., None] * v[:, :, None]
        y = np.einsum("bndf,bnd->bnf", state, q * sigmoid(q)).reshape(B, -1)
        return rms_norm(y), state

    step_by_step("hgrn2", step, lower_bound=bound)
