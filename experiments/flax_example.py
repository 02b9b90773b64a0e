"""A Flax program around jaxlm's model: Penn Treebank by Flax's TrainState, optax's clipping and a
piecewise schedule.

    # Train; from equal parameters it follows `jaxlm.train`
    python experiments/flax_example.py
    # Evaluate the last checkpoint of a jaxlm run on test
    python experiments/flax_example.py runs/mine

The embedding is tied, so that its gradient is dense. (Else jaxlm's norm counts each occurrence of a
word by itself.)
"""

import sys
from functools import partial

import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

import jaxlm
from jaxlm.cli.ending import exit_code
from jaxlm.linen import LanguageModel

RATE = 1.0
CLIP = 5.0
HOLD = 4
DECAY = 0.5
EPOCHS = 15
ROWS = 60
STEPS = 20
MODEL = partial(jaxlm.LSTM, embedding_size=200, hidden_sizes=(256, 200), tied=True)


@jax.jit
def train_step(state, carry, window, key):
    """One update; minimised are the nats summed over the steps and averaged over the rows.

    Args:
        state: parameters and optimiser.
        carry: the recurrent state before the window; None: zeros.
        window: token ids, [B, T + 1]: the inputs, and the targets one later.
        key: of the dropout.
    """

    def cost(params):
        rngs = {"dropout": jax.random.fold_in(key, state.step)}
        read, nats = state.apply_fn(
            {"params": params}, window[:, :-1], window[:, 1:], initial_carry=carry, rngs=rngs
        )
        return nats / len(window), read

    (nats, carry), grads = jax.value_and_grad(cost, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), carry, nats


def train(model, params, ids, epochs=EPOCHS):
    """Yields the state and the mean nats after each window; the carry is passed on within an
    epoch.

    Args:
        model: the Flax module.
        params: its first parameters.
        ids: the text as token ids, [N].
        epochs: passes over the text.
    """
    rows = ids[: len(ids) // ROWS * ROWS].reshape(ROWS, -1)
    starts = range(0, rows.shape[1] - STEPS, STEPS)
    schedule = optax.piecewise_constant_schedule(
        RATE, {len(starts) * epoch: DECAY for epoch in range(HOLD, epochs)}
    )
    rule = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(schedule))
    state = TrainState.create(apply_fn=LanguageModel(model).apply, params=params, tx=rule)
    for _ in range(epochs):
        carry = None  # zeros
        for start in starts:
            window = rows[:, start : start + STEPS + 1]
            state, carry, nats = train_step(state, carry, window, jax.random.key(1))
            yield state, nats / STEPS


def perplexity(model, params, ids):
    """exp of the mean nats of all tokens but the first, read as one stream.

    Args:
        model: the Flax module.
        params: its parameters.
        ids: the text as token ids, [N].
    """
    score = jax.jit(partial(LanguageModel(model).apply, {"params": params}, deterministic=True))
    carry = None
    total = 0.0
    for start in range(0, len(ids) - 1, 500):
        part = ids[None, start : start + 501]
        carry, nats = score(part[:, :-1], part[:, 1:], initial_carry=carry)
        total += float(nats)
    return np.exp(total / (len(ids) - 1))


def main():
    if sys.argv[1:]:
        run = jaxlm.load(sys.argv[1])
        model, params, (name, ids, *_) = run.config.model, run.params, run.read("test")
    else:
        corpus = jaxlm.load_corpus()
        model = MODEL(vocab_size=len(corpus.vocab))
        name = f"{corpus.name} test"
        ids = corpus.test
        params = LanguageModel(model).init(jax.random.key(0), ids[None, :2])["params"]
        for window, (state, nats) in enumerate(train(model, params, corpus.train), 1):
            params = state.params
            if window % 500 == 0:
                print(f"window {window:,}: perplexity {np.exp(nats):.1f}")
    print(f"{name}: perplexity {perplexity(model, params, ids):.2f}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
