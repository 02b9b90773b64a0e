"""training/gradient.py and weight decay:
what is minimised, what is reported, and what is clipped.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import BASE, ONE_LAYER, B, T, V, begun

from jaxlm.base.errors import JaxlmError
from jaxlm.models import heads, stack
from jaxlm.models.noise import draw_noise
from jaxlm.training.step import Window, train_step

TOKENS = jax.device_put(np.random.default_rng(0).integers(0, V, (T + 1, B)))
WINDOW = Window(TOKENS[:-1], TOKENS[1:])
drawn_noise = jax.jit(draw_noise, static_argnums=(2, 3))
step = jax.jit(
    train_step, compiler_options={"xla_backend_optimization_level": 0}
)  # as many to compile as recipes


def stepped(**fields):
    config = ONE_LAYER.replace(tied=True, **{"clip_norm": None, **fields})
    state = begun(config.recipe, jax.random.key(0), B)
    return state, *step(config.recipe, state, WINDOW)


def moved(before, after, rate):
    """The gradient that a step of SGD took."""
    return jax.tree.map(
        lambda a, b: (np.asarray(a, np.float64) - np.asarray(b)) / rate, before.params, after.params
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
    config = ONE_LAYER.replace(
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
    state = begun(config.recipe, jax.random.key(0), B)
    assert state.key is not None
    noise = drawn_noise(model, jax.random.fold_in(state.key, 0), T, B)

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


def test_the_cost_of_dropout_samples_is_that_of_their_mean_probability():
    """By a loop over samples, each a window of its own masks and carry, differentiated plainly."""
    D = 2
    length: Any = T - 2
    config = BASE.replace(
        hidden_sizes=(6,),
        experts=2,
        keep_latent=0.8,
        keep_state=0.7,
        cost="mean",
        activation_penalty=0.5,
        temporal_penalty=0.2,
        keep_embedding=0.8,
        keep_output=0.6,
        dropout_samples=D,
        clip_norm=None,
        learning_rate=0.1,
    )
    model = config.model
    state = begun(config.recipe, jax.random.key(0), B)
    rng = np.random.default_rng(1)
    carry = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), state.carry
    )
    state = replace(state, carry=carry)
    assert state.key is not None and carry[0].c.shape == (B * D, model.hidden_sizes[0])
    noise = drawn_noise(model, jax.random.fold_in(state.key, 0), T, B * D)
    counted = jnp.arange(T)[:, None] < length

    def of_sample(params, d):
        """The nats of each target, the penalties, and the carry, of each row's sample d."""
        masks = jax.tree.map(lambda mask: mask[..., d::D, :], noise)
        mine = jax.tree.map(lambda leaf: leaf[d::D], carry)
        h, x, after = stack.last_outputs(
            model, params, masks, stack.embed(params, WINDOW.inputs), mine, length
        )
        logits = heads.logits(model, params, x, masks.latents)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), WINDOW.targets[..., None], -1)
        kept = jnp.where(counted[..., None], x, 0)
        ar = (kept**2).sum() / (B * x.shape[-1])
        between = jnp.where(counted[1:, :, None], h[1:] - h[:-1], 0)
        tar = (between**2).sum() / (B * h.shape[-1]) * length / (length - 1)
        return nats[..., 0], ar, tar, after

    def plainly(params):
        nats, ar, tar, after = zip(*(of_sample(params, d) for d in range(D)), strict=True)
        mean = jnp.stack([jnp.exp(-each) for each in nats]).mean(0)
        cost = jnp.where(counted, -jnp.log(mean), 0).sum() / B
        total = cost + 0.5 * sum(ar) / D + 0.2 * sum(tar) / D
        return total / length, (cost, after)

    gradient = jax.jit(
        jax.value_and_grad(plainly, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    (_, (cost, after)), grads = gradient(state.params)
    new, metrics = step(config.recipe, state, replace(WINDOW, length=length))
    assert float(metrics.cost) == pytest.approx(float(cost), rel=1e-5)
    for d in range(D):
        jax.tree.map(
            lambda a, b, d=d: np.testing.assert_allclose(a[d::D], b, rtol=1e-4, atol=1e-6),
            new.carry,
            after[d],
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        moved(state, new, 0.1),
        grads,
    )


@pytest.mark.parametrize(
    "fields", [{}, dict(keep_words=0.5, tied=True), dict(keep_output=0.5, sampled_words=4)]
)
def test_dropout_samples_need_dropout_of_units_and_all_words(fields):
    with pytest.raises(JaxlmError, match=r"set keep_output .* or set dropout_samples to 1"):
        BASE.replace(dropout_samples=2, **fields)
