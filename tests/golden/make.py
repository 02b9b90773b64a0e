"""How the trajectories beside this file were made:
TensorFlow 2.15's graph mode, TensorFlow 1's own cells and ops.

    pip install tensorflow-cpu==2.15.1 && python tests/golden/make.py tests/golden

Tokens and initial weights are functions of the case (see `tokens` and `weights`, which the test
calls too).
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

CASES = {
    "one-layer-three-epochs": dict(
        V=50,
        E=8,
        hidden=[12],
        B=4,
        T=5,
        N=520,
        init=0.1,
        lr=1.0,
        clip=1.0,
        forget_bias=0.0,
        decay=0.5,
        hold=1,
        offset=1,
        steps=60,
    ),
    "three-unequal-layers": dict(
        V=120,
        E=10,
        hidden=[16, 8, 12],
        B=6,
        T=7,
        N=2000,
        init=0.2,
        lr=0.5,
        clip=2.0,
        forget_bias=1.0,
        decay=0.8,
        hold=1,
        offset=0,
        steps=70,
    ),
    "test-preset": dict(
        V=100,
        E=2,
        hidden=[2],
        B=20,
        T=2,
        N=2500,
        init=0.1,
        lr=1.0,
        clip=1.0,
        forget_bias=0.0,
        decay=0.5,
        hold=1,
        offset=1,
        steps=80,
    ),
    "long-windows": dict(
        V=80,
        E=12,
        hidden=[24, 16],
        B=3,
        T=35,
        N=3400,
        init=0.05,
        lr=0.3,
        clip=5.0,
        forget_bias=0.0,
        decay=0.8,
        hold=6,
        offset=1,
        steps=50,
    ),
}


def tokens(case: dict) -> np.ndarray:
    """A stream of N + 400 ids with a skew and some order in it, from raw bits:
    the last 400 are for validation.
    """
    raw = np.random.Philox(key=7).random_raw(case["N"] + 400).astype(np.float64) / 2.0**64
    fresh = np.floor(raw**2 * case["V"]).astype(np.int32)
    stream = fresh.copy()
    for i in range(2, len(stream)):
        if fresh[i] % 3:
            stream[i] = (stream[i - 1] * 5 + stream[i - 2] + fresh[i] % 2) % case["V"]
    return stream


def weights(case: dict) -> list[np.ndarray]:
    """Embedding, kernels, softmax kernel, softmax bias."""
    rng = np.random.default_rng(0)
    widths = [case["E"], *case["hidden"]]
    shapes = [
        (case["V"], case["E"]),
        *((a + b, 4 * b) for a, b in itertools.pairwise(widths)),
        (widths[-1], case["V"]),
        (case["V"],),
    ]
    return [rng.uniform(-case["init"], case["init"], shape).astype(np.float32) for shape in shapes]


def run(case: dict) -> dict:
    import tensorflow as tf  # pyright: ignore

    tf1 = tf.compat.v1
    tf1.disable_eager_execution()
    tf1.reset_default_graph()
    B = case["B"]
    T = case["T"]
    V = case["V"]
    hidden = case["hidden"]

    def graph(B: int, T: int):
        x = tf1.placeholder(tf.int32, [B, T])
        y = tf1.placeholder(tf.int32, [B, T])
        with tf1.variable_scope("m", reuse=tf1.AUTO_REUSE):
            embedding = tf1.get_variable("embedding_vocab", [V, case["E"]])
            cell = tf1.nn.rnn_cell.MultiRNNCell(
                [
                    tf1.nn.rnn_cell.BasicLSTMCell(
                        h, forget_bias=case["forget_bias"], state_is_tuple=True, reuse=None
                    )
                    for h in hidden
                ]
            )
            zero = cell.zero_state(B, tf.float32)
            state = zero
            outputs = []
            inputs = tf.nn.embedding_lookup(embedding, x)
            with tf1.variable_scope("rnn"):
                for t in range(T):
                    if t > 0:
                        tf1.get_variable_scope().reuse_variables()
                    output, state = cell(inputs[:, t], state)
                    outputs.append(output)
            output = tf.reshape(tf.concat(outputs, 1), [-1, hidden[-1]])
            logits = tf1.nn.xw_plus_b(
                output,
                tf1.get_variable("softmax_w", [hidden[-1], V]),
                tf1.get_variable("softmax_b", [V]),
            )
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels=tf.reshape(y, [-1]), logits=logits
            )
            cost = tf.reduce_sum(tf.reduce_mean(tf.reshape(nats, [B, T]), 0))
        return x, y, zero, state, cost

    x, y, zero, final, cost = graph(B, T)
    variables = tf1.trainable_variables()
    grads, norm = tf.clip_by_global_norm(tf.gradients(cost, variables), case["clip"])
    rate = tf1.placeholder(tf.float32, [])
    update = tf1.train.GradientDescentOptimizer(rate).apply_gradients(
        zip(grads, variables, strict=True)
    )
    test_x, test_y, test_zero, test_final, test_cost = graph(1, 1)

    stream = tokens(case)
    train = stream[: case["N"]]
    valid = stream[case["N"] :]
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        fresh = iter(weights(case))
        for variable in variables:
            bias = variable.name.endswith("bias:0")
            session.run(
                variable.assign(np.zeros(variable.shape, np.float32) if bias else next(fresh))
            )

        def over(ids, B, T, graph, epochs_from=None, steps=None):
            x, y, zero, final, cost = graph
            rows = ids[: len(ids) // B * B].reshape(B, -1)
            windows = (rows.shape[1] - 1) // T
            told = []
            state = session.run(zero)
            for step in range(windows if steps is None else steps):
                epoch, k = divmod(step, windows)
                state = session.run(zero) if k == 0 else state
                feed = {
                    x: rows[:, k * T : (k + 1) * T],
                    y: rows[:, k * T + 1 : (k + 1) * T + 1],
                    zero: state,
                }
                if steps is None:
                    value, state = session.run([cost, final], feed)
                    told.append(float(value))
                else:
                    lr = case["lr"] * case["decay"] ** max(epoch + case["offset"] - case["hold"], 0)
                    value, n, state, _ = session.run(
                        [cost, norm, final, update], {**feed, rate: lr}
                    )
                    told.append([float(value), float(n), lr])
            return told

        return {
            "case": case,
            "train_cost_norm_rate": over(
                train, B, T, (x, y, zero, final, cost), steps=case["steps"]
            ),
            "valid_cost": over(valid, B, T, (x, y, zero, final, cost)),
            "test_cost": sum(over(valid, 1, 1, (test_x, test_y, test_zero, test_final, test_cost))),
            "variables": [[v.name, list(v.shape)] for v in variables],
            "final_norms": {v.name: float(np.linalg.norm(session.run(v))) for v in variables},
        }


if __name__ == "__main__":
    for name, case in CASES.items():
        path = Path(sys.argv[1]) / f"{name}.json"
        path.write_text(json.dumps(run(case), indent=1) + "\n")
        print(path)
