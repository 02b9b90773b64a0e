"""Today's cells beside their papers' equations, step by step in NumPy's float64, and beside recorded trajectories."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.kinds import MODELS
from jaxlm.models.recurrent import CellNoise

T, B, E, H = 23, 3, 5, 4  # T: more than a chunk, and no multiple of one


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(kind, **fields):
    """A model of the kind, a layer's parameters with none at zero, inputs [T, B, E] and a carry."""
    model, rng = MODELS[kind](**fields), np.random.default_rng(0)
    params = model.init_layer(jax.random.key(0), E, H)
    params, state = (
        jax.tree.map(lambda leaf: leaf + jnp.asarray(0.7 * rng.normal(size=leaf.shape), leaf.dtype), tree)
        for tree in (params, model.zero_state(B, H, jnp.float32))
    )
    return model, params, jnp.asarray(rng.normal(size=(T, B, E)), jnp.float32), state


def step_by_step(kind, step, **fields):
    """Holds a window, and T windows of one step, to `step(params, state, x [B, E]) -> (y [B, H], state)`."""
    model, params, x, state = drawn(kind, **fields)
    apply = jax.jit(lambda x, state: model.apply_layer(params, x, state, CellNoise(), None))
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
    np.testing.assert_allclose(ours, np.stack(outputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.stack(singly), ours, rtol=1e-5, atol=1e-5)
    for found in (after, state):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, theirs)


def test_minlstm_is_the_paper_s_equations():
    """arXiv:2410.01201, section 3.2: the gates f and i over their sum."""

    def step(params, h, x):
        f, i, candidate = np.split(x @ params["kernel"] + params["bias"], 3, -1)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * candidate
        return h, h

    step_by_step("minlstm", step)
