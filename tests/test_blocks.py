"""Blocks beside their authors' code; and what they are refused.

The recordings hold parameters as their authors name and lay them out. Each function below maps them
to a block's; gradients are taken through the map, so that they are the authors' gradients.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import block_diag
from recipes import BASE, MODELS, drawn_params
from recordings import recorded, summary

from jaxlm import preset
from jaxlm.base.errors import JaxlmError
from jaxlm.cli import main
from jaxlm.models import stack
from jaxlm.models.block import (
    BlockState,
    apply_block,
    block_norm,
    init_block,
    zero_block_state,
)
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.models.recurrent import LayerNoise, zeros_of

near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def feed_forward(norm, up, down, gate=None, biases=()):
    """A feed-forward layer's parameters, of matrices [out, in]; biases are zero where not given."""
    params = {"norm": norm}
    for name, matrix in (("up", up), ("down", down), ("gate", gate)):
        if matrix is not None:
            params[f"{name}_kernel"] = matrix.T
            params[f"{name}_bias"] = dict(biases).get(name, jnp.zeros(len(matrix)))
    return params


def columns(*matrices):
    """Matrices [out, in] side by side as [in, outs]."""
    return jnp.concatenate(matrices).T


def of_recurrentgemma(p):
    cell = {
        "convolution": p["recurrent_block.conv_1d.w"],
        "decay": p["recurrent_block.rg_lru.a_param"],
    }
    cell["convolution_bias"] = p["recurrent_block.conv_1d.b"]
    for ours, their in (("x", "linear_x"), ("y", "linear_y"), ("output", "linear_out")):
        cell[f"{ours}_kernel"] = p[f"recurrent_block.{their}.weight"].T
        cell[f"{ours}_bias"] = p[f"recurrent_block.{their}.bias"]
    for ours, their in (("gates", "w"), ("gates_bias", "b")):
        gates = [p[f"recurrent_block.rg_lru.{gate}.{their}"] for gate in ("input_gate", "a_gate")]
        cell[ours] = jnp.concatenate(gates, -1)
    gate, up = p["mlp_block.ffw_up.w"]
    gate_bias, up_bias = p["mlp_block.ffw_up.b"][:, 0, 0]
    return {
        "norm": 1 + p["temporal_pre_norm.scale"],
        "cell": cell,
        "feed_forward": feed_forward(
            1 + p["channel_pre_norm.scale"],
            up.T,
            p["mlp_block.ffw_down.weight"],
            gate.T,
            {"up": up_bias, "down": p["mlp_block.ffw_down.bias"], "gate": gate_bias},
        ),
    }


def before_a_document(model, params, x, state):
    """The carry from which the first step is as at a document's first token.

    The authors' h is then i * u, without the root.
    """
    cell = params["cell"]
    v = block_norm(model, params["norm"], x[0]) @ cell["x_kernel"] + cell["x_bias"]
    u = v * cell["convolution"][-1] + cell["convolution_bias"]
    z = jnp.einsum("bnd,nde->bne", u.reshape(len(u), 2, -1), cell["gates"]) + cell["gates_bias"]
    i, r = (part.reshape(u.shape) for part in jnp.split(jax.nn.sigmoid(z), 2, -1))
    a = jnp.exp(-8 * r * jax.nn.softplus(cell["decay"]))
    h = (1 - jnp.sqrt(1 - a**2)) / a * i * u
    return state._replace(cell={**state.cell, "h": h})


def of_hgrn2(p):
    D = 8  # they scale q after its SiLU; here v bears the factor, and so does S
    kernel = columns(*(p[f"attn.{name}_proj.weight"] for name in "qfi"))
    return {
        "norm": p["attn_norm.weight"],
        "cell": {"kernel": kernel.at[:, -2 * D :].multiply(D**-0.5)},
        "down_kernel": p["attn.g_norm.weight"][:, None] * p["attn.o_proj.weight"].T,
        "feed_forward": mlp_of_fla(p),
    }


def mlp_of_fla(p):
    matrices = (p[f"mlp.{name}_proj.weight"] for name in ("up", "down", "gate"))
    return feed_forward(p["mlp_norm.weight"], *matrices)


def of_gated_deltanet(p):
    cell = {
        "key_kernel": columns(p["attn.q_proj.weight"], p["attn.k_proj.weight"]),
        "kernel": columns(p["attn.v_proj.weight"], p["attn.g_proj.weight"]),
        "convolution": columns(*(p[f"attn.{name}_conv1d.weight"][:, 0] for name in "qkv")),
        "gate": columns(p["attn.a_proj.weight"], p["attn.b_proj.weight"]),
        "rate": p["attn.A_log"],
        "time_step": p["attn.dt_bias"],
        "norm": jnp.tile(p["attn.o_norm.weight"], 2),
    }
    return {
        "norm": p["attn_norm.weight"],
        "cell": cell,
        "down_kernel": p["attn.o_proj.weight"].T,
        "feed_forward": mlp_of_fla(p),
    }


def of_mingru(p):
    hidden, gate = jnp.split(p["mingru.to_hidden_and_gate.weight"], 2)
    return {
        "norm": p["norm.weight"],
        "cell": {"kernel": columns(gate, hidden), "bias": jnp.zeros(2 * len(gate))},
        "down_kernel": p["mingru.to_out.weight"].T,
        "feed_forward": feed_forward(
            p["ff_norm.weight"],
            p["ff.0.weight"],
            p["ff.2.weight"],
            biases={"up": p["ff.0.bias"], "down": p["ff.2.bias"]},
        ),
    }


EPSILON = 10**0.5  # v times this: the norm of h adds 1e-5 here, 1e-6 there


def of_large_mlstm(p):
    p = {name.removeprefix("mlstm_layer."): value for name, value in p.items()}
    keys = columns(p["q.weight"], p["k.weight"])
    values = columns(EPSILON * p["v.weight"], p["ogate_preact.weight"])
    cell = {
        "key_kernel": keys,
        "kernel": values,
        "bias": jnp.zeros(keys.shape[1] + values.shape[1]),
        "gate": columns(p["igate_preact.weight"], p["fgate_preact.weight"]),
        "gate_bias": jnp.concatenate([p["igate_preact.bias"], p["fgate_preact.bias"]]),
        "norm": p["multihead_norm.weight"],
    }
    return {
        "norm": p["norm_mlstm.weight"],
        "cell": cell,
        "down_kernel": p["out_proj.weight"].T,
        "feed_forward": feed_forward(
            p["norm_ffn.weight"],
            p["ffn.proj_up.weight"],
            p["ffn.proj_down.weight"],
            p["ffn.proj_up_gate.weight"],
        ),
    }


def by_blocks(weight):
    """The matrix [in, out] of a projection by blocks [blocks, out, in]."""
    return block_diag(*jnp.swapaxes(weight, 1, 2))


def of_mlstm(p):
    p = {name.removeprefix("xlstm."): value for name, value in p.items()}
    up, gate = jnp.split(p["proj_up.weight"], 2)
    q, k, v = (by_blocks(p[f"{name}_proj.weight"]) for name in "qkv")
    none = jnp.zeros_like(q)
    convolved = jnp.concatenate([q, k, none, none], 1)
    itself = jnp.concatenate([none, none, v, none], 1)  # the output gate is 1/2
    rows = []
    for part in "if":
        of_q, of_k, of_v = jnp.split(p[f"mlstm_cell.{part}gate.weight"].T, 3)
        rows.append(jnp.concatenate([q @ of_q + k @ of_k, v @ of_v]))
    cell = {
        "kernel": jnp.concatenate([convolved, itself]),
        "bias": jnp.zeros(4 * len(q)),
        "gate": jnp.concatenate(rows, 1),
        "gate_bias": jnp.concatenate([p[f"mlstm_cell.{part}gate.bias"] for part in "if"]),
        "norm": 2 * (1 + p["mlstm_cell.outnorm.weight"]),
    }
    return {
        "norm": 1 + p["xlstm_norm.weight"],
        "cell": cell,
        "up_kernel": up.T,
        "gate_kernel": gate.T,
        "down_kernel": p["proj_down.weight"].T,
        "skip": p["learnable_skip"],
        "convolution": p["conv1d.conv.weight"][:, 0].T,
        "convolution_bias": p["conv1d.conv.bias"],
    }


def of_slstm(p):
    ffn = {name: value for name, value in p.items() if name.startswith("ffn")}
    p = {name.removeprefix("xlstm."): value for name, value in p.items()}
    # The authors' layer hands i's part to f, and f's to i.
    i, f, z, o = (by_blocks(p[f"{name}gate.weight"]) for name in "fizo")
    none = jnp.zeros_like(i)
    kernel = jnp.block([[i, f, none, none], [none, none, z, o]])
    N, _, D = p["slstm_cell._recurrent_kernel_"].shape
    recurrent = p["slstm_cell._recurrent_kernel_"].reshape(N, 4, D, D)
    gate, up = jnp.split(ffn["ffn.proj_up.weight"], 2)
    return {
        "norm": 1 + p["xlstm_norm.weight"],
        "convolution": p["conv1d.conv.weight"][:, 0].T,
        "convolution_bias": p["conv1d.conv.bias"],
        "cell": {
            "kernel": kernel,
            "recurrent_kernel": recurrent.transpose(3, 1, 0, 2).reshape(D, -1),
            "bias": p["slstm_cell._bias_"],
            "norm": 1 + p["group_norm.weight"],
        },
        "feed_forward": feed_forward(
            1 + ffn["ffn_norm.weight"], up, ffn["ffn.proj_down.weight"], gate
        ),
    }


def carry_of_deltanet(state):
    q, k, v = jnp.split(jnp.swapaxes(state.cell.inputs, 1, 2), [12, 24], 1)
    parts = {"recurrent_state": state.cell.S}
    return parts | {f"conv_state.{place}": part for place, part in enumerate((q, k, v))}


def carry_of_mlstm(state):
    C, n, m = state.cell
    size = C.shape[-1] ** 0.5  # they scale k, here q bears it
    parts = (C / size, n[..., None] / size, m[..., None, None])
    return {f"mlstm_state.{place}": part for place, part in enumerate(parts)}


def carry_of_large_mlstm(state):
    C, n, m = state.cell
    return {"0": C / EPSILON, "1": n, "2": m[..., None]}


def carry_of_slstm(state):
    c, n, m, h = state.cell
    return {"slstm_state": jnp.stack([h, c, n, m])}


SWIGLU = dict(feed_forward_size=48)
CASES: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "recurrentgemma": (
        "hawk",
        SWIGLU | dict(activation="geglu-tanh"),
        of_recurrentgemma,
        lambda state: {"rg_lru_state": state.cell["h"], "conv1d_state": state.cell["inputs"]},
    ),
    "hgrn2": (
        "hgrn2",
        SWIGLU | dict(inner_size=16),
        of_hgrn2,
        lambda state: {"recurrent_state": state.cell * 8**0.5},
    ),
    "hgrn2_bounded": (
        "hgrn2",
        SWIGLU | dict(inner_size=16, lower_bound=0.3),
        of_hgrn2,
        lambda state: {"recurrent_state": state.cell * 8**0.5},
    ),
    "gated_deltanet": (
        "gated-deltanet",
        SWIGLU | dict(inner_size=24, key_units=6),
        of_gated_deltanet,
        carry_of_deltanet,
    ),
    "gated_deltanet_negative": (
        "gated-deltanet",
        SWIGLU | dict(inner_size=24, key_units=6, negative_eigenvalues=True),
        of_gated_deltanet,
        carry_of_deltanet,
    ),
    "mingru": (
        "mingru",
        dict(inner_size=24, feed_forward_size=64, activation="gelu", positive=True),
        of_mingru,
        lambda state: {"": state.cell[:, None]},
    ),
    "xlstm_large_mlstm": (
        "mlstm",
        SWIGLU | dict(inner_size=16, key_units=4),
        of_large_mlstm,
        carry_of_large_mlstm,
    ),
    "xlstm_mlstm": (
        "mlstm",
        dict(block="gated", block_norm="layer", inner_size=64, convolution=4, gate_cap=None),
        of_mlstm,
        carry_of_mlstm,
    ),
    "xlstm_slstm": (
        "slstm",
        dict(block_norm="layer", convolution=4, feed_forward_size=64, activation="geglu"),
        of_slstm,
        carry_of_slstm,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_is_its_authors(name):
    """Outputs, carry and gradients of a window, and three steps decoded after it."""
    kind, fields, of_theirs, carry_of = CASES[name]
    case = recorded(f"blocks/{name}")
    model = MODELS[kind](**{"block": "residual", "hidden_sizes": (16,), **fields})
    theirs = {their: array(value) for their, value in case["parameters"].items()}
    x = jnp.moveaxis(array(case["x"]), 1, 0)
    T = case["T"]

    @jax.jit
    def run(params, x, state):
        return apply_block(model, params, x, state, LayerNoise(), None, x.dtype)

    def cost(theirs, x):
        params = of_theirs(theirs)
        state = zero_block_state(model, zeros_of(x.shape[1], x.dtype), 16)
        if name == "recurrentgemma":
            state = before_a_document(model, params, x, state)
        y, state = run(params, x, state)
        return jnp.sin(y).sum(), (y, state)

    fresh = jax.eval_shape(lambda: init_block(model, jax.random.key(0), 16))
    shapes = jax.eval_shape(of_theirs, theirs)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, fresh)
    (found, dx), (y, state) = jax.jit(jax.grad(cost, (0, 1), has_aux=True))(theirs, x[:T])
    near(jnp.moveaxis(y, 0, 1), array(case["outputs"]))
    assert_carry(carry_of(state), state, case["carry"])
    grads = {**found, "x": jnp.moveaxis(dx, 0, 1)}
    assert grads.keys() == case["gradients"].keys()
    for their, expected in case["gradients"].items():
        near(summary(grads[their]), expected, atol=1e-5 * (1 + expected[0]), err_msg=their)
    params = jax.jit(of_theirs)(theirs)
    for now, decoded in zip(x[T:], jnp.moveaxis(array(case["decoded"]), 1, 0), strict=True):
        y, state = run(params, now[None], state)
        near(y[0], decoded)
    assert_carry(carry_of(state), state, case["carry_after_decoding"])


def array(value):
    return jax.device_put(np.reshape(value["values"], value["shape"]).astype(np.float32))


def assert_carry(found, state: BlockState, expected):
    """The carry's arrays, or their triples, are the recorded ones."""
    for part, value in expected.items():
        if part not in found:  # the inputs of the block's convolution, held below
            found[part] = state.inputs
        if isinstance(value, dict):
            value = array(value)
            given = found[part]
            if given.shape != value.shape:
                axis = next(at for at in (1, 2) if given.shape[at] != value.shape[at])
                value = value[:, 1:] if axis == 1 else value[:, :, 1:]
            near(given, value, err_msg=part)
        elif "conv_state" not in part:
            near(summary(found[part]), value, atol=1e-5 * (1 + value[0]), err_msg=part)


PRESETS = {
    "xlstm": "xlstm_large_mlstm",
    "hawk": "recurrentgemma",
    "hgrn2": "hgrn2",
    "gated-deltanet": "gated_deltanet",
    "mingru": "mingru",
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_block_that_is_held(name):
    """Its mechanisms, and the widths of cell and keys in the recording's proportions."""
    kind, fields, *_ = CASES[PRESETS[name]]
    model: Any = preset(name).model
    held = MODELS[kind](**{"block": "residual", "hidden_sizes": (16,), **fields})
    assert type(model) is type(held)
    names = ("block", "block_norm", "convolution", "activation", "gate_cap", "positive")
    for field in (*names, "lower_bound", "negative_eigenvalues"):
        assert getattr(model, field, None) == getattr(held, field, None)
    assert model.inner_size / model.hidden_sizes[0] == held.inner_size / 16
    if hasattr(held, "key_units"):
        shares = [one.key_size(one.cell_sizes[0]) / one.cell_sizes[0] for one in (model, held)]
        assert shares[0] == shares[1]


BLOCK = dict(block="residual", hidden_sizes=(8,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_sizes=(8, 6)), "block residual adds up .* equal widths: hidden_sizes is 8,6"),
        (
            dict(embedding_size=6),
            "equal widths: embedding_size is 6, hidden_sizes is 8; make them equal, or set proj",
        ),
        (dict(block="plain", convolution=4), "convolution needs block, and block is plain"),
        (dict(activation="gelu"), "activation needs feed_forward_size"),
        (dict(skip=True), "skip and block exclude each other"),
        (dict(model="hawk", inner_size=7), "inner_size is 7, which 2 heads do not divide"),
        (dict(model="mlstm", inner_size=2), "inner_size is 2 and heads is 2; set fewer heads or"),
        (dict(model="mogrifier", rank=5, inner_size=4), "rank is 5, and inner_size has 4"),
        (dict(optimizer="awd-lstm"), "for LSTMs; the model is lstm in residual blocks: take asgd"),
    ],
)
def test_a_block_that_cannot_be_is_refused(changes, message):
    with pytest.raises(JaxlmError, match=message):
        BASE.replace(**BLOCK | changes)


@pytest.mark.parametrize(
    "flags",
    [
        "--block residual --hidden-sizes 8,6 --embedding-size 8",
        "--block residual --hidden-sizes 8 --embedding-size 8 --convolution 5000",
        "--model attention --attention-window 0",
    ],
)
def test_a_block_that_cannot_be_is_one_sentence_at_the_command_line(flags, capsys):
    assert main(["train", "--corpus", "embedded-tiny", *flags.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_dropout_falls_on_what_a_block_adds_and_on_what_the_head_reads():
    fields = dict(keep_output=0.5, keep_last_output=0.25, feed_forward_size=4, locked_dropout=True)
    model = BASE.replace(**BLOCK | fields).model
    params = drawn_params(model)
    x = jnp.ones((2, 3, 8))
    carry = stack.zero_carry(model, 3)
    drawn = jax.eval_shape(lambda: draw_noise(model, jax.random.key(1), 2, 3))
    shapes = jax.tree.map(jnp.shape, (drawn.outputs, drawn.feed_forwards, drawn.features))
    assert shapes == (((1, 3, 8),), ((1, 3, 8),), (1, 3, 8))
    kept = jnp.ones((1, 3, 8), bool)
    read = jax.jit(lambda noise: stack.last_outputs(model, params, noise, x, carry)[:2])
    nothing, features = read(Noise(outputs=(~kept,), feed_forwards=(~kept,), features=kept))
    near(nothing, block_norm(model, params["norm"], x))
    near(features, 4 * nothing)
    for part in ("outputs", "feed_forwards"):  # each by itself changes something
        masks: dict[str, Any] = {"outputs": (~kept,), "feed_forwards": (~kept,), part: (kept,)}
        assert float(abs(read(Noise(**masks))[0] - nothing).max()) > 0.01
