"""training/gradient.py and weight decay:
what is minimised, what is reported, and what is clipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, B, T, V

from jaxlm.models import heads, stack
from jaxlm.models.noise import draw_noise
from jaxlm.training.step import Window, init_state, train_step

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (T + 1, B)))
WINDOW = Window(TOKENS[:-1], TOKENS[1:])
started = jax.jit(init_state, static_argnums=2)
step = jax.jit(
    train_step, compiler_options={"xla_backend_optimization_level": 0}
)  # as many to compile as recipes


def stepped(**fields):
    config = BASE.replace(tied=True, **{"clip_norm": None, **fields})
    state = started(config.recipe, jax.random.key(0), B)
    return state, *step(config.recipe, state, WINDOW)


def moved(before, after, rate):
    """The gradient that a step of SGD took."""
    return jax.tree.map(
        lambda a, b: (np.asarray(a, np.float64) - b) / rate, before.params, after.params
    )


def test_the_mean_over_tokens_moves_as_the_sum_at_a_rate_t_times_smaller():
    _, summed, told = stepped(learning_rate=0.1)
    _, mean, same = stepped(learning_rate=0.1 * T, cost="mean")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        summed.params,
        mean.params,
    )
    assert float(told.cost) == pytest.approx(float(same.cost), rel=1e-6)  # what is reported stays
    assert float(told.grad_norm) == pytest.approx(T * float(same.grad_norm), rel=1e-5)


@pytest.mark.parametrize("cost", ["sum", "mean"])
def test_penalties_are_in_the_gradient_and_not_in_the_reported_cost(cost):
    """AR on the dropped outputs, TAR on the undropped ones, L2 on everything; written plainly."""
    config = BASE.replace(
        tied=True,
        keep_output=0.7,
        locked_dropout=True,
        cost=cost,
        activation_penalty=2.0,
        temporal_penalty=3.0,
        l2_penalty=0.1,
        clip_norm=None,
        learning_rate=0.1,
    )
    model = config.model
    state = started(config.recipe, jax.random.key(0), B)
    assert state.key is not None
    noise = jax.jit(draw_noise, static_argnums=(2, 3))(
        model, jax.random.fold_in(state.key, 0), T, B
    )

    def plainly(params):
        h, d, _ = stack.last_outputs(
            model, params, noise, stack.embed(params, WINDOW.inputs), state.carry
        )
        nats = heads.summed_nats(model, params, d, WINDOW.targets) / B
        penalty = 2 * (d**2).mean() + 3 * ((h[1:] - h[:-1]) ** 2).mean()
        l2 = 0.1 * sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) / 2
        return (nats + T * penalty if cost == "sum" else nats / T + penalty) + l2, nats

    (_, nats), grads = jax.jit(jax.value_and_grad(plainly, has_aux=True))(state.params)
    after, metrics = step(config.recipe, state, WINDOW)
    assert float(metrics.cost) == pytest.approx(float(nats), rel=1e-6)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        moved(state, after, 0.1),
        grads,
    )


def test_weight_decay_is_added_after_clipping_to_everything():
    before, plain, _ = stepped(learning_rate=0.1, clip_norm=0.01)
    _, decayed, _ = stepped(learning_rate=0.1, clip_norm=0.01, weight_decay=0.5)
    jax.tree.map(
        lambda start, a, b: np.testing.assert_allclose(
            b, a - 0.1 * 0.5 * start, rtol=1e-4, atol=1e-6
        ),
        before.params,
        plain.params,
        decayed.params,
    )


def test_two_biases_move_twice_as_far_and_count_twice_in_the_norm():
    """PyTorch's, of which ours is the sum; the clipped norm is 1e-6 larger there."""
    fields = dict(learning_rate=0.1, cost="mean")
    before, plain, told = stepped(**fields)
    _, quirky, twice = stepped(**fields, optimizer="awd-lstm")
    gradient = moved(before, plain, 0.1)
    found = moved(before, quirky, 0.1)
    biases = [layer["bias"] for layer in gradient["layers"]]
    assert float(twice.grad_norm) ** 2 == pytest.approx(
        float(told.grad_norm) ** 2 + sum(float((bias**2).sum()) for bias in biases), rel=1e-4
    )
    for layer, bias in zip(found["layers"], biases, strict=True):
        np.testing.assert_allclose(layer["bias"], 2 * bias, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["embedding"], gradient["embedding"], rtol=1e-3, atol=1e-5)
