"""The training step: a pure function of state, numbers and window; and the scan of it over many windows."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh

from jaxlm.config.config import Hyper, ModelConfig
from jaxlm.data.windows import locate, num_windows
from jaxlm.distributed import mesh as parallel
from jaxlm.models import lstm as model
from jaxlm.training.loss import token_nats, window_nats
from jaxlm.training.optimizers import learning_rate, optimizer


@struct.dataclass
class TrainState:
    """Everything that a step changes; with the config and the corpus it is the whole run."""

    step: jax.Array  # windows trained, int32
    params: model.Params
    opt_state: optax.OptState
    carry: model.Carry
    key: jax.Array | None  # dropout's key, folded with the step; None: the model has no dropout
    compute_dtype: str = struct.field(pytree_node=False, default="float32")  # of products
    recurrent_op: str = struct.field(pytree_node=False, default="scan")


@struct.dataclass
class Window:
    """What one step reads: inputs and targets [T, B], and where in the training they lie."""

    inputs: jax.Array
    targets: jax.Array
    epoch: jax.Array | int = 0  # from 0; sets the learning rate
    first: jax.Array | bool = False  # of its epoch: the carry starts from zero


@struct.dataclass
class Metrics:
    """What one step tells; each a scalar, or one value per window."""

    cost: jax.Array  # nats: summed over T, averaged over B
    grad_norm: jax.Array  # of the cost's gradient, before clipping
    learning_rate: jax.Array


def init_state(key: jax.Array, config: ModelConfig, hyper: Hyper, batch_size: int,
               params: model.Params | None = None) -> TrainState:
    """The state before the first step, with fresh parameters or a copy of those given."""
    params_key, dropout_key = jax.random.split(key)
    start = model.init_params(params_key, config, hyper) if params is None else params
    start = jax.tree.map(jnp.array, start)  # copies: the loop donates its state, and the caller keeps what is his
    return TrainState(step=jnp.zeros((), jnp.int32), params=start, opt_state=optimizer(hyper, 0.0).init(start),
                      carry=model.zero_carry(start, batch_size), key=dropout_key if config.dropout else None,
                      compute_dtype=config.compute_dtype, recurrent_op=config.recurrent_op)


def train_step(state: TrainState, hyper: Hyper, window: Window) -> tuple[TrainState, Metrics]:
    """One update on one window. Gradients stop at the window's edge; the carry goes on.

    The cost is the sum over the T steps of the mean over the batch, and it is that cost's gradient that is
    clipped. The embedding's gradient stays one row for each token read, as TensorFlow's IndexedSlices do:
    the global norm counts every occurrence of a word by itself, and the update touches only the rows read.
    Where cost or gradient is not finite the parameters, the optimiser's state, the carry and the step come back
    as they were (at an epoch's start with the zero carry).
    """
    B = parallel.all_rows(window.inputs.shape[1])
    carry_in = jax.tree.map(lambda c: jnp.where(window.first, 0, c), state.carry)
    key = None if state.key is None else jax.random.fold_in(state.key, state.step)
    embedding, dense = state.params["embedding"], {k: v for k, v in state.params.items() if k != "embedding"}

    def cost_fn(embedded, dense):
        nats, (_, carry_out) = window_nats(dense, hyper, embedded.astype(state.compute_dtype), window.targets,
                                           carry_in, key, state.recurrent_op)
        return nats / B, carry_out

    (cost, carry), (rows, dense_grad) = jax.value_and_grad(cost_fn, argnums=(0, 1), has_aux=True)(
        model.embed(state.params, window.inputs), dense)
    cost, dense_grad = parallel.sum_over_data((cost, dense_grad))
    grads = (rows, dense_grad)
    grad_norm = _global_norm(*grads)
    rate = learning_rate(hyper, window.epoch)
    updates, opt_state = optimizer(hyper, rate).update(grads, state.opt_state, grad_norm=grad_norm)

    finite = jnp.isfinite(cost) & jnp.isfinite(grad_norm)
    embedded_update, dense_update = jax.tree.map(lambda update: jnp.where(finite, update, 0), updates)
    read, embedded_update = parallel.gather_rows((window.inputs, embedded_update))
    params = {**jax.tree.map(jnp.add, dense, dense_update),
              "embedding": embedding.at[parallel.own_words(read, len(embedding))].add(embedded_update)}
    carry = jax.tree.map(lambda new, old: jnp.where(finite, new, old), carry, carry_in)
    opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), opt_state, state.opt_state)
    state = replace(state, step=state.step + finite, params=params, opt_state=opt_state, carry=carry)
    return state, Metrics(cost, grad_norm, rate)


def _global_norm(rows: jax.Array, dense: model.Params) -> jax.Array:
    """The norm of the rows of all devices [T, B, E] and of the dense gradients, of which the softmax may be a part."""
    rows, dense = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), (rows, dense))
    squares = parallel.sum_over_data(rows), {**dense, "softmax": parallel.sum_over_model(dense["softmax"])}
    return jnp.sqrt(optax.tree.sum(squares))


def eval_step(params: model.Params, hyper: Hyper, window: Window, carry: model.Carry
              ) -> tuple[jax.Array, model.Carry]:
    """Nats of each target [T, B] and the new carry, without dropout."""
    return token_nats(params, hyper, model.embed(params, window.inputs), window.targets, carry)


def read_window(tokens: jax.Array, step: jax.Array, bptt_length: int, first: jax.Array | int = 0,
                windows: jax.Array | int | None = None) -> Window:
    """The window that a step trains on.

    tokens [R, B] are an epoch's rows [N // B, B], or its rows from window `first` on; then `windows` tells how
    many an epoch has.
    """
    epoch, index = locate(step, num_windows(tokens.shape[0], bptt_length) if windows is None else windows)
    rows = lax.dynamic_slice_in_dim(tokens, (index - first) * bptt_length, bptt_length + 1)
    return Window(inputs=rows[:-1], targets=rows[1:], epoch=epoch, first=index == 0)


@partial(jax.jit, static_argnames=("bptt_length", "max_windows", "mesh"), donate_argnames="state")
def train_windows(state: TrainState, hyper: Hyper, tokens: jax.Array, count: jax.Array,
                  skip_nonfinite: jax.Array | bool = False, first: jax.Array | int = 0,
                  windows: jax.Array | int | None = None, *, bptt_length: int, max_windows: int,
                  mesh: Mesh | None = None) -> tuple[TrainState, Metrics]:
    """`count` (traced, at most `max_windows`) steps in one call; metrics [max_windows], the first `count` filled.

    `tokens`, `first` and `windows` are `read_window`'s. A traced count means one compile serves whole calls and an
    epoch's tail. Of a window whose cost or gradient is not finite no update is kept: the call stops there, with that
    window's metrics the last filled; or, with `skip_nonfinite` (traced), it goes on with the next window.
    With a mesh, state and tokens lie on it as `parallel.put` and `parallel.put_rows` leave them.
    """
    where = parallel.specs(state)
    run = parallel.spread(mesh, partial(_train_windows, bptt_length=bptt_length, max_windows=max_windows),
                          (where, parallel.ROWS, *[parallel.SAME] * 5), (where, parallel.SAME))
    return run(state, tokens, hyper, count, skip_nonfinite, first, windows)


def _train_windows(state, tokens, hyper, count, skip_nonfinite, first, windows, *, bptt_length, max_windows):

    def body(loop):
        done, state, metrics = loop
        state, new = train_step(state, hyper, read_window(tokens, state.step, bptt_length, first, windows))
        state = replace(state, step=jnp.where(skip_nonfinite, start + done + 1, state.step))
        return done + 1, state, jax.tree.map(lambda all, one: all.at[done].set(one), metrics, new)

    def going_on(loop):
        done, state, _ = loop
        return (done < count) & (state.step == start + done)

    start = state.step
    metrics = Metrics(*(jnp.zeros(max_windows) for _ in range(3)))
    _, state, metrics = lax.while_loop(going_on, body, (0, state, metrics))
    return state, metrics
