"""The training step, a pure function of recipe, state and window; and its loop over windows.

Letters: `T` steps, `B` batch, `R` rows of tokens, `W` windows of a call.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from jaxlm.base.errors import JaxlmError
from jaxlm.config.recipe import Recipe
from jaxlm.data.windows import Windows
from jaxlm.distributed.mesh import constrain_sharding
from jaxlm.models import stack
from jaxlm.models.noise import Noise, growing, is_random, sums_all_words
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.training.gradient import Part, apply_updates, gradient
from jaxlm.training.validations import (
    Average,
    Validations,
    averaged,
    averaging_started,
    first_average,
    first_validations,
    rate_factor,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. State, config and corpus are the whole run.

    Attributes:
        step: Windows read; of members [M], as every leaf then has an axis M before its own.
        params: The parameters.
        opt_state: The state of the optimiser's transformation.
        carry: After the window before. With D dropout samples, the batch's row b has the rows b D
            to b D + D - 1.
        key: Folded with the step for a window's noise; None: the model has none.
        average: Of the parameters; None: the recipe has no average.
        validations: The record of all validations; None: the recipe needs none.
    """

    step: Int[Array, "*M"]
    params: Params
    opt_state: optax.OptState
    carry: Carry
    key: PRNGKeyArray | None
    average: Average | None = None
    validations: Validations | None = None

    @property
    def evaluated(self) -> Params:
        """The parameters that validation and test use."""
        if self.average is None:
            return self.params
        return self.average.params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """The tokens that one step reads, and their place in the run.

    Attributes:
        inputs: Token ids.
        targets: The tokens that follow the inputs.
        epoch: From 0.
        first: Whether it is the first of its epoch: the carry starts from zero.
        total: Windows of all epochs; None: unknown (`dropout_ramp` and `sampled_share` then take
            it to be 1).
        length: How many of the T steps count; None: all.
        rate: A factor on the learning rate, besides the schedule's.
        ranked: All ids, the most frequent word's first, by which `sampled_words` draws; None: they
            are in this order.
        small_batch: Rows that one gradient is computed of; 0: all.
    """

    inputs: Int[Array, "T B"]
    targets: Int[Array, "T B"]
    epoch: Scalar | int = 0
    first: Scalar | bool = False
    total: Scalar | int | None = None
    length: Scalar | None = None
    rate: Scalar | float = 1.0
    ranked: Int[Array, " V"] | None = None
    small_batch: int = field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """The results of one step; each a scalar, or one value per window.

    Attributes:
        cost: Nats, summed over T and averaged over B.
        grad_norm: Global norm of the gradient, before clipping.
        learning_rate: Without the factor of a random window's own length.
        finite: Whether cost and norm are finite; if not, no update was made.
    """

    cost: Float[Array, "*W"]
    grad_norm: Float[Array, "*W"]
    learning_rate: Float[Array, "*W"]
    finite: Bool[Array, "*W"]


def traced(recipe: Recipe) -> Recipe:
    """The recipe with its numbers as float32 arrays: the types that a compiled program takes."""
    return jax.device_put(jax.tree.map(np.float32, recipe))


def init_state(
    recipe: Recipe,
    key: PRNGKeyArray,
    batch_size: int,
    params: Params | None = None,
    *,
    patience: int = 0,
) -> TrainState:
    """The state before the first step.

    Args:
        recipe: Model, optimiser and schedule.
        key: Of the parameters and of all noise.
        batch_size: Rows B.
        params: In place of fresh ones; copied, since the loop donates its state.
        patience: Of early stopping, which needs a record of validations; 0: no early stopping.

    Raises:
        JaxlmError: The compute_dtype is `auto`, which `jaxlm.train` replaces by the device's.
    """
    model = recipe.model
    stack.check_dtype(model)
    params_key, noise_key = jax.random.split(key)
    if params is None:
        start: Params = jax.tree.map(jnp.array, stack.init_params(model, params_key))
    else:
        # `jnp.array` would compile a copy for each shape.
        start = jax.tree.map(partial(jax.device_put, may_alias=False), params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start,
        opt_state=recipe.optimizer.transformation(model, 0.0).init(start),
        carry=stack.zero_carry(
            model, batch_size * recipe.optimizer.dropout_samples, start["embedding"].dtype
        ),
        key=noise_key if is_random(model) else None,
        average=first_average(recipe.optimizer, start),
        validations=first_validations(recipe, patience),
    )


@partial(jax.jit, static_argnums=(2, 3))
def fresh_state(
    recipe: Recipe,
    seed: Scalar | np.uint32,
    batch_size: int,
    patience: int,
) -> TrainState:
    """`init_state` as one program, traced once for the state, its shapes and other seeds.

    Args:
        recipe: Model, optimiser and schedule.
        seed: Of the key.
        batch_size: Rows B.
        patience: Of early stopping; 0: none.
    """
    return init_state(recipe, jax.random.key(seed), batch_size, patience=patience)


def train_step(
    recipe: Recipe,
    state: TrainState,
    window: Window,
    noise: Noise | None = None,
) -> tuple[TrainState, Metrics]:
    """One update on one window. Gradients stop at the window's edge; the carry is passed on.

    The cost is the sum over the T steps of the mean over the batch, whose gradient is clipped, as
    in TensorFlow's PTB tutorial; a recipe may add penalties, or minimise the mean over all tokens
    (`minimised`). If the cost or the gradient norm is not finite, only the step count changes (and
    at an epoch's start the carry, to zero).

    Args:
        recipe: Model, optimiser and schedule; every number may be traced.
        state: As `init_state` makes it.
        window: Inputs and targets, ids in [0, V); a device does not check them, a `Corpus` does.
        noise: In place of noise drawn from the state's key and step; with small batches, of each
            along a first axis.

    Returns:
        The new state, its step one more, and the window's metrics.

    Raises:
        JaxlmError: The schedule depends on the number of all windows, and the window does not tell
            it.
    """
    if window.total is None and recipe.schedule.depends_on_total:
        raise JaxlmError(
            "the schedule depends on the number of all windows: give Window(total=...)"
        )
    total = 1 if window.total is None else window.total
    model = growing(recipe.model, state.step, total)
    optimizer = recipe.optimizer
    tokens = window.inputs
    carry = jax.tree.map(lambda leaf: jnp.where(window.first, 0, leaf), state.carry)
    key = None if state.key is None else jax.random.fold_in(state.key, state.step)
    exact = sums_all_words(model, state.step, total)

    whole_batch = Part(tokens, window.targets, carry, key, noise)
    averaging = averaging_started(state.validations)
    factor = rate_factor(recipe.schedule, state.validations, state.step, window.epoch, total)
    rule = optimizer.transformation(model, factor * window.rate)
    with jax.default_matmul_precision(model.matmul_precision):
        cost, new_carry, grads = gradient(
            replace(recipe, model=model),
            state.params,
            whole_batch,
            window.small_batch,
            window.length,
            exact,
            window.ranked,
        )
        norm = optimizer.norm(grads)
        if not optimizer.updates_rows:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            grads = apply_updates(zeros, grads, tokens)  # the embedding's rows become a table
        updates, opt_state = rule.update(
            grads, state.opt_state, state.params, grad_norm=norm, averaging=averaging
        )
    finite = jnp.isfinite(cost) & jnp.isfinite(norm)
    # Updates of zero: to choose between the old and the new parameters would copy a large table.
    updates = jax.tree.map(lambda update: jnp.where(finite, update, 0), updates)
    params = apply_updates(state.params, updates, tokens)
    average = averaged(optimizer, state.average, params, averaging)
    old = replace(state, params=params, carry=carry)
    new = replace(old, opt_state=opt_state, carry=new_carry, average=average)

    def new_if_finite(after: Array, before: Array) -> Array:
        if after is before:
            return after
        return jnp.where(finite, after, before)

    state = replace(jax.tree.map(new_if_finite, new, old), step=state.step + 1)
    return state, Metrics(cost, norm, optimizer.learning_rate * factor, finite)


def read_window(
    tokens: Int[Array, "R B"],
    windows: Windows,
    bptt_length: int,
    small_batch: int = 0,
    ranked: Int[Array, " V"] | None = None,
) -> Window:
    """The window that one entry of `windows` locates.

    Args:
        tokens: The text at hand [R, B].
        windows: The entry: every array is a scalar, but offsets [B].
        bptt_length: Steps T; of random lengths the longest.
        small_batch: Rows that one gradient is computed of; 0: all.
        ranked: All ids, the most frequent word's first; None: they are in this order.
    """
    if windows.offsets is not None:
        places = windows.row + jnp.arange(bptt_length + 1)[:, None] + windows.offsets
        rows = jnp.take_along_axis(tokens, places % len(tokens), 0)
    elif windows.length is None:
        rows = lax.dynamic_slice_in_dim(tokens, windows.row, bptt_length + 1)
    else:  # padding may lie behind the last token
        rows = tokens.at[windows.row + jnp.arange(bptt_length + 1)].get(mode="clip")
    rate = 1.0 if windows.rate is None else windows.rate
    return Window(
        rows[:-1],
        rows[1:],
        windows.epoch,
        windows.first,
        windows.total,
        windows.length,
        rate,
        ranked,
        small_batch,
    )


@partial(jax.jit, static_argnames=("bptt_length", "small_batch", "mesh"), donate_argnames="state")
def train_windows(
    recipe: Recipe,
    state: TrainState,
    tokens: Int[Array, "R B"],
    windows: Windows,
    count: Scalar | int,
    skip_nonfinite: Scalar | bool | None = False,
    ranked: Int[Array, " V"] | None = None,
    *,
    bptt_length: int,
    small_batch: int = 0,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains windows in one call. Their count is traced: a shorter call compiles nothing anew.

    Args:
        recipe: Model, optimiser and schedule.
        state: Donated. With a mesh it lies where `place` puts it.
        tokens: The text at hand [R, B].
        windows: Where each window lies; arrays [W].
        count: How many of the W are trained, from the first on.
        skip_nonfinite: Whether the call continues after a window whose cost or gradient is not
            finite; None: always.
        ranked: All ids, the most frequent word's first; None: they are in this order.
        bptt_length: Steps T; of random lengths the longest.
        small_batch: Rows that one gradient is computed of; 0: all.
        mesh: Of the devices that share the batch and the vocabulary.

    Returns:
        The new state, and metrics [W]; entries of windows that were not trained are undefined.
    """

    def body(loop):
        done, state, metrics = loop
        entry = jax.tree.map(lambda column: column[done], windows)
        window = read_window(tokens, entry, bptt_length, small_batch, ranked)
        state, new = train_step(recipe, state, window)
        following = done + 1
        metrics = jax.tree.map(lambda column, value: column.at[done].set(value), metrics, new)
        return following, state, metrics

    def unfinished(loop):
        done, _, metrics = loop
        more = done < count
        if skip_nonfinite is None:
            return more
        return more & (skip_nonfinite | metrics.finite[jnp.maximum(done - 1, 0)])

    none = jnp.zeros(len(windows.row))
    metrics = Metrics(none, none, none, none == 0)
    # Within the mesh's context, functions can tell that devices share the program.
    context = nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with context:
        _, state, metrics = lax.while_loop(unfinished, body, (0, state, metrics))
    return constrain_sharding(mesh, state), metrics
