"""The training step: a pure function of recipe, state and window; and its loop over the windows of one call."""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jaxlm.config.config import Recipe
from jaxlm.data.windows import Windows
from jaxlm.distributed.mesh import stay
from jaxlm.errors import JaxlmError
from jaxlm.models import stack
from jaxlm.models.noise import Noise, draw_noise, growing, is_random
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.training import averaging, gradients, optimizers
from jaxlm.training.averaging import Averaging
from jaxlm.training.cost import minimised
from jaxlm.training.schedules import factor
from jaxlm.training.small_batches import Gradient, Part, gradient_of
from jaxlm.training.validations import Memory, first_memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; with the config and the corpus it is the whole run."""

    step: jax.Array  # windows read, int32
    params: Params
    opt_state: optax.OptState
    carry: Carry
    key: jax.Array | None  # folded with the step for a window's noise; None: the model has none
    average: Params | None = None  # of the parameters, where the recipe asks for it
    averaging: Averaging | None = None  # where it is even
    memory: Memory | None = None  # of all validations, where something follows from them

    @property
    def evaluated(self) -> Params:
        """The parameters that validation and test use."""
        return self.params if self.average is None else self.average


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """What one step reads: inputs and targets [T, B], and where in the run they lie."""

    inputs: jax.Array
    targets: jax.Array
    epoch: jax.Array | int = 0  # from 0
    first: jax.Array | bool = False  # of its epoch: the carry starts from zero
    total: jax.Array | int = 1  # windows of all epochs
    length: jax.Array | None = None  # of the T steps how many count; None: all
    rate: jax.Array | None = None  # factor on the learning rate, besides the schedule's; None: 1
    small_batch: int = field(default=0, metadata={"static": True})  # rows of one gradient; 0: all


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """The results of one step; each a scalar, or one value per window."""

    cost: jax.Array  # nats: summed over T, averaged over B
    grad_norm: jax.Array  # of the cost's gradient, before clipping
    learning_rate: jax.Array  # without the factor of a random window's own length
    finite: jax.Array  # cost and gradient norm; where not, no update was made


def traced(recipe: Recipe) -> Recipe:
    """The recipe with its numbers as arrays of float32: a program takes them as they are, and none is compiled here."""
    return jax.device_put(jax.tree.map(np.float32, recipe))


def init_state(
    recipe: Recipe, key: jax.Array, batch_size: int, params: Params | None = None, *, patience: int = 0
) -> TrainState:
    """The state before the first step, with fresh parameters or a copy of those given.

    Args:
      recipe: model, optimiser and schedule.
      key: of the parameters and of all noise.
      batch_size: rows B.
      params: in place of fresh ones; copied, since the loop donates its state.
      patience: of early stopping, which remembers the validations; 0: there is none.

    Raises:
      JaxlmError: the compute_dtype is `auto`, which `jaxlm.train` replaces by the device's.
    """
    if recipe.model.compute_dtype == "auto":
        raise JaxlmError(
            "compute_dtype is auto, which jaxlm.train resolves: for a step of your own take float32 or bfloat16"
        )
    params_key, noise_key = jax.random.split(key)
    start: Params = jax.tree.map(jnp.array, stack.init_params(recipe.model, params_key) if params is None else params)
    average = jax.tree.map(jnp.copy, start) if averaging.averages(recipe) else None
    return TrainState(
        jnp.zeros((), jnp.int32),
        start,
        optimizers.transformation(recipe, 0.0).init(start),
        stack.zero_carry(recipe.model, batch_size, start["embedding"].dtype),
        noise_key if is_random(recipe.model) else None,
        average,
        averaging.first(recipe),
        first_memory(recipe, patience),
    )


@partial(jax.jit, static_argnums=(2, 3))
def fresh_state(recipe: Recipe, seed: np.uint32, batch_size: int, patience: int) -> TrainState:
    """`init_state` as one program, its key made within, and traced once for the state, its shapes and other seeds."""
    return init_state(recipe, jax.random.key(seed), batch_size, patience=patience)


def train_step(
    recipe: Recipe, state: TrainState, window: Window, noise: Noise | None = None
) -> tuple[TrainState, Metrics]:
    """One update on one window. Gradients stop at the window's edge; the carry is passed on.

    The cost is the sum over the T steps of the mean over the batch, and it is that cost's gradient that is clipped, as
    in TensorFlow's PTB tutorial; a recipe may add penalties, or minimise the mean over all tokens (`cost.py`). Where
    the cost or the gradient norm is not finite, parameters, optimiser and average stay as they were, and so does the
    carry (at an epoch's start it is zero).

    Args:
      recipe: model, optimiser and schedule; every number may be traced.
      state: as `init_state` makes it.
      window: inputs and targets [T, B], ids in [0, V); a device does not check them, a `Corpus` does.
      noise: in place of what the state's key and step draw; with small batches, with an axis of these before its own.

    Returns:
      The new state, its step one more, and the window's metrics.
    """
    model = growing(recipe.model, state.step, window.total)
    recipe = replace(recipe, model=model)
    carry = jax.tree.map(lambda c: jnp.where(window.first, 0, c), state.carry)
    share = model.sampled_share
    exact = False if share is None else state.step >= share * window.total
    key = None if state.key is None or noise is not None else jax.random.fold_in(state.key, state.step)

    def of_part(part: Part) -> Gradient:
        inputs, (T, B), noise = part.inputs, part.inputs.shape, part.noise
        if noise is None:
            own = key if key is None or part.number is None else jax.random.fold_in(key, part.number)
            noise = draw_noise(model, own, T, B)
        trained = stack.read_rows(state.params, inputs) if optimizers.takes_rows(recipe) else state.params

        def cost_fn(trained):
            return minimised(recipe, trained, noise, inputs, part.targets, part.carry, window.length, exact)

        (_, (cost, new_carry)), grads = jax.value_and_grad(cost_fn, has_aux=True)(trained)
        return cost, new_carry, grads

    whole = Part(window.inputs, window.targets, carry, noise=noise)
    cost, new_carry, grads = gradient_of(of_part, whole, window.small_batch)
    norm = optimizers.counted_norm(recipe, grads)
    if optimizers.takes_rows(recipe) and optimizers.counts_rows(recipe):
        grads = gradients.dense(grads, state.params, window.inputs)
    finite = jnp.isfinite(cost) & jnp.isfinite(norm)

    lowered = None if state.memory is None or state.memory.lowered is None else state.memory.lowered.factor
    scale = factor(recipe.schedule, state.step, window.epoch, window.total, lowered)
    own = scale if window.rate is None else scale * window.rate
    moved = averaging.moved_by(recipe, state.averaging, own)
    updates, opt_state = optimizers.transformation(recipe, moved).update(
        grads, state.opt_state, state.params, grad_norm=norm
    )
    params = gradients.apply_updates(
        state.params, jax.tree.map(lambda u: jnp.where(finite, u, 0), updates), window.inputs
    )
    new_carry, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (new_carry, opt_state), (carry, state.opt_state)
    )
    average, counted = averaging.averaged(
        recipe, state.averaging, state.memory, state.average, params, state.step, own, finite
    )
    return (
        TrainState(state.step + 1, params, opt_state, new_carry, state.key, average, counted, state.memory),
        Metrics(cost, norm, recipe.optimizer.learning_rate * scale, finite),
    )


def read_window(tokens: jax.Array, windows: Windows, bptt_length: int, small_batch: int = 0) -> Window:
    """The window [T, B] that one entry of `windows` names, out of tokens [R, B]."""
    if windows.length is None:
        rows = lax.dynamic_slice_in_dim(tokens, windows.row, bptt_length + 1)
    else:  # what is padded may lie behind the last token
        rows = tokens.at[windows.row + jnp.arange(bptt_length + 1)].get(mode="clip")
    return Window(
        rows[:-1], rows[1:], windows.epoch, windows.first, windows.total, windows.length, windows.rate, small_batch
    )


@partial(jax.jit, static_argnames=("bptt_length", "small_batch", "mesh"), donate_argnames="state")
def train_windows(
    recipe: Recipe,
    state: TrainState,
    tokens: jax.Array,
    windows: Windows,
    count: jax.Array,
    skip_nonfinite: jax.Array | bool = False,
    *,
    bptt_length: int,
    small_batch: int = 0,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """The first `count` (traced) of the windows, in one call, so that an epoch's tail compiles nothing anew.

    Args:
      recipe: model, optimiser and schedule.
      state: donated. With a mesh it lies where `place` puts it.
      tokens: [R, B].
      windows: where each window lies; arrays [W].
      count: how many of the W are trained.
      skip_nonfinite: whether the call goes on after a window whose cost or gradient is not finite, of which no update
        is made; else it ends there.
      bptt_length: steps T; where lengths are random, the longest.
      small_batch: rows that one gradient is computed of; 0: all.
      mesh: of the devices that share the batch and the vocabulary.

    Returns:
      The new state, and metrics [W], of which those of windows trained count.
    """

    def body(loop):
        done, state, metrics = loop
        window = read_window(tokens, jax.tree.map(lambda column: column[done], windows), bptt_length, small_batch)
        state, new = train_step(recipe, state, window)
        return done + 1, state, jax.tree.map(lambda column, one: column.at[done].set(one), metrics, new)

    def unfinished(loop):
        done, _, metrics = loop
        more = done < count
        return more if skip_nonfinite is True else more & (skip_nonfinite | metrics.finite[jnp.maximum(done - 1, 0)])

    size = len(windows.row)
    metrics = Metrics(*(jnp.zeros(size) for _ in range(3)), finite=jnp.ones(size, bool))
    _, state, metrics = lax.while_loop(unfinished, body, (0, state, metrics))
    return stay(mesh, state), metrics
