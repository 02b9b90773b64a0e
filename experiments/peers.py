"""The same training step in jaxlm, plain Flax, PyTorch and TensorFlow 1's graph mode, for
`benchmark.py`.

Each maker takes a Config and tokens [N // B, B] and returns `run(n)`: n windows of truncated
backpropagation with the carry passed on, the cost summed over T and averaged over B, clipped by the
global norm, plain SGD (jaxlm takes the config's own optimiser). `python peers.py MAKER PRESET
'{"field": value}'` is a worker: for each JSON line {"windows": n} on stdin it prints the seconds of
n windows.
"""

import argparse
import atexit
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm import preset
from jaxlm.cli.ending import exit_code
from jaxlm.config.config import Config

Run = Callable[[int], float | None]  # returns the MiB of processes of its own, if it has any
Take = Callable[
    [int, int], tuple[Any, int]
]  # of a row, and of the next call's: tokens, and the row they begin with
MEMBERS = 8

# The makers import jaxlm's modules themselves: `benchmark.py --commits` runs this file with another
# version of jaxlm, which needs to have the modules of the maker that is timed alone.


def jaxlm(config: Config, tokens: np.ndarray) -> Run:
    """jaxlm's step, with the text on the device.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    on_device = jnp.asarray(tokens)
    return _trained(config, len(tokens), lambda *_: (on_device, 0))


def _trained(config: Config, rows: int, take: Take) -> Run:
    from jaxlm.runs.trainer import new_state
    from jaxlm.training.step import train_windows

    T = config.train.bptt_length
    recipe = jax.tree.map(jnp.float32, config.recipe)
    state = new_state(config)

    def call(tokens: Any, where: Any, count: int) -> None:
        nonlocal state
        state, metrics = train_windows(
            recipe, state, tokens, where, jnp.int32(count), bptt_length=T
        )
        metrics.cost.block_until_ready()

    return _in_calls(config, rows, take, call)


def _in_calls(config: Config, rows: int, take: Take, call: Callable[[Any, Any, int], None]) -> Run:
    """Epoch after epoch, as many windows in a call as the config has; `call` gets tokens, where
    they lie, how many.
    """
    from jaxlm.data.windows import WindowPlan

    T = config.train.bptt_length
    most = config.train.windows_per_call
    done = 0
    plan = WindowPlan(rows, T, 1)

    def run(windows: int) -> None:
        nonlocal done
        while windows:
            at = done % plan.per_epoch
            count = min(windows, most, plan.per_epoch - at)
            tokens, first_row = take(at * T, (at + count) % plan.per_epoch * T)
            call(tokens, plan.windows(at, count, most, first_row), count)
            windows = windows - count
            done = done + count

    return run


def in_turn(config: Config, tokens: np.ndarray) -> Run:
    """The members of a sweep as runs of their own, one after the other.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    runs = [jaxlm(config, tokens) for _ in range(MEMBERS)]

    def run(windows: int) -> None:
        for one in runs:
            one(windows)

    return run


def one_program(
    config: Config, tokens: np.ndarray, size: int = MEMBERS, vmapped: bool = False
) -> Run:
    """The members of a sweep in one program, one after the other, as a sweep on a CPU trains them;
    or, vmapped, with operations that they share, as on an accelerator.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
        size: members.
        vmapped: whether the members share operations.
    """
    from jaxlm.runs.trainer import new_state
    from jaxlm.training import members

    (recipes, states), on_device = (
        members.stacked(config.recipe, new_state(config), size, None),
        jnp.asarray(tokens),
    )
    shape: dict[str, Any] = {"bptt_length": config.train.bptt_length, "vmapped": vmapped}

    def call(tokens: Any, where: Any, count: int) -> None:
        nonlocal states
        each = jax.tree.map(lambda column: np.stack([column] * size), where)
        counts = np.full(size, count, np.int32)
        states, metrics = members.train_members(recipes, states, tokens, each, counts, **shape)
        metrics.cost.block_until_ready()

    return _in_calls(config, len(tokens), lambda *_: (on_device, 0), call)


def from_file(config: Config, tokens: np.ndarray, in_memory: bool = False) -> Run:
    """Windows of the prepared corpus that the config names, read from its file; or all of it in
    memory.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
        in_memory: whether the whole text is in memory.
    """
    from jaxlm.data.corpora import load_corpus
    from jaxlm.runs.loop import feed

    corpus = load_corpus(config.data.corpus)
    opened = ExitStack()
    ids = np.asarray(corpus.train, np.int32) if in_memory else corpus.train
    atexit.register(opened.close)
    take = opened.enter_context(feed(ids, config.train))
    return _trained(
        config.replace(vocab_size=len(corpus.vocab)), len(ids) // config.train.batch_size, take
    )


def processes(config: Config, tokens: np.ndarray) -> Run:
    """A process a core, pinned to it, with its share of the members in one program, as a long sweep
    on a CPU has it.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    from jaxlm.sweeps.supervisor import cores, pin

    number = min(len(cores()), MEMBERS)
    command = [sys.executable, __file__, "one-program", *sys.argv[2:4]]
    workers = [
        subprocess.Popen(
            [*command, str(members)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for members in (len(range(place, MEMBERS, number)) for place in range(number))
    ]
    for place, worker in enumerate(workers):
        pin(worker.pid, place, number)

    def run(windows: int) -> float:
        for worker in workers:
            print(json.dumps({"windows": windows}), file=worker.stdin, flush=True)
        return sum(
            json.loads(worker.stdout.readline())["peak_mib"] for worker in workers if worker.stdout
        )

    return run


def evaluation(config: Config, tokens: np.ndarray, split: str) -> Run:
    """Passes over as many tokens as a split of Penn Treebank has, as training validates and
    tests.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
        split: whose length counts, `valid` or `test`.
    """
    from jaxlm.runs.trainer import new_state
    from jaxlm.scoring.stream import stream_nats

    model = jax.tree.map(jnp.float32, config.recipe).model
    params = new_state(config).params
    ids = np.random.default_rng(1).integers(
        0, config.model.vocab_size, EVALUATED[split] + 1, np.int32
    )
    shape = (config.train.batch_size, config.train.bptt_length) if split == "validation" else (1, 1)

    def run(passes: int) -> None:
        for _ in range(passes):
            stream_nats(model, params, ids, *shape)

    return run


def flax(config: Config, tokens: np.ndarray, ours: bool = False) -> Run:
    """Plain Flax; or with the one line that `jaxlm.linen` changes.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
        ours: whether the cell is `jaxlm.linen`'s.
    """
    from flax import linen as nn

    from jaxlm.linen import LSTM

    def rnn(size: int) -> Any:
        options: dict[str, Any] = {"time_major": True, "return_carry": True}
        if ours:
            return LSTM(size, **options)
        return nn.RNN(nn.OptimizedLSTMCell(size), **options)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, carries):
            x = nn.Embed(config.model.vocab_size, config.model.embedding_size)(x)
            new = []
            for size, carry in zip(config.model.hidden_sizes, carries, strict=True):
                carry, x = rnn(size)(x, initial_carry=carry)
                new.append(carry)
            return nn.Dense(config.model.vocab_size)(x), new

    B = config.train.batch_size
    model = Model()
    carries = [(jnp.zeros((B, h)), jnp.zeros((B, h))) for h in config.model.hidden_sizes]
    params = model.init(jax.random.key(0), jnp.zeros((1, B), jnp.int32), carries)
    return _flax_run(config, tokens, model.apply, params, carries)


def nnx(config: Config, tokens: np.ndarray, ours: bool = False) -> Run:
    """Plain Flax NNX; or with the one line that `jaxlm.nnx` changes.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
        ours: whether the cell is `jaxlm.nnx`'s.
    """
    from flax import nnx

    from jaxlm.nnx import LSTM

    widths = (config.model.embedding_size, *config.model.hidden_sizes)
    B = config.train.batch_size
    rngs = nnx.Rngs(0)

    def rnn(inputs: int, size: int) -> Any:
        options: dict[str, Any] = {"time_major": True, "return_carry": True}
        if ours:
            return LSTM(inputs, size, rngs=rngs, **options)
        return nnx.RNN(nnx.OptimizedLSTMCell(inputs, size, rngs=rngs), **options)

    class Model(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Embed(config.model.vocab_size, widths[0], rngs=rngs)
            self.layers = nnx.List([rnn(a, b) for a, b in itertools.pairwise(widths)])
            self.head = nnx.Linear(widths[-1], config.model.vocab_size, rngs=rngs)

        def __call__(self, window, carries):
            x = self.embedding(window)
            new = []
            for one, carry in zip(self.layers, carries, strict=True):
                carry, x = one(x, initial_carry=carry)
                new.append(carry)
            return self.head(x), new

    graph, params, rest = nnx.split(Model(), nnx.Param, ...)
    carries = [(jnp.zeros((B, h)), jnp.zeros((B, h))) for h in widths[1:]]

    def apply(params, window, carries):
        return nnx.merge(graph, params, rest)(window, carries)

    return _flax_run(config, tokens, apply, params, carries)


def _flax_run(
    config: Config, tokens: np.ndarray, apply: Callable[..., Any], params: Any, carries: Any
) -> Run:
    """The usual loop around a Flax model: a jitted step for each window, optax's clipping and SGD.

    `apply` is (params, tokens [T, B], carries) -> (logits [T, B, V], carries).
    """
    import optax

    optimiser = optax.chain(
        optax.clip_by_global_norm(config.optimizer.clip_norm or 1e9), optax.sgd(1.0)
    )
    opt_state = optimiser.init(params)

    def step(params, opt_state, carries, window):
        def cost(params):
            logits, new = apply(params, window[:-1], carries)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, window[1:])
            return nats.sum() / config.train.batch_size, new

        (value, carries), grads = jax.value_and_grad(cost, has_aux=True)(params)
        updates, opt_state = optimiser.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, carries, value

    step = jax.jit(step, donate_argnums=(0, 1, 2))
    windows = _windows(config, tokens)

    def run(count: int) -> None:
        nonlocal params, opt_state, carries
        value = None
        for _ in range(count):
            params, opt_state, carries, value = step(params, opt_state, carries, next(windows))
        jax.block_until_ready(value)

    return run


def pytorch(config: Config, tokens: np.ndarray) -> Run:
    """The step in PyTorch.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    widths = (config.model.embedding_size, *config.model.hidden_sizes)
    embedding = nn.Embedding(config.model.vocab_size, widths[0])
    layers = nn.ModuleList(nn.LSTM(a, b) for a, b in itertools.pairwise(widths))
    head = nn.Linear(widths[-1], config.model.vocab_size)
    parameters = [*embedding.parameters(), *layers.parameters(), *head.parameters()]
    for parameter in parameters:
        nn.init.uniform_(parameter, -0.1, 0.1)
    optimiser = torch.optim.SGD(parameters, 1.0)
    carries = [None] * len(layers)
    windows = _windows(config, tokens)

    def run(count: int) -> None:
        nonlocal carries
        for _ in range(count):
            window = torch.from_numpy(next(windows)).long()
            x = embedding(window[:-1])
            new = []
            for layer, carry in zip(layers, carries, strict=True):
                x, carry = layer(x, carry)
                new.append(tuple(part.detach() for part in carry))
            cost = nn.functional.cross_entropy(
                head(x).flatten(0, 1), window[1:].flatten(), reduction="sum"
            )
            optimiser.zero_grad()
            (cost / config.train.batch_size).backward()
            nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm)
            optimiser.step()
            carries = new

    return run


def tensorflow(config: Config, tokens: np.ndarray) -> Run:
    """The step in TensorFlow 1's graph mode.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    import tensorflow as tf  # pyright: ignore

    tf1 = tf.compat.v1
    tf1.disable_eager_execution()
    B = config.train.batch_size
    T = config.train.bptt_length
    V = config.model.vocab_size
    widths = (config.model.embedding_size, *config.model.hidden_sizes)
    init = tf1.random_uniform_initializer(-0.1, 0.1)
    window = tf1.placeholder(tf.int32, [T + 1, B])
    before = [
        (tf1.placeholder(tf.float32, [B, h]), tf1.placeholder(tf.float32, [B, h]))
        for h in widths[1:]
    ]
    embedding = tf1.get_variable("embedding", [V, widths[0]], initializer=init)
    x = tf.unstack(tf.nn.embedding_lookup(embedding, window[:-1]))
    after = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        kernel = tf1.get_variable(f"kernel{i}", [a + b, 4 * b], initializer=init)
        bias = tf1.get_variable(f"bias{i}", [4 * b], initializer=tf1.zeros_initializer())
        (c, h), outputs = before[i], []
        for t in range(T):  # TensorFlow 1's BasicLSTMCell, op by op
            gates = tf.nn.bias_add(tf.matmul(tf.concat([x[t], h], 1), kernel), bias)
            gate_i, j, f, o = tf.split(gates, 4, 1)
            c = c * tf.sigmoid(f) + tf.sigmoid(gate_i) * tf.tanh(j)
            h = tf.tanh(c) * tf.sigmoid(o)
            outputs.append(h)
        x = outputs
        after.append((c, h))
    logits = tf1.nn.xw_plus_b(
        tf.concat(x, 0),
        tf1.get_variable("softmax_w", [widths[-1], V], initializer=init),
        tf1.get_variable("softmax_b", [V], initializer=init),
    )
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.reshape(window[1:], [-1]), logits=logits
    )
    variables = tf1.trainable_variables()
    grads, _ = tf.clip_by_global_norm(
        tf.gradients(tf.reduce_sum(nats) / B, variables), config.optimizer.clip_norm
    )
    update = tf1.train.GradientDescentOptimizer(1.0).apply_gradients(
        zip(grads, variables, strict=True)
    )
    session = tf1.Session()
    session.run(tf1.global_variables_initializer())
    carries = [(np.zeros((B, h), np.float32),) * 2 for h in widths[1:]]
    windows = _windows(config, tokens)

    def run(count: int) -> None:
        nonlocal carries
        for _ in range(count):
            feed = {window: next(windows)}
            for holders, values in zip(before, carries, strict=True):
                feed.update(zip(holders, values, strict=True))
            carries, _ = session.run([after, update], feed)

    return run


def floor(config: Config, tokens: np.ndarray) -> Run:
    """The arithmetic of a step's matrix products (3 for the softmax, 3 for each layer) as one large
    product.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    rows = round(flops(config) / (2 * 2048**2))
    dtype = config.model.compute_dtype
    a = jnp.ones((rows, 2048), dtype)
    b = jnp.ones((2048, 2048), dtype)

    def run(count: int) -> None:
        for _ in range(count):
            product(a, b).block_until_ready()

    return run


def products(config: Config, tokens: np.ndarray) -> Run:
    """The same matrix products at the shapes that they have in the step, each written over its last
    result.

    Args:
        config: its sizes, kinds and precision.
        tokens: the text, [N // B, B] token ids.
    """
    from jaxlm.ops.product import product
    from jaxlm.ops.softmax import chunking

    T = config.train.bptt_length
    B = config.train.batch_size
    V = config.model.vocab_size
    dtype = config.model.compute_dtype
    widths = (config.model.embedding_size, *config.model.hidden_sizes)
    chunks, steps, _ = chunking(True, (T, B), (widths[-1], V))[0](jnp.zeros((T, B))).shape
    rows = steps * B
    shapes = [
        ((rows, widths[-1]), V, False),
        ((rows, V), widths[-1], True),
        ((widths[-1], rows), V, False),
    ] * chunks
    for E, H in itertools.pairwise(widths):
        shapes += [
            ((T * B, E), 4 * H, False),
            ((T, B, H), 4 * H, False),
            ((T, B, 4 * H), H, True),
            ((T * B, 4 * H), E, True),
            ((E + H, T * B), 4 * H, False),
        ]

    @partial(jax.jit, static_argnames="transposed", donate_argnums=0, keep_unused=True)
    def written(result, a, b, transposed):
        def one(rows):
            return product(rows, b, dtype, transposed)

        if a.ndim == 3:
            return lax.map(one, a)
        return one(a)  # one product a step, as in the recurrence

    results = {}
    factors = {}
    for key in dict.fromkeys(shapes):
        shape, columns, transposed = key
        other = (columns, shape[-1]) if transposed else (shape[-1], columns)
        factors[key] = jnp.ones(shape, dtype), jnp.ones(other, dtype)
        results[key] = jnp.zeros((*shape[:-1], columns))

    def run(count: int) -> None:
        for _ in range(count):
            for key in shapes:
                results[key] = written(results[key], *factors[key], transposed=key[2])
            jax.block_until_ready(results)

    return run


def words(config: Config, maker: str = "jaxlm") -> int:
    """The predictions in one window (of all members), or in one pass over a split.

    Args:
        config: its sizes, kinds and precision.
        maker: a name of `MAKERS`.
    """
    window = config.train.batch_size * config.train.bptt_length
    return EVALUATED.get(maker, window * MEMBERS if maker in SWEPT else window)


def flops(config: Config, maker: str = "jaxlm") -> int:
    """Multiplications and additions in the matrix products of one window, or of one pass over a
    split.

    Args:
        config: its sizes, kinds and precision.
        maker: a name of `MAKERS`.
    """
    widths = (config.model.embedding_size, *config.model.hidden_sizes)
    of_input = config.model.gates
    of_state = (
        of_input if hasattr(config.model, "keep_recurrent_weights") else 0
    )  # a minGRU's gates read x alone
    layers = sum((of_input * a + of_state * b) * b for a, b in itertools.pairwise(widths))
    passes = (
        1 if maker in EVALUATED else 3
    )  # forward, and backward to the inputs and to the parameters
    return 2 * passes * words(config, maker) * (layers + widths[-1] * config.model.vocab_size)


def _windows(config: Config, tokens: np.ndarray):
    T = config.train.bptt_length
    while True:
        for start in range(0, len(tokens) - T, T):
            yield tokens[start : start + T + 1]


EVALUATED = {
    "validation": 73_759,
    "test": 82_429,
}  # predictions in Penn Treebank's splits, a few rows' tails included
SWEPT = ("in-turn", "one-program", "vmapped", "processes")
MAKERS: dict[str, Callable[..., Run]] = {
    "jaxlm": jaxlm,
    "in-turn": in_turn,
    "one-program": one_program,
    "vmapped": partial(one_program, vmapped=True),
    "processes": processes,
    "from-file": from_file,
    "from-memory": partial(from_file, in_memory=True),
    "validation": partial(evaluation, split="validation"),
    "test": partial(evaluation, split="test"),
    "flax": flax,
    "linen": partial(flax, ours=True),
    "nnx": nnx,
    "jaxlm-nnx": partial(nnx, ours=True),
    "pytorch": pytorch,
    "tensorflow": tensorflow,
    "products": products,
    "floor": floor,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("maker", choices=list(MAKERS))
    parser.add_argument("preset")
    parser.add_argument(
        "changes", type=json.loads, nargs="?", default={}, help="of fields, as a JSON object"
    )
    parser.add_argument("members", type=int, nargs="?", help="of one-program (8)")
    args = parser.parse_args()
    config = preset(args.preset).replace(**args.changes)
    B = config.train.batch_size
    V = config.model.vocab_size
    skewed = (
        np.random.default_rng(0).uniform(size=B * 2001) ** 4
    )  # most tokens are frequent words, as in text
    tokens = (skewed * V).astype(np.int32).reshape(-1, B)
    run = MAKERS[args.maker](config, tokens, *([args.members] if args.members else []))
    for line in sys.stdin:
        started = time.perf_counter()
        of_processes = run(json.loads(line)["windows"]) or 0
        peak = of_processes + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
