"""The Mogrifier: its op beside a plain scan of its cell,
and against what DeepMind's lamb recorded (golden/mogrifier.json).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from recordings import recorded, summary

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.models import stack
from jaxlm.models.noise import Noise
from jaxlm.ops import mogrifier as mogrifier_op
from jaxlm.ops.lstm import LSTMState, lstm
from jaxlm.ops.mogrifier import Limits, mogrifier
from jaxlm.ops.recurrence import recurrence_reference
from jaxlm.scoring.stream import eval_step
from jaxlm.training.step import Window, init_state, train_step


def mogrifier_reference(*arguments):
    """The op, its cell in a plain scan that JAX differentiates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mogrifier_op, "recurrence", recurrence_reference)
        return mogrifier(*arguments)


OPS = {"fast": mogrifier, "plain": mogrifier_reference}


def draw(model, T, B, E, H, dtype=jnp.float32, seed=0):
    """Inputs, weights, carry and both masks."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jax.device_put(np.asarray(rng.normal(size=shape) * 0.5, dtype))

    shapes = jax.eval_shape(lambda key: model.init_layer(key, E, H), jax.random.key(0))
    weights = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)
    return (
        normal(T, B, E),
        weights,
        LSTMState(normal(B, H), normal(B, H)),
        normal(B, H),
        normal(B, H),
    )


def values_and_gradients(op, input_gate, x, weights, state, limits):
    """A scalar in which outputs and both parts of the final carry weigh differently,
    and all its gradients.
    """

    def scalar(x, weights, state, limits):
        y, final = op(x, weights, state, input_gate, limits)
        return jnp.sum(jnp.sin(y)) + jnp.sum(final.c**2) + 2 * jnp.sum(
            final.h * jnp.cos(final.c)
        ), (y, final)

    return jax.jit(jax.value_and_grad(scalar, (0, 1, 2, 3), has_aux=True))(
        x, weights, state, limits
    )


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


@settings(max_examples=4)
@given(
    rounds=st.integers(0, 3),
    rank=st.sampled_from([0, 2]),
    gate=st.sampled_from(["free", "capped", "coupled"]),
    norm=st.booleans(),
    clip=st.sampled_from([None, 0.3]),
    masks=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(rounds, rank, gate, norm, clip, masks, wide, seed):
    with jax.enable_x64(wide):
        model = jaxlm.Mogrifier(rounds=rounds, rank=rank, input_gate=gate, layer_norm=norm)
        x, weights, state, held, updated = draw(
            model, 3, 2, 4, 3, jnp.float64 if wide else jnp.float32, seed
        )
        limits = Limits(clip, held if masks else None, updated if masks else None)
        found = [values_and_gradients(op, gate, x, weights, state, limits) for op in OPS.values()]
        rtol, atol = (1e-9, 1e-11) if wide else (1e-3, 2e-5)
        assert_close(*found, rtol=rtol, atol=atol)


def test_without_rounds_it_is_the_lstm():
    x, weights, state, *_ = draw(jaxlm.Mogrifier(rounds=0), 5, 2, 4, 3)
    found = jax.jit(mogrifier)(x, weights, state)
    assert_close(found, jax.jit(lstm)(x, weights["kernel"], weights["bias"], state))


@pytest.mark.parametrize("gate", ["free", "capped", "coupled"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_cell_by_hand(gate, rank):
    """Melis et al. 2020 in NumPy and float64, gate by gate, with a clipped cell and two masks."""
    model = jaxlm.Mogrifier(rounds=3, rank=rank, input_gate=gate)
    x, weights, state, held, updated = draw(model, 4, 2, 5, 3)
    limits = Limits(0.1, held, updated)
    y, final = jax.jit(mogrifier, static_argnums=3)(x, weights, state, gate, limits)
    x, weights, state, held, updated = jax.tree.map(
        partial(np.asarray, dtype=np.float64), (x, weights, state, held, updated)
    )

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    c = state.c
    h = state.h
    for step, of_input in enumerate(x):
        of_state = h * held
        for place, one in enumerate(weights["rounds"]):
            matrix = one["left"] @ one["right"] if rank else one["full"]
            if place % 2:
                of_state = 2 * sigmoid(of_input @ matrix + one["bias"]) * of_state
            else:
                of_input = 2 * sigmoid(of_state @ matrix + one["bias"]) * of_input
        z = np.concatenate([of_input, of_state], 1) @ weights["kernel"] + weights["bias"]
        *i, j, f, o = np.split(z, len(weights["bias"]) // 3, 1)
        taken = 1 - sigmoid(f) if gate == "coupled" else sigmoid(i[0])
        taken = np.minimum(taken, 1 - sigmoid(f)) if gate == "capped" else taken
        c = sigmoid(f) * c + taken * np.tanh(j) * updated
        h = sigmoid(o) * np.tanh(c)
        c = np.clip(c, -0.1, 0.1)
        np.testing.assert_allclose(y[step], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(final.c, c, rtol=1e-4, atol=1e-5)
    assert (np.abs(c) == 0.1).any()


def test_bfloat16_multiplies_in_bfloat16_and_carries_in_float32():
    x, weights, state, *_ = draw(jaxlm.Mogrifier(rounds=2, rank=2), 5, 3, 8, 6)
    x = x.astype(jnp.bfloat16)
    fast, plain = (
        values_and_gradients(op, "capped", x, weights, state, Limits()) for op in OPS.values()
    )
    (_, (y, final)), gradients = fast
    assert (y.dtype, final.c.dtype, gradients[0].dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients[1:])} == {jnp.dtype(jnp.float32)}
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        assert np.abs(a - b).max() < 0.05 * np.abs(b).max()


def test_each_gradient_of_a_matrix_is_one_product_after_the_backward_scan():
    """No matrix is carried or added up in a scan of the fast op;
    in the reference the gradient of each is.
    """
    x, weights, state, *_ = draw(jaxlm.Mogrifier(rounds=2), 7, 1, 4, 3)

    def carried(op):
        def cost(weights):
            return op(x, weights, state)[0].sum()

        def scans(jaxpr):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "scan":
                    yield equation
                for inner in jaxprs_in_params(equation.params):
                    yield from scans(inner)

        # What is carried has one step's shape; what is stacked has the steps before it.
        return {
            found.aval.shape
            for equation in scans(jax.make_jaxpr(jax.grad(cost))(weights).jaxpr)
            for found, of_step in zip(
                equation.outvars, equation.params["jaxpr"].out_avals, strict=True
            )
            if found.aval.shape == of_step.shape
        }

    assert {(4, 12), (3, 12), (3, 4), (4, 3)} <= carried(mogrifier_reference)
    assert not {(4, 12), (3, 12), (3, 4), (4, 3)} & carried(mogrifier)


GOLDEN = recorded("mogrifier")
SHAPES = ("T", "B", "D", "H", "seed", "mask_seed")
CELLS = GOLDEN["cells"]


def assert_recorded(array, expected, tolerance):
    """Relative to the array's norm: a sum may cancel."""
    np.testing.assert_allclose(
        summary(array), expected, rtol=0, atol=tolerance * max(expected[0], 1e-3) * 3
    )


def from_lamb(drawn, prefix="", linear=""):
    """One layer's weights from lamb's variables: [j, o, f, i] become i, j, f, o."""
    order = [gate for gate in "ijfo" if f"{prefix}{linear}B_{gate}" in drawn]
    theirs = [gate for gate in "jofi" if gate in order]
    apart = dict(zip(theirs, np.split(drawn[f"{prefix}{linear}W"], len(theirs), 1), strict=True))
    rounds = []
    while any(name.startswith(f"{prefix}fm_{len(rounds)}") for name in drawn):
        name = f"{prefix}fm_{len(rounds)}"
        rounds.append(
            {"full": drawn[f"{name}/kernel"], "bias": drawn[f"{name}/bias"]}
            if f"{name}/kernel" in drawn
            else {
                "left": drawn[f"{name}_weight_a"],
                "right": drawn[f"{name}_weight_b"],
                "bias": drawn[f"{name}_bias"],
            }
        )
    return {
        "kernel": np.concatenate([apart[gate] for gate in order], 1),
        "bias": np.concatenate([drawn[f"{prefix}{linear}B_{gate}"] for gate in order]),
        "rounds": rounds,
    }


def in_lamb_s_names(weights, names, prefix="", linear=""):
    """The inverse of `from_lamb`, for those names."""
    order = [gate for gate in "ijfo" if f"{prefix}{linear}B_{gate}" in names]
    theirs = [gate for gate in "jofi" if gate in order]
    kernels, biases = (
        dict(zip(order, np.split(weights[part], len(order), -1), strict=True))
        for part in ("kernel", "bias")
    )
    found = {f"{prefix}{linear}W": np.concatenate([kernels[gate] for gate in theirs], 1)} | {
        f"{prefix}{linear}B_{gate}": biases[gate] for gate in theirs
    }
    for place, one in enumerate(weights["rounds"]):
        name = f"{prefix}fm_{place}"
        parts = (
            {f"{name}/kernel": "full", f"{name}/bias": "bias"}
            if "full" in one
            else {f"{name}_weight_a": "left", f"{name}_weight_b": "right", f"{name}_bias": "bias"}
        )
        found |= {theirs: one[ours] for theirs, ours in parts.items()}
    return found


@pytest.mark.golden
@pytest.mark.parametrize(
    "case",
    CELLS,
    ids=lambda case: " ".join(
        f"{name}={value}" for name, value in case["config"].items() if name not in SHAPES
    ),
)
def test_the_cell_of_lamb(case):
    """Outputs, carry and every gradient, in float64 to the last digits that were recorded."""
    config = case["config"]
    T, B, D, H = (config[name] for name in "TBDH")
    g = np.random.default_rng(config["seed"])
    m = np.random.default_rng(config["mask_seed"])
    x = g.standard_normal((T, B, D)).astype(np.float32)
    c, h = (g.uniform(-0.5, 0.5, (B, H)).astype(np.float32) for _ in range(2))
    R = g.standard_normal((T, B, H)).astype(np.float32)
    drawn = {
        name: g.uniform(-0.4, 0.4, shape).astype(np.float32) for name, shape in case["variables"]
    }
    masks = {}
    for name, shape in (("input_dropout", (B, D)), ("state_dropout", (B, H))):
        rate = config.get(name)
        if rate:
            masks[name] = (m.random(shape) < 1 - rate) / (1 - rate)
    gate = (
        "coupled"
        if config.get("tie_gates")
        else "capped"
        if config.get("cap_input_gate", True)
        else "free"
    )
    with jax.enable_x64(True):
        limits = Limits(config.get("cell_clip"), masks.get("state_dropout"))
        weights, state, x = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64),
            (from_lamb(drawn), LSTMState(*map(jnp.asarray, (c, h))), x),
        )

        def loss(weights, x, state):
            y, final = mogrifier(x * masks.get("input_dropout", 1.0), weights, state, gate, limits)
            return (y * R).sum(), (y, final)

        (value, (y, final)), (dweights, dx, dstate) = jax.jit(
            jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        )(weights, x, state)
    assert value == pytest.approx(case["loss"], rel=1e-9, abs=1e-9)
    assert_recorded(y, case["outputs"], 1e-9)
    np.testing.assert_allclose(final.h, case["h_last"], rtol=1e-7)
    np.testing.assert_allclose(final.c, case["c_last"], rtol=1e-7)
    found = in_lamb_s_names(jax.tree.map(np.asarray, dweights), drawn) | {
        "x": dx,
        "c0": dstate.c,
        "h0": dstate.h,
    }
    assert {*found} == {*case["gradients"]}
    for name, expected in case["gradients"].items():
        assert_recorded(found[name], expected, 1e-9)


LMS = GOLDEN["language_models"]
LAYER = "lm/rnn/skip_multi_rnn_cell/cell_{}/TiledLSTMCell/"
LOSS = 1e-4
NORM = 1e-4
EVALUATED = 1e-5  # relative


def lamb_config(case):
    """lamb's settings as jaxlm has them."""
    defaults = {
        "tie_gates": False,
        "cap_input_gate": True,
        "rmsprop_beta2": 0.999,
        "rmsprop_epsilon": 1e-8,
    }
    theirs = {**defaults, **case["config"]}
    E = theirs["input_embedding_size"]
    H = theirs["hidden_size"][0]

    def kept(name):
        if theirs.get(name):
            return 1 - theirs[name]
        return None

    return jaxlm.preset("small").replace(
        model="lamb-mogrifier",
        optimizer="lamb-adam",
        vocab_size=theirs["vocab_size"],
        embedding_size=E,
        hidden_sizes=(H,) * theirs["num_layers"],
        rounds=theirs["feature_mask_rounds"],
        rank=theirs["feature_mask_rank"],
        input_gate="capped" if theirs["cap_input_gate"] else "free",
        skip=True,
        tied=theirs["share_input_and_output_embeddings"],
        keep_embedding=kept("input_dropout"),
        keep_output=kept("inter_layer_dropout"),
        keep_last_output=kept("output_dropout"),
        keep_state=kept("state_dropout"),
        keep_update=kept("update_dropout"),
        keep_words=kept("embedding_dropout"),
        projection=E != H,
        keep_latent=kept("downprojected_output_dropout"),
        l2_penalty=theirs.get("l2_penalty"),
        activation_penalty=theirs.get("activation_norm_penalty"),
        locked_dropout=theirs.get("shared_mask_dropout", False),
        scale_embedding=theirs.get("scale_input_embeddings", False),
        learning_rate=case["learning_rate"],
        beta1=0.0,
        beta2=theirs["rmsprop_beta2"],
        epsilon=theirs["rmsprop_epsilon"],
        clip_norm=theirs["max_grad_norm"],
        batch_size=case["B"],
        bptt_length=theirs["max_time_steps"],
        decay=1.0,
    )


def lamb_params(case):
    """The weights that a case starts from."""
    g = np.random.default_rng(case["weight_seed"])
    drawn = {
        name: g.uniform(-case["scale"], case["scale"], shape).astype(np.float32)
        for name, shape in case["variables"]
    }
    layers = [
        from_lamb(drawn, LAYER.format(place), "tiled_linear/")
        for place in range(case["config"]["num_layers"])
    ]
    head = {"bias": drawn["om/om/bias"][0]}
    for ours, name in (("kernel", "om/om/weights"), ("projection", "om/om/projection/kernel")):
        if name in drawn:
            head[ours] = drawn[name]
    return {"embedding": drawn["im/embedding"], "layers": layers, "softmax": head}


def lamb_variables(case, params):
    """Parameters, or a gradient, under lamb's names."""
    names = [name for name, _ in case["variables"]]
    found = {
        "im/embedding": params["embedding"],
        "om/om/bias": params["softmax"]["bias"],
        "om/om/weights": params["softmax"].get("kernel"),
        "om/om/projection/kernel": params["softmax"].get("projection"),
    }
    for place, weights in enumerate(params["layers"]):
        found |= in_lamb_s_names(weights, names, LAYER.format(place), "tiled_linear/")
    return {name: found[name] for name in names}


def lamb_noise(case, config, step):
    """The masks of a training step: those of input and layers are drawn step by step, in turns."""
    g = np.random.default_rng([case["mask_seed"], step])
    B = case["B"]
    rates = case["config"]
    drawn = {}
    for name, shape in case["masks"]:
        shape = [B if side == "B" else side for side in shape]
        drawn.setdefault(name, []).append(g.random(shape) < 1 - rates[name.split(",")[0]])

    def found(name):
        if name not in drawn:
            return None
        return jnp.asarray(drawn[name][0] if drawn[name][0].ndim == 3 else np.stack(drawn[name]))

    def fixed(name):
        masks = (found(f"{name}, layer {place}") for place in layers)
        return tuple(mask if mask is None else mask[0] for mask in masks)

    layers = range(len(config.model.hidden_sizes))
    words = found("embedding_dropout")
    outputs = (
        *(found(f"inter_layer_dropout, layer {place}") for place in layers[1:]),
        found("output_dropout"),
    )
    return Noise(
        found("input_dropout, layer 0"),
        outputs,
        None if words is None else words[0],
        (),
        fixed("state_dropout"),
        found("downprojected_output_dropout"),
        fixed("update_dropout"),
    )


@pytest.mark.golden
@pytest.mark.parametrize("case", LMS, ids=lambda case: case["name"].split(",")[0])
def test_the_language_model_of_lamb(case):
    """Ten steps with the recorded draws of every mask, then a validation."""
    config = lamb_config(case)
    T = config.train.bptt_length
    B = case["B"]
    V = config.model.vocab_size
    steps = case["steps"]
    t = np.random.default_rng(case["token_seed"])
    train, valid = (
        (t.random((B, windows * T + 1)) ** 3 * V).astype(np.int32).T for windows in (steps, 3)
    )
    state = init_state(
        config.recipe, jax.random.key(0), B, jax.tree.map(jnp.asarray, lamb_params(case))
    )
    run = jax.jit(train_step)
    costs = []
    for step in range(steps):
        tokens = jnp.asarray(train[step * T : (step + 1) * T + 1])
        state, metrics = run(
            config.recipe, state, Window(tokens[:-1], tokens[1:]), lamb_noise(case, config, step)
        )
        costs.append((metrics.cost, metrics.grad_norm))
    cost, norm = np.array(costs).T
    np.testing.assert_allclose(cost, case["cost"], rtol=LOSS)
    np.testing.assert_allclose(norm, case["grad_norm"], rtol=NORM)
    for name, array in lamb_variables(case, jax.tree.map(np.asarray, state.params)).items():
        assert np.linalg.norm(array) == pytest.approx(case["tensors"][name][0], rel=NORM), name
        assert_recorded(array, case["tensors"][name], NORM)
    carry = stack.zero_carry(config.model, B)
    model = config.model
    for place, expected in enumerate(case["valid"]):
        tokens = jnp.asarray(valid[place * T : (place + 1) * T + 1])
        nats, carry = eval_step(model, state.params, tokens[:-1], tokens[1:], carry)
        assert float(nats.sum()) / (T * B) == pytest.approx(expected, rel=EVALUATED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(rank=9, hidden_sizes=(12, 8), embedding_size=10),
            "rank is 9, and hidden_sizes has 8; rank 0 is full",
        ),
        (
            dict(rank=9, hidden_sizes=(12, 12), embedding_size=8),
            "rank is 9, and embedding_size has 8",
        ),
        (
            dict(skip=True, hidden_sizes=(12, 8)),
            "skip adds up the layers' outputs, .*: hidden_sizes is 12,8",
        ),
        (dict(cell_clip=0.0), "cell_clip must be above 0"),
        (dict(input_gate="tied"), "input_gate must be free, capped or coupled"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(changes, message):
    with pytest.raises(JaxlmError, match=message):
        jaxlm.preset("small").replace(model="mogrifier", **changes)


def test_the_preset_has_the_published_size():
    model = jaxlm.preset("mogrifier").model
    shapes = jax.eval_shape(lambda key: stack.init_params(model, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(24e6, rel=2e-3)
