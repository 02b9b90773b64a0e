# %% [markdown]
# # The Penn Treebank LSTM, cell by cell
#
# This notebook walks from a text file to an applied gradient and prints every shape and value on the way. It follows
# the path of TensorFlow 1's Penn Treebank tutorial, at the sizes of the preset `small`, in JAX. Then it does what the
# tutorial stops short of: train, predict, look at the words, generate text, measure surprisal.
#
# Every important value is *asserted*: a cell that runs to its end has proved what its text says.
#
# | part | sections |
# |---|---|
# | the data | 1 words and ids, 2 windows |
# | the model | 3 state, 4 embedding, 5 one LSTM cell, 6 stacked LSTM, 7 probabilities, 8 cost, 9 parameters |
# | one training step | 10 gradient, 11 global norm, 12 clipping and update, 13 the carry, 14 learning rate |
# | a trained model | 15 training, 16 worth of the carry, 17 predict, 18 neighbours, map, 19 generate, 20 surprisal |
# | to keep | 21 TensorFlow 1 / JAX, 22 exercises |
#
# To run it, in the repository: `pip install -e '.[maps]' notebook`, then `jupyter notebook experiments`.

# %%
import math
import os
import tempfile
import textwrap
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image as Pillow

import jaxlm
from jaxlm.data.windows import batch
from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise
from jaxlm.ops.lstm import LSTMState, lstm
from jaxlm.ops.softmax import token_nats
from jaxlm.report.word_map import embedding_map

jax.config.update("jax_default_matmul_precision", "highest")  # full float32 on every device
plt.rcParams.update({"figure.figsize": (7.5, 2.6), "figure.dpi": 80, "axes.spines.top": False,
                     "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef1"})

# %% [markdown]
# ## 1. From words to ids
#
# With a copy of Penn Treebank at hand (in the folder that `JAXLM_DATA` names, or downloaded before) this notebook
# uses it and shows the tutorial's very ids. Without one it uses jaxlm's generated corpus `embedded`: random sentences
# of English words, with the same number of tokens and of words. `JAXLM_WALKTHROUGH=embedded-tiny` chooses a small
# one, for a run in a minute or two.

# %%
corpus = jaxlm.load_corpus(os.environ.get("JAXLM_WALKTHROUGH", "auto"), download=False)
vocab, V = corpus.vocab, len(corpus.vocab)
print(corpus.description)

KNOWN = {  # what each corpus must show
    "ptb": {
        "sizes": (929_589, 73_760, 82_430), "words": 10_000, "unigram": 684.727,
        "first": [9970, 9971, 9972, 9974, 9975, 9976, 9980, 9981, 9982, 9983],
        "second row": [901, 33, 3361, 8, 1279, 437, 597, 6, 261, 4276],
        "third row": [2654, 6, 334, 2886, 4, 1, 233, 711, 834, 11]},
    "embedded": {
        "sizes": (929_589, 73_760, 82_430), "words": 10_000, "unigram": 591.778,
        "first": [13, 4387, 124, 21, 27, 3120, 12, 0, 801, 9747],
        "second row": [109, 2, 35, 33, 3, 2, 3667, 1, 11, 478],
        "third row": [30, 4, 6373, 41, 77, 252, 2, 23, 33, 529]},
    "embedded-tiny": {
        "sizes": (40_000, 4_000, 4_000), "words": 500, "unigram": 147.530,
        "first": [4, 58, 82, 14, 5, 36, 10, 54, 130, 1],
        "second row": [37, 0, 9, 66, 5, 237, 237, 24, 16, 119],
        "third row": [206, 371, 383, 0, 49, 49, 18, 2, 70, 381]}}
known = KNOWN[corpus.name]

# %% [markdown]
# The text is one long stream of tokens, cut into three splits. A newline is a token too: `<eos>`, the end of a
# sentence. Rare words have been replaced by `<unk>`.

# %%
print("tokens:", len(corpus.train), "train,", len(corpus.valid), "valid,", len(corpus.test), "test")
print("words: ", V)
assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == known["sizes"]
assert known["words"] == V

# %% [markdown]
# A word's id is its rank: the most frequent word of the training split is 0. Words that occur equally often are in
# alphabetical order.

# %%
counts = np.bincount(corpus.train, minlength=V)
for i in range(5):
    print(f"id {i}  {vocab.words[i]:8}  {counts[i]:7,} times")

assert (np.diff(counts) <= 0).all()  # never more frequent than the word before
assert vocab.ids[vocab.words[3]] == 3

# %% [markdown]
# The first hundred ids of the training split, and their words.

# %%
print(corpus.train[:100])
print(textwrap.fill(" ".join(vocab.decode(corpus.train[:100])), 100))

assert corpus.train[:10].tolist() == known["first"]
assert_array_equal(vocab.encode(vocab.decode(corpus.train[:100])), corpus.train[:100])  # and back again

# %% [markdown]
# ## 2. Windows
#
# `B` texts are read side by side. The stream of `N` ids is cut into `B` rows of `N // B` ids, and a *window* is the
# next `T` columns of all rows. The preset `small` is the tutorial's recipe with other widths and a batch of 60.
#
# Shapes use the same letters everywhere: `T` steps, `B` batch, `E` embedding width, `H` hidden width, `V` words.

# %%
config = jaxlm.preset("small").replace(vocab_size=V)
recipe, model = config.recipe, config.model
T, B, E = config.train.bptt_length, config.train.batch_size, model.embedding_size
assert (B, T, E, model.hidden_sizes) == (60, 20, 200, (256, 128))

length = len(corpus.train) // B
rows = corpus.train[:B * length].reshape(B, length)
windows = (length - 1) // T
print(f"{B} rows of {length:,} ids: {windows} windows of {B} x {T} in an epoch")
assert windows == (774 if V == 10_000 else 33)

# %% [markdown]
# The *target* of a word is the word after it, so targets are the inputs shifted by one.
#
# TensorFlow's tutorial holds a window as `[B, T]`. jaxlm holds it as `[T, B]` (*time-major*): an LSTM reads one step of
# all rows at a time, and one step is then one piece of memory. The numbers are the same, transposed.

# %%
tokens = batch(corpus.train, B)  # [N // B, B]
assert_array_equal(tokens, rows.T)

inputs, targets = jnp.asarray(tokens[:T]), jnp.asarray(tokens[1:T + 1])
print("inputs ", inputs.shape, inputs.dtype)
print("targets", targets.shape, targets.dtype)
assert inputs.shape == targets.shape == (T, B) == (20, 60)
assert_array_equal(inputs[1:], targets[:-1])

# %% [markdown]
# Three rows of the window, as ids and as words. Each row is a different place of the text.

# %%
for row in range(3):
    print(f"row {row} inputs ", inputs[:, row].tolist())
    print("      targets", targets[:, row].tolist())
    print("     ", " ".join(vocab.decode(np.asarray(inputs[:, row]))), "\n")

for row, name in enumerate(("first", "second row", "third row")):
    assert inputs[:10, row].tolist() == known[name]

# %% [markdown]
# ## 3. The state
#
# A step of training is a pure function: the state goes in and the new state comes out. `init_state` makes the first
# one: parameters, the optimiser's state, and the *carry* (what the LSTM remembers). TensorFlow hides these in a
# session; here they are one value that can be printed.
#
# Each LSTM layer carries two arrays for each row: its memory cell `c` and its output `h`. Both are zero at first.

# %%
state = jaxlm.init_state(recipe, jax.random.key(0), B)
zero = state.carry
for layer, part in enumerate(zero):
    print(f"layer {layer}: c {part.c.shape}, h {part.h.shape}")

assert [part.c.shape for part in zero] == [part.h.shape for part in zero] == [(60, 256), (60, 128)]
assert all((leaf == 0).all() for leaf in jax.tree.leaves(zero))

# %% [markdown]
# ## 4. The embedding
#
# Each word has a vector of `E` = 200 numbers: a row of the table `[V, E]`. They start uniform in ±0.1 and are trained
# with everything else.

# %%
params = state.params
table = params["embedding"]
print("table", table.shape)
print(table[:3, :6])
assert table.shape == (V, 200)
assert -0.1 <= table.min() < -0.099 and 0.099 < table.max() <= 0.1

# %% [markdown]
# Looking words up is indexing. It equals a product with one-hot vectors, which nobody computes: 10,000 products
# with zero for each word.

# %%
x = table[inputs]
print("looked up", x.shape)
assert x.shape == (20, 60, 200)
assert_array_equal(x[0, 0], table[inputs[0, 0]])
assert_array_equal(x, stack.embed(params, inputs))  # jaxlm's own
assert_allclose(x[0], jax.nn.one_hot(inputs[0], V) @ table, atol=1e-7)

# %% [markdown]
# ## 5. One LSTM cell, gate by gate
#
# A cell reads one step `x_t [B, E]` and its state, and computes four *gates*, each `[B, H]`:
#
# * `i`, the input gate: how much of the candidate to write;
# * `j`, the candidate: what to write;
# * `f`, the forget gate: how much of the old memory to keep;
# * `o`, the output gate: how much of the memory to show.
#
# All four come from one product with one kernel `[E + H, 4H]`, in this order, as in TensorFlow's `BasicLSTMCell`.

# %%
first = params["layers"][0]
print("kernel", first["kernel"].shape, " bias", first["bias"].shape)
assert first["kernel"].shape == (200 + 256, 4 * 256)

x_t, c, h = x[0], zero[0].c, zero[0].h                     # the first step of all 60 rows
z = jnp.concatenate([x_t, h], axis=1) @ first["kernel"] + first["bias"]
i, j, f, o = jnp.split(z, 4, axis=1)
new_c = c * jax.nn.sigmoid(f) + jax.nn.sigmoid(i) * jnp.tanh(j)
new_h = jnp.tanh(new_c) * jax.nn.sigmoid(o)

for name, gate in (("i", jax.nn.sigmoid(i)), ("j", jnp.tanh(j)), ("f", jax.nn.sigmoid(f)), ("o", jax.nn.sigmoid(o))):
    print(f"{name} {gate.shape}  from {gate.min():+.2f} to {gate.max():+.2f}")
print(f"c {new_c.shape}  h {new_h.shape}")

# %% [markdown]
# Before training the products are small, so the gates `i`, `f` and `o` are near sigmoid(0) = 0.5: half open. With no
# memory yet, the forget gate has nothing to keep.

# %%
assert all(abs(jax.nn.sigmoid(gate).mean() - 0.5) < 0.01 for gate in (i, f, o))
assert_array_equal(new_c, jax.nn.sigmoid(i) * jnp.tanh(j))
assert (abs(new_h) <= abs(jnp.tanh(new_c))).all() and (abs(new_h) < 1).all()

# %% [markdown]
# A layer is the cell in a loop over the steps; here a Python loop, to be read. It equals `jaxlm.ops.lstm.lstm`, the
# function that training uses.

# %%
def lstm_cell(x_t, kernel, bias, state):
    """x_t [B, E] and a state [B, H] -> the new state."""
    z = jnp.concatenate([x_t, state.h], axis=1) @ kernel + bias
    i, j, f, o = jnp.split(z, 4, axis=1)
    c = state.c * jax.nn.sigmoid(f) + jax.nn.sigmoid(i) * jnp.tanh(j)
    return LSTMState(c, jnp.tanh(c) * jax.nn.sigmoid(o))


def lstm_layer(x, kernel, bias, state):
    """x [T, B, E] and a state [B, H] -> outputs [T, B, H] and the last state."""
    outputs = []
    for x_t in x:
        state = lstm_cell(x_t, kernel, bias, state)
        outputs.append(state.h)
    return jnp.stack(outputs), state


by_hand, last = lstm_layer(x, **first, state=zero[0])
fast, fast_last = lstm(x, first["kernel"], first["bias"], zero[0])
print("outputs", by_hand.shape, " largest difference", f"{abs(by_hand - fast).max():.0e}")

assert_allclose(by_hand[0], new_h, atol=1e-6)
assert_allclose(by_hand, fast, atol=1e-6)
assert_allclose(last.c, fast_last.c, atol=1e-6)
assert_array_equal(last.h, by_hand[-1])  # the state's h is the last output

# %% [markdown]
# A compiler would unroll that loop: twenty copies of the cell. What was `dynamic_rnn` in TensorFlow is `jax.lax.scan`
# in JAX: the body is compiled once. It takes a function from a carry and an input to a new carry and an output.

# %%
def lstm_scan(x, kernel, bias, state):
    """`lstm_layer` as a scan."""
    def step(state, x_t):
        state = lstm_cell(x_t, kernel, bias, state)
        return state, state.h

    last, outputs = jax.lax.scan(step, state, x)
    return outputs, last


scanned, scanned_last = lstm_scan(x, **first, state=zero[0])
assert_allclose(scanned, by_hand, atol=1e-6)
assert_allclose(scanned_last.c, last.c, atol=1e-6)

# %% [markdown]
# ## 6. The stacked LSTM
#
# The outputs of the first layer (256 wide) are the inputs of the second (128 wide). Both layers' last states are the
# new carry.

# %%
second = params["layers"][1]
outputs_1, state_1 = lstm_layer(x, **first, state=zero[0])
outputs_2, state_2 = lstm_layer(outputs_1, **second, state=zero[1])
carry = (state_1, state_2)

print("input  ", x.shape)
print("layer 0", outputs_1.shape, " new state", state_1.c.shape)
print("layer 1", outputs_2.shape, " new state", state_2.c.shape)
assert outputs_2.shape == (20, 60, 128)

features, new_carry = stack.features(model, params, Noise(), x, zero)  # jaxlm's own
assert_allclose(outputs_2, features, atol=1e-6)
jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), carry, new_carry)
assert all((leaf != 0).any() for leaf in jax.tree.leaves(new_carry))  # something is remembered now

# %% [markdown]
# ## 7. From outputs to probabilities
#
# The softmax treats every step of every row alike, so `[T, B, H]` is flattened to `[T * B, H]`. Row `t * B + b` is
# step `t` of row `b`. (TensorFlow's tutorial flattens `[B, T, H]`: there it is row `b * T + t`.)

# %%
flat = outputs_2.reshape(-1, 128)
print("flattened", flat.shape)
assert flat.shape == (1200, 128)
assert_array_equal(flat[7 * B + 3], outputs_2[7, 3])

# %% [markdown]
# A linear layer turns 128 numbers into one *logit* for each word, and the softmax turns logits into probabilities:
# positive, with the sum 1. Before training each is near 1/V: 1e-4 for 10,000 words.

# %%
softmax = params["softmax"]
logits = flat @ softmax["kernel"] + softmax["bias"]
probabilities = jax.nn.softmax(logits)
print("logits", logits.shape, " kernel", softmax["kernel"].shape, " bias", softmax["bias"].shape)
print("probabilities of the first words:", probabilities[0, :5])

assert logits.shape == (1200, V)
assert_allclose(probabilities.sum(1), 1, rtol=1e-4)
assert_allclose(probabilities[0], jnp.exp(logits[0]) / jnp.exp(logits[0]).sum(), rtol=1e-5)
assert (abs(V * probabilities - 1) < 0.25).all()
assert_allclose(heads.logits(model, params, features[0]), logits[:B], atol=1e-5)  # jaxlm's own, of one step

# %% [markdown]
# The most probable next word against the target, for the first row. An untrained model repeats whatever its random
# bias prefers.

# %%
likeliest = probabilities.argmax(1).reshape(T, B)
print("likeliest:", likeliest[:, 0].tolist())
print("target:   ", targets[:, 0].tolist())
for step in range(4):
    print(f"  step {step}: {vocab.words[likeliest[step, 0]]!r}, and the target is {vocab.words[targets[step, 0]]!r}")
print(f"right: {(likeliest == targets).sum()} of {T * B}")
assert (likeliest == targets).mean() < 0.05

# %% [markdown]
# ## 8. The loss of a token, and the cost of a window
#
# The loss of a token is the negative logarithm of its target's probability, in *nats* (natural logarithms). A model
# that knows nothing pays log(V): 9.21 nats for 10,000 words.

# %%
losses = -jnp.log(probabilities)[jnp.arange(T * B), targets.reshape(-1)]
print("loss of each token", losses.shape)
print(losses[:8], f" log(V) = {math.log(V):.4f}")

assert losses.shape == (1200,)
assert abs(losses - math.log(V)).max() < 0.25
assert_allclose(losses, token_nats(flat, softmax["kernel"], softmax["bias"], targets.reshape(-1)), rtol=1e-5)

# %% [markdown]
# The tutorial's *cost* is the sum over the `T` steps of the mean over the `B` rows: the sum of all losses, divided by
# `B`. It is about 20 x 9.21 = 184.2. *Perplexity* is exp(cost / T): of how many equally likely words a choice with
# this loss would be. At first that is all of them.

# %%
cost = losses.sum() / B
print(f"cost {cost:.2f}   perplexity {jnp.exp(cost / T):,.0f} of {V:,} words")

assert_allclose(cost, losses.reshape(T, B).mean(1).sum(), rtol=1e-6)
assert_allclose(cost, heads.summed_nats(model, params, features, targets) / B, rtol=1e-5)
assert abs(cost - T * math.log(V)) < 0.5  # 184.2 for 10,000 words
assert abs(jnp.exp(cost / T) / V - 1) < 0.03

# %% [markdown]
# ## 9. The parameters
#
# `tf.trainable_variables()` was a global list. Here the parameters are a *pytree*: nested dictionaries and lists of
# arrays, and nothing else.

# %%
tensorflow = {
    "embedding": "embedding",
    "layers/0/kernel": "RNN/multi_rnn_cell/cell_0/basic_lstm_cell/kernel",
    "layers/0/bias": "RNN/multi_rnn_cell/cell_0/basic_lstm_cell/bias",
    "layers/1/kernel": "RNN/multi_rnn_cell/cell_1/basic_lstm_cell/kernel",
    "layers/1/bias": "RNN/multi_rnn_cell/cell_1/basic_lstm_cell/bias",
    "softmax/kernel": "softmax_w",
    "softmax/bias": "softmax_b"}


def named(tree):
    """(name, array) of every array of a pytree."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


total = 0
for name, leaf in named(params):
    total += leaf.size
    print(f"{name:15} {leaf.shape!s:12} {leaf.size:>9,}   in TensorFlow: {tensorflow[name]}")
print(f"{total:>37,}   in all")

assert {name for name, _ in named(params)} == set(tensorflow)  # every variable of the tutorial, and no other
assert total == V * 200 + (456 * 1024 + 1024) + (384 * 512 + 512) + 128 * V + V
assert all((layer["bias"] == 0).all() for layer in params["layers"])  # all others are uniform in ±0.1

# %% [markdown]
# ## 10. The gradient
#
# First a function of two variables, $2x^2 + 3xy$. By hand, its derivatives are
# $4x + 3y$ and $3x$: 10 and 3 where $x = 1$ and $y = 2$. `jax.grad` turns a function into its gradient.

# %%
def example(x, y):
    return 2 * x * x + 3 * x * y


print(jax.grad(example, argnums=(0, 1))(1.0, 2.0))
assert jax.grad(example, argnums=(0, 1))(1.0, 2.0) == (10, 3)

# %% [markdown]
# Sections 4 to 8 as one function of the weights. The looked-up rows `x` are an argument of their own, for a reason
# that section 11 explains. `jax.jit` compiles it: the part of TensorFlow's graph and session.

# %%
def cost_by_hand(weights, x, targets, carry):
    """Weights of the layers and the softmax, embedded words [T, B, E], targets [T, B] -> the cost and the new carry."""
    new_carry = []
    for layer, state in zip(weights["layers"], carry, strict=True):
        x, state = lstm_scan(x, layer["kernel"], layer["bias"], state)
        new_carry.append(state)
    logits = x.reshape(-1, x.shape[-1]) @ weights["softmax"]["kernel"] + weights["softmax"]["bias"]
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, targets.reshape(-1, 1), axis=1)
    return losses.sum() / targets.shape[1], tuple(new_carry)


weights = {"layers": params["layers"], "softmax": params["softmax"]}
gradient = jax.jit(jax.value_and_grad(cost_by_hand, argnums=(0, 1), has_aux=True))
(cost_again, _), (weight_grads, row_grads) = gradient(weights, x, targets, zero)

assert_allclose(cost_again, cost, rtol=1e-5)
assert jax.tree.structure(weight_grads) == jax.tree.structure(weights)  # one gradient for each weight
assert row_grads.shape == x.shape == (20, 60, 200)                      # and one for each number that was looked up

# %% [markdown]
# One of these gradients is easy to derive by hand. The derivative of a token's loss by the logits is *p - y*:
# the probabilities, less 1 at the target. The bias of a word is added to its logit at every token, so its gradient is
#
# (sum of the word's probabilities over all tokens - how often the word is a target) / B.
#
# It is negative for words that come more often than expected: the step, against the gradient, then raises their bias.

# %%
seen = jnp.bincount(targets.reshape(-1), length=V)
bias_grad = (probabilities.sum(0) - seen) / B
word = int(seen.argmax())
print(f"{vocab.words[word]!r} is a target {seen[word]} times; the gradient of its bias is {bias_grad[word]:.4f}")

assert_allclose(bias_grad, weight_grads["softmax"]["bias"], atol=1e-5)
assert bias_grad[word] < 0

# %% [markdown]
# ## 11. The global norm, and how TensorFlow counts it
#
# The *global norm* is the length of the whole gradient, seen as one long vector: the root of the sum of all squares.
#
# One detail decides whether it equals TensorFlow's. A word that a window reads several times gets several gradients,
# one for each time. TensorFlow 1 keeps them apart (`IndexedSlices`: one row for each token read) and the norm counts
# *each read by itself*. A dense gradient of the table adds them up first. With the gradients 3 and 4 of one word:
# read by read √(3² + 4²) = 5; added first √((3 + 4)²) = 7.
#
# Both give the same *update*, but not the same norm, and so another clipping. jaxlm counts as TensorFlow does.

# %%
def squares(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


dense_grads = jax.jit(jax.grad(lambda table: cost_by_hand(weights, table[inputs], targets, zero)[0]))(table)
norm = jnp.sqrt(squares(weight_grads) + squares(row_grads))
dense_norm = jnp.sqrt(squares(weight_grads) + squares(dense_grads))
print(f"each read by itself: {norm:.6f}     reads of a word added first: {dense_norm:.6f}")

assert_allclose(dense_grads, jnp.zeros_like(table).at[inputs].add(row_grads), atol=1e-6)  # the rows add up to it
assert abs(norm - dense_norm) > 1e-5
read = np.unique(np.asarray(inputs))
print(f"{inputs.size:,} reads of {len(read)} words; all other rows of the dense gradient are zero")
assert_array_equal(np.flatnonzero(abs(dense_grads).sum(1)), read)

# %% [markdown]
# Where the gradient is: the norm of each part.

# %%
parts = {name: jnp.sqrt(squares(leaf)) for name, leaf in named({"embedding": row_grads, **weight_grads})}
for name, part in parts.items():
    print(f"{name:15} {part:.4f}")
assert_allclose(math.hypot(*parts.values()), norm, rtol=1e-5)

# %% [markdown]
# ## 12. Clipping and the update: one step by hand
#
# If the global norm is above `clip_norm`, the whole gradient is scaled down to it: shorter, in the same direction.
# Then each parameter moves against its gradient, times the learning rate. The embedding's rows are *added* one read
# after the other, so a word that was read twice moves twice.

# %%
def sgd_step(params, weight_grads, row_grads, inputs, norm, rate, clip_norm):
    """One clipped step of gradient descent."""
    scale = jnp.minimum(1.0, clip_norm / norm)
    weights = {name: params[name] for name in weight_grads}
    moved = jax.tree.map(lambda p, g: p - rate * scale * g, weights, weight_grads)
    return {**moved, "embedding": params["embedding"].at[inputs].add(-rate * scale * row_grads)}


train_step = jax.jit(jaxlm.train_step)
window = jaxlm.Window(inputs, targets, epoch=0, first=True, total=windows)
for clip_norm in (5.0, 1.0):  # the tutorial's, and a smaller one that clips this gradient
    mine = sgd_step(params, weight_grads, row_grads, inputs, norm, rate=1.0, clip_norm=clip_norm)
    after, metrics = train_step(config.replace(clip_norm=clip_norm).recipe, state, window)
    difference = jax.tree.map(lambda a, b: float(abs(a - b).max()), mine, after.params)
    print(f"clip_norm {clip_norm}: norm {norm:.4f}, scaled by {min(1, clip_norm / norm):.4f}; "
          f"by hand and train_step differ by {max(jax.tree.leaves(difference)):.0e} at most")
    assert (norm > clip_norm) == (clip_norm == 1.0)
    assert_allclose(metrics.cost, cost, rtol=1e-5)
    assert_allclose(metrics.grad_norm, norm, rtol=1e-4)
    assert metrics.learning_rate == 1 and after.step == 1
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), mine, after.params)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), new_carry, after.carry)

# %% [markdown]
# `train_step(recipe, state, window)` is all of the above in one pure function. The step changed the rows of the words
# that it read and no others, and the same window costs less now.

# %%
after, metrics = train_step(recipe, state, window)
changed = np.flatnonzero((after.params["embedding"] != table).any(1))
(cost_after, _), _ = gradient({name: after.params[name] for name in weights}, after.params["embedding"][inputs],
                              targets, zero)
print(f"{len(changed)} of {V:,} rows of the embedding changed")
print(f"cost of this window: {cost:.3f} before the step, {cost_after:.3f} after it")
assert_array_equal(changed, read)
assert cost_after < cost

# %% [markdown]
# The next windows, each starting from the state that the one before returned. A learning rate of 1.0 is bold: one of
# the first windows may cost more than the untrained model did. Clipping limits how far such a gradient can throw the
# weights.

# %%
moving, costs = after, [float(metrics.cost)]
for step in range(1, 20):
    start = step * T
    window = jaxlm.Window(jnp.asarray(tokens[start:start + T]), jnp.asarray(tokens[start + 1:start + T + 1]),
                          epoch=0, first=False, total=windows)
    moving, metrics = train_step(recipe, moving, window)
    costs.append(float(metrics.cost))
print("cost:", " ".join(f"{value:.1f}" for value in costs))
assert moving.step == 20 and np.mean(costs[-5:]) < 0.95 * costs[0]

# %% [markdown]
# ## 13. Why the carry is passed on
#
# A window is cut out of the middle of a text. The carry hands what was read to the next window, so that two windows
# read one after the other equal one window of twice the length. A reader that starts each window from zero has
# forgotten everything at each cut.
#
# Only the *values* cross the cut. The gradient stops there (truncated backpropagation): it would need the activations
# of all windows before.

# %%
@jax.jit
def read_on(params, tokens, carry):
    return stack.features(model, params, Noise(), params["embedding"][tokens], carry)


one, middle = read_on(params, tokens[:T], zero)
two, _ = read_on(params, tokens[T:2 * T], middle)
both, _ = read_on(params, tokens[:2 * T], zero)
forgetful, _ = read_on(params, tokens[T:2 * T], zero)

assert_allclose(jnp.concatenate([one, two]), both, atol=1e-6)
apart = abs(forgetful - two).mean((1, 2))
print("difference made by dropping the carry, step by step:")
print(" ".join(f"{value:.0e}" for value in apart[:10]))
assert apart[0] > 10 * apart[-1]  # largest just after the cut

# %% [markdown]
# Row `b` of a window therefore continues row `b` of the window before, and the carry is zero only at the start of an
# epoch (`first=True`). Section 16 measures what this is worth to a trained model.

# %% [markdown]
# ## 14. The learning rate
#
# Epoch `i` (from 0) has the rate `learning_rate * decay ** max(i + 1 - hold, 0)`: 1.0 for four epochs, then half of
# the epoch before. The rate is a *number* of the recipe, and numbers are traced: changing one compiles nothing. (The
# tutorial needed a variable, a placeholder and an assignment for this.)

# %%
rates = [float(recipe.schedule.factor(0, i, 1)) for i in range(config.train.epochs)]
print(" ".join(f"{rate:g}" for rate in rates[:9]), "...")
assert rates == [1.0 * 0.5 ** max(i + 1 - 4, 0) for i in range(15)]

# %% [markdown]
# ## 15. Train
#
# `jaxlm.train` is the loop around that step: epochs, validation, checkpoints, and a test at the end. Here it runs a
# few epochs, with an early decay. (The whole run, 15 epochs, is `python experiments/ptb_small.py`.) On the whole corpus
# two epochs take a few minutes on two processor cores.
#
# Each call below trains one epoch more: it resumes the run from its checkpoint, which changes nothing in the result.
# *Floor* is the perplexity of the generated corpus's true source, below which no model can go.

# %%
training = config.replace(epochs=2, hold=1.0)
if corpus.name == "embedded-tiny":  # too small for a model of this size
    training = config.replace(epochs=8, hold=6.0, batch_size=20, embedding_size=32, hidden_sizes=(64,))
scratch = tempfile.TemporaryDirectory(prefix="jaxlm-walkthrough-")  # removed when the notebook is closed
run_dir = Path(scratch.name) / "run"  # name a folder of your own to keep the run
floor = None if corpus.floor is None else math.exp(corpus.floor["valid"] / (len(corpus.valid) - 1))

per_epoch = (len(corpus.train) // training.train.batch_size - 1) // T


def progress(step, values):
    """Called after each window: a dot for each tenth of an epoch."""
    if "train/cost" in values and step % (per_epoch // 10) == 0:
        print(".", end="", flush=True)


print("             epoch   rate     train     valid   perplexity" + (f" (floor {floor:.2f})" if floor else ""))
for epoch in range(1, training.train.epochs + 1):
    result = jaxlm.train(training.replace(epochs=epoch), corpus, run_dir=run_dir, resume=epoch > 1, quiet=True,
                         on_metrics=progress)
    ended = result.epochs[-1]
    print(f"  {ended.epoch:5}{ended.learning_rate:7.2f}{ended.train_perplexity:10.2f}{ended.valid_perplexity:10.2f}")
print(f"test perplexity {result.test_perplexity:.2f}, every one of {len(corpus.test) - 1:,} predictions")

# %% [markdown]
# Perplexity fell in every epoch. It is far below that of a model without any context (the *unigram* model, exercise
# 1), and above the floor.

# %%
valid = [ended.valid_perplexity for ended in result.epochs]
assert len(valid) == training.train.epochs
assert all(later < earlier for earlier, later in pairwise(valid))
assert valid[-1] < known["unigram"] / 2
assert floor is None or floor < valid[-1]
assert result.epochs[-1].learning_rate < result.epochs[0].learning_rate  # the decay has begun


def show(path, width):
    """Displays a picture of jaxlm's, made small for the notebook's file."""
    with Pillow.open(path) as picture:
        small = picture.convert("RGB").resize((width, round(width * picture.height / picture.width)))
    data = BytesIO()
    small.quantize(128, dither=Pillow.Dither.NONE).save(data, "png", optimize=True)
    display(Image(data.getvalue(), width=640))


show(run_dir / "curve.png", 900)

# %% [markdown]
# `jaxlm.load` gives the model of a run, as an object that knows its words.

# %%
lm = jaxlm.load(run_dir)
trained = lm.config.model
evaluation = lm.evaluate("test", corpus=corpus)
print(f"{evaluation.text}: perplexity {evaluation.perplexity:.2f} of {evaluation.predictions:,} predictions")
assert lm.vocab == vocab
assert evaluation.perplexity == result.test_perplexity

# %% [markdown]
# ## 16. What the carry is worth
#
# The validation split, read in windows of 20 steps: once with the carry passed on, once from zero in each window.
# `jaxlm.eval_step` gives the loss of every token.

# %%
evaluate = jax.jit(jaxlm.eval_step)
valid_tokens = batch(corpus.valid, 20)


def nats_by_step(pass_on):
    """The mean loss at each of the T steps of a window, over all windows and rows."""
    start = carry = stack.zero_carry(trained, 20)
    nats = []
    for row in range(0, len(valid_tokens) - T, T):
        one, carry = evaluate(trained, lm.params, valid_tokens[row:row + T], valid_tokens[row + 1:row + T + 1],
                              carry if pass_on else start)
        nats.append(one.mean(1))
    return np.mean(nats, axis=0)


passed, dropped = nats_by_step(True), nats_by_step(False)
print(f"perplexity, carry passed on: {np.exp(passed.mean()):.2f}")
print(f"perplexity, carry dropped:   {np.exp(dropped.mean()):.2f}")
assert np.exp(dropped.mean()) > 1.02 * np.exp(passed.mean())
assert dropped[0] - passed[0] > dropped[-1] - passed[-1]

# %%
figure, axes = plt.subplots()
axes.plot(range(1, T + 1), np.exp(dropped), "o-", color="#ea580c", markersize=3, label="carry dropped")
axes.plot(range(1, T + 1), np.exp(passed), "o-", color="#2563eb", markersize=3, label="carry passed on")
axes.set(xlabel="step of the window", ylabel="perplexity", xticks=range(1, T + 1))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The price is paid at the start of each window, where a reader without memory knows least.

# %% [markdown]
# ## 17. Predict
#
# The most probable words after the beginning of a test sentence. By hand it is: read the words, take the last output,
# softmax, sort.

# %%
test_words = vocab.decode(corpus.test[:2000])
ends = [place for place, word in enumerate(test_words) if word == "<eos>"]
sentence = next(test_words[start + 1:end] for start, end in pairwise(ends)
                if 9 <= end - start <= 14 and "<unk>" not in test_words[start:end])
beginning = " ".join(sentence[:5])
predicted = lm.predict(beginning, k=5)
print(beginning, "...")
for guess, p in predicted:
    print(f"  {p:.3f}  {guess}")
print("it went on:", sentence[5])

ids = vocab.encode(sentence[:5])
features, _ = stack.features(trained, lm.params, Noise(), lm.params["embedding"][ids[:, None]],
                             stack.zero_carry(trained, 1))
p_next = jax.nn.softmax(heads.logits(trained, lm.params, features[-1, 0]))
assert vocab.decode(np.asarray(jnp.argsort(-p_next)[:5])) == [guess for guess, _ in predicted]
assert_allclose([p for _, p in predicted], jnp.sort(p_next)[::-1][:5], rtol=1e-4)
assert predicted[0][1] > 20 / V  # no longer 1 / V

# %% [markdown]
# ## 18. Neighbours, and a map of the words
#
# Words that are used alike get vectors that point the same way, though nobody said which words are alike. Nearness is
# the *cosine*: the product of two vectors of length 1.
#
# In the generated corpus an adverb ends in *-ly*. The model does not see letters: to it a word is a number.

# %%
adverbs = [word for word in vocab.words if word.endswith("ly")][:8]
words = ["monday", "he", "million"] if corpus.name == "ptb" else ["he", "of", "June", "market", "sells", *adverbs[:2]]
for word in words:
    print(f"{word:10}", ", ".join(f"{other} {cosine:.2f}" for other, cosine in lm.neighbors(word, k=6)))

word, neighbours = words[0], lm.neighbors(words[0], k=6)
vectors = lm.params["embedding"] / jnp.linalg.norm(lm.params["embedding"], axis=1, keepdims=True)
other, cosine = neighbours[0]
assert_allclose(vectors[vocab.ids[word]] @ vectors[vocab.ids[other]], cosine, rtol=1e-4)
if corpus.name != "ptb":
    alike = np.mean([other.endswith("ly") for word in adverbs for other, _ in lm.neighbors(word, k=6)])
    by_chance = np.mean([word.endswith("ly") for word in vocab.words])
    print(f"-ly: {alike:.0%} of the neighbours of adverbs, {by_chance:.0%} of all words")
    assert alike > 3 * by_chance

# %% [markdown]
# The most frequent words on a plane, so that neighbours stay together as far as two dimensions allow (t-SNE).
# `jaxlm plot RUN` draws the same for any run.

# %%
path = embedding_map(np.asarray(lm.params["embedding"]), vocab.words, run_dir / "embedding.png", count=180)
show(path, 1400)

# %% [markdown]
# ## 19. Generate
#
# Draw a word from the predicted probabilities, read it, and repeat. The carry remembers all that came before.

# %%
for text in lm.generate(" ".join(sentence[:3]), words=20, samples=3, seed=1, stop="eos"):
    print(" ".join(sentence[:3]), "|", " ".join(text.words))
    assert 1 <= len(text.words) <= 20 and (text.log_probs <= 0).all()

again = lm.generate(" ".join(sentence[:3]), words=20, samples=3, seed=1, stop="eos")
assert again[2].words == text.words  # the same seed, the same text

# %% [markdown]
# ## 20. Surprisal
#
# The *surprisal* of a word is its loss in bits, -log2 p: how unexpected it is after the words before it.
# Psycholinguists compare it with reading times. The sentence begins after an `<eos>`, from a carry of zeros.

# %%
surprisal = lm.surprisal([" ".join(sentence)])
print("word             surprisal   entropy    rank")
for n, word in enumerate(surprisal.word):
    print(f"{word:14} {surprisal.surprisal[n]:7.2f} bits {surprisal.entropy[n]:9.2f} {surprisal.rank[n]:7}")

ids = jnp.array([vocab.eos, *vocab.encode(sentence)])[:, None]
nats, _ = jaxlm.eval_step(trained, lm.params, ids[:-1], ids[1:], stack.zero_carry(trained, 1))
assert_allclose(surprisal.surprisal, np.asarray(nats)[:, 0] / math.log(2), rtol=1e-4)
assert ((surprisal.entropy > 0) & (surprisal.entropy < math.log2(V))).all()

# %%
figure, axes = plt.subplots()
axes.bar(range(len(surprisal)), surprisal.surprisal, color="#2563eb", label="surprisal")
axes.plot(range(len(surprisal)), surprisal.entropy, "o-", color="#ea580c", markersize=3, label="entropy")
axes.set_xticks(range(len(surprisal)), surprisal.word, rotation=30, ha="right")
axes.set_ylabel("bits")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 21. TensorFlow 1 / JAX
#
# | TensorFlow 1's tutorial | JAX, jaxlm | section |
# |---|---|---|
# | `reader.ptb_raw_data` | `jaxlm.load_corpus("ptb")` | 1 |
# | `reader.ptb_producer`, queues, an iterator | a window is a slice: `tokens[t:t + T]`; no iterator, no queue | 2 |
# | `[batch, time]` | `[time, batch]` | 2 |
# | `tf.placeholder`, `feed_dict` | an argument of a function | 10 |
# | a graph, built once | a Python function, traced once by `jax.jit` | 10 |
# | `session.run(fetches)` | calling the function; all that it returns is fetched | 12 |
# | `tf.Variable`, changed in place | an array in the state: old state in, new state out | 3, 12 |
# | `tf.get_variable` with an initializer | `jaxlm.init_params(model, key)` | 3 |
# | `tf.random_uniform_initializer(-s, s)` | `jax.random.uniform(key, shape, minval=-s, maxval=s)` | 4 |
# | `tf.set_random_seed`, one hidden generator | a key: `jax.random.key(0)`, split or folded for each use | 3 |
# | `tf.variable_scope`, `reuse=True` | names in a pytree; sharing is passing the same `params` | 9 |
# | `tf.nn.embedding_lookup(table, ids)` | `table[ids]` | 4 |
# | `BasicLSTMCell(H, forget_bias=0.0)` | `jaxlm.ops.lstm.lstm`, gates i, j, f, o | 5 |
# | `LSTMStateTuple(c, h)` | `jaxlm.ops.lstm.LSTMState(c, h)` | 3, 5 |
# | `MultiRNNCell([...])` | `jaxlm.models.stack.features`, one layer after the other | 6 |
# | `tf.nn.dynamic_rnn`, `static_rnn` | `jax.lax.scan` (a Python loop is unrolled) | 5 |
# | `cell.zero_state(B, tf.float32)` | `jaxlm.models.stack.zero_carry(model, B)` | 3 |
# | the final state, fetched and fed again | the carry, a part of the state | 13 |
# | `DropoutWrapper(cell, output_keep_prob=p)` | `keep_output=p`: a mask drawn from a key | exercise 3 |
# | `is_training`, one graph for each mode | `jaxlm.train_step` and `jaxlm.eval_step` | 12, 16 |
# | `tf.reshape(output, [-1, H])` | `output.reshape(-1, H)` | 7 |
# | `tf.nn.xw_plus_b(output, softmax_w, softmax_b)` | `output @ kernel + bias`, `jaxlm.models.heads.logits` | 7 |
# | `tf.nn.softmax`, `tf.argmax` | `jax.nn.softmax`, `.argmax` | 7 |
# | `sequence_loss_by_example` | `jaxlm.ops.softmax.token_nats` | 8 |
# | `tf.reduce_sum(loss) / batch_size` | `losses.sum() / B` | 8 |
# | `tf.trainable_variables()` | `jax.tree_util.tree_leaves_with_path(params)` | 9 |
# | `tf.gradients(cost, tvars)` | `jax.grad`, `jax.value_and_grad` | 10 |
# | `tf.stop_gradient` | `jax.lax.stop_gradient`; at a window's edge nothing is needed | 13 |
# | `IndexedSlices` of a lookup | `jaxlm.ops.embedding.Rows` | 11 |
# | `tf.global_norm` | `config.optimizer.norm(gradient)` | 11 |
# | `tf.clip_by_global_norm(grads, 5)` | `clip_norm=5.0` | 12 |
# | `GradientDescentOptimizer(lr)` | `optimizer="sgd"`: an optax transformation | 12 |
# | `apply_gradients` | `params - rate * grads`, for each leaf: `jax.tree.map` | 12 |
# | `tf.assign(lr, new_lr)`, `lr_decay` | a number of the recipe, and its schedule | 14 |
# | `global_step` | `state.step` | 12 |
# | `run_epoch`, the loop over epochs | `jaxlm.train(config)` | 15 |
# | `eval_op=tf.no_op()` | `jaxlm.evaluate(run)` | 15 |
# | `np.exp(costs / iters)` | `jnp.exp(cost / T)`: perplexity | 8 |
# | `Supervisor(logdir)`, `Saver` | `jaxlm.train(config, run_dir=...)`, `resume=True`, `jaxlm.load(run)` | 15 |
# | `tf.summary.scalar`, TensorBoard | `metrics.jsonl` in the run's folder, `--track tensorboard` | 15 |
# | `SmallConfig`, `MediumConfig`, `LargeConfig` | `jaxlm.preset("zaremba-small")`, ... | exercise 4 |
# | a checkpoint of TensorFlow | `jaxlm.from_tensorflow(variables)`, `jaxlm.to_tensorflow(params)` | 9 |
# | `tf.device`, towers | `jaxlm.train(config, devices=4)` | |

# %% [markdown]
# ## 22. Exercises
#
# Replace `None`, run the cell, and the check answers. A solution is folded below each exercise.

# %%
def check(number, answer, expected, tolerance=1e-4):
    """Compares an answer with what is expected; None is an exercise that is still to do."""
    if answer is None:
        print(f"exercise {number}: to do")
        return
    assert_allclose(answer, expected, rtol=tolerance, atol=1e-6, err_msg=f"exercise {number} is not right yet")
    print(f"exercise {number}: correct")


# %% [markdown]
# **Exercise 1. The model without context.** A unigram model gives each word the same probability everywhere. Take
# (count in train + 1) / (tokens of train + V), and compute its perplexity on all of `corpus.valid`. (`counts` is in
# section 1.) How much better is the LSTM?
#
# <details><summary>Solution</summary>
#
# ```python
# p = (counts + 1) / (len(corpus.train) + V)
# answer_1 = np.exp(-np.log(p[corpus.valid]).mean())
# ```
#
# </details>

# %%
answer_1 = None
check(1, answer_1, known["unigram"])

# %% [markdown]
# **Exercise 2. A forget bias.** Later LSTMs add 1 to the forget gate before its sigmoid, so that a new network
# remembers by default. Write `cell_2(x_t, kernel, bias, state)`, the cell of section 5 with a forget bias of 1.
#
# <details><summary>Solution</summary>
#
# ```python
# def cell_2(x_t, kernel, bias, state):
#     i, j, f, o = jnp.split(jnp.concatenate([x_t, state.h], axis=1) @ kernel + bias, 4, axis=1)
#     c = state.c * jax.nn.sigmoid(f + 1) + jax.nn.sigmoid(i) * jnp.tanh(j)
#     return LSTMState(c, jnp.tanh(c) * jax.nn.sigmoid(o))
# ```
#
# </details>

# %%
def cell_2(x_t, kernel, bias, state):
    return None


def check_2(cell):
    _, before = lstm(x[:1], first["kernel"], first["bias"], zero[0])  # a state that is not zero
    mine = cell(x[1], first["kernel"], first["bias"], before)
    right, _ = lstm(x[1:2], first["kernel"], first["bias"], before, forget_bias=1.0)
    check(2, None if mine is None else mine.h, right[0])


check_2(cell_2)

# %% [markdown]
# **Exercise 3. Dropout.** Write `dropout(key, x, keep)`: each number is kept with the probability `keep` and becomes
# `x / keep`, so that the mean stays as it was; all others become 0. (`jax.random.bernoulli` draws the mask.)
#
# <details><summary>Solution</summary>
#
# ```python
# def dropout(key, x, keep):
#     return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)
# ```
#
# </details>

# %%
def dropout(key, x, keep):
    return None


def check_3(dropout):
    ones = jnp.ones((100, 1000))
    dropped = dropout(jax.random.key(3), ones, 0.8)
    if dropped is not None:
        assert set(np.unique(dropped).tolist()) == {0, 1.25}, "exercise 3: with keep 0.8, 1 becomes 0 or 1.25"
        assert abs(float((dropped == 0).mean()) - 0.2) < 0.01, "exercise 3: with keep 0.8, one in five becomes 0"
        assert (dropped != dropout(jax.random.key(4), ones, 0.8)).any(), "exercise 3: another key, another mask"
        dropped = dropout(jax.random.key(3), ones, 1.0)
    check(3, dropped, ones)


check_3(dropout)

# %% [markdown]
# **Exercise 4. The medium model.** `zaremba-medium` has 10,000 words, an embedding of 650 and two layers of 650. How
# many parameters is that? Compute it from the shapes, as in section 9.
#
# <details><summary>Solution</summary>
#
# ```python
# answer_4 = 10_000 * 650 + 2 * ((650 + 650) * 4 * 650 + 4 * 650) + 650 * 10_000 + 10_000
# ```
#
# </details>

# %%
answer_4 = None
shapes = jax.eval_shape(lambda key: jaxlm.init_params(jaxlm.preset("zaremba-medium").model, key), jax.random.key(0))
check(4, answer_4, sum(leaf.size for leaf in jax.tree.leaves(shapes)), tolerance=0)

# %% [markdown]
# **Exercise 5. Its schedule.** `zaremba-medium` starts at the rate 1.0, holds it for 6 epochs and then multiplies it by
# 0.8 in each. What is the rate of the tenth epoch?
#
# <details><summary>Solution</summary>
#
# ```python
# answer_5 = 0.8 ** (9 + 1 - 6)  # the tenth epoch is i = 9
# ```
#
# </details>

# %%
answer_5 = None
check(5, answer_5, jaxlm.preset("zaremba-medium").schedule.factor(0, 9, 1))

# %% [markdown]
# **Exercise 6. Generate by hand.** Begin with `[vocab.eos]` and append the most probable next id, ten times. Return
# the ten ids. (Section 17 shows how to read words and predict one; it is enough to read all of them again each time.)
#
# <details><summary>Solution</summary>
#
# ```python
# def greedy():
#     ids = [vocab.eos]
#     for _ in range(10):
#         x = lm.params["embedding"][jnp.array(ids)[:, None]]
#         out, _ = stack.features(trained, lm.params, Noise(), x, stack.zero_carry(trained, 1))
#         ids.append(int(heads.logits(trained, lm.params, out[-1, 0]).argmax()))
#     return ids[1:]
# ```
#
# </details>

# %%
def greedy():
    return None


def check_6(greedy):
    check(6, greedy(), vocab.encode(lm.generate(words=10, temperature=0)[0].words))


check_6(greedy)

# %% [markdown]
# **Further.** Train the same with `config.replace(model="gru")`, with `keep_output=0.5`, or with `optimizer="adamw"`,
# and compare. Give `run_dir` a name of your own and look at the run with `jaxlm info` and `jaxlm plot`. Use your own
# text: `jaxlm.load_corpus("novel.txt")`.
#
# Last, the model that comes with jaxlm. `english` was trained on books, in pieces of words, and yours on another text,
# in words: their perplexities do not compare. But how much does each word of a sentence surprise the one and the other?

# %%
line = "the captain of the ship and the doctor"
yours = lm.word_surprisal([line])
english = jaxlm.load("english").word_surprisal([line])
print(f"{'bits':10}{'yours':>8}{'english':>9}")
for word, own, other in zip(yours.word, yours.surprisal, english.surprisal, strict=True):
    print(f"{word:10}{own:8.2f}{other:9.2f}")

assert np.isfinite(english.surprisal).all()
