"""Models that learn from the text that they score: dynamic evaluation and adaptation.

Dynamic evaluation (Krause et al. 2018, arXiv:1709.07432): a segment is scored, and then learnt; a
decay draws the parameters p back to the trained ones, p0.

    rms:  p += min(lambda * RMS / mean, 1) (p0 - p) - rate * g / (RMS + epsilon)
    sgd:  p += lambda (p0 - p) - rate * g

g is the gradient of the segment's mean nats, without dropout. RMS is the root of the mean square of
such gradients over the windows of the training text, for each parameter; mean is its mean over each
tensor, and of these over the tensors.

With `compatibility="krause"` the tensors are those of the paper's PyTorch code: an LSTM layer has
two kernels and two biases, and jaxlm's one bias, their sum, moves at twice the rate. A last segment
of one prediction is not scored. With `compatibility="lamb"`, the Mogrifier's code (Melis et al.
2020), g is the gradient that trained the run: of the sum over T with the optimiser's L2 penalty,
clipped; mean is the mean of all parameters at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array

from jaxlm.base.errors import DataError, Diverged
from jaxlm.base.fields import checked_value
from jaxlm.config.protocols import Dynamic
from jaxlm.data.windows import batch
from jaxlm.models.recurrent import Params
from jaxlm.models.stack import Carry
from jaxlm.optimizers.optimizer import Optimizer
from jaxlm.scoring.token_scores import (
    NATS_ALONE,
    Detail,
    Network,
    Reader,
    Tokens,
    TokenScores,
    nats_alone,
    own_scores,
    read_and_predicted,
)

# In the copies of the parameters of all sentences that are read side by side.
MOST_NUMBERS = 1 << 26
WINDOWS_PER_CALL = 256
# The update of neural-complexity for a sentence, at a rate of 1.
_SENTENCE_SGD = optax.chain(optax.clip_by_global_norm(0.25), optax.trace(0.9, nesterov=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DynamicReader(Reader):
    """The model, which learns from each segment. Its state: the parameters so far, and the carry.

    Attributes:
        network: The network with the trained parameters, or a mixture, whose networks all learn.
        protocol: The rule and its numbers.
        rms: `gradient_statistics` of the training text; None with the rule sgd.
        optimizer: As `text_gradient` takes it.
    """

    network: Any
    protocol: Dynamic
    rms: Any
    optimizer: Optimizer | None = None

    @property
    def segment(self) -> int:
        """Tokens that are scored, then learnt."""
        return self.protocol.segment_length

    @property
    def most_sentences(self) -> int:
        """The most sentences side by side: each has its own copy of the parameters in memory."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.network.learnt))
        return max(1, MOST_NUMBERS // size)

    def start(self) -> tuple[Params, Carry]:
        """As `Reader.start`."""
        return self.network.learnt, self.network.carry()

    def read(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """As `Reader.read`."""
        learnt, carry = state
        network = self.network.with_learnt(learnt)
        column = jax.tree.map(lambda ids: ids[:, None], tokens)
        grads, (features, carry) = text_gradient(network, column, carry, self.optimizer)
        is_mixed = not isinstance(network, Network)
        if is_mixed and detail == NATS_ALONE and network.begins is None:
            # An n-gram model finds one probability far sooner than a whole distribution.
            scores = nats_alone(network.token_nats(features, column.targets))
        else:
            scores = own_scores(network, features, column, detail)
        trained = self.network.learnt
        if is_mixed:
            rms = self.rms or [None] * len(learnt)
            learnt = tuple(map(self._after_step, learnt, trained, grads, rms))
        else:
            learnt = self._after_step(learnt, trained, grads, self.rms)
        return jax.tree.map(lambda leaf: leaf[:, 0], scores), (learnt, carry)

    def _after_step(
        self,
        params: Params,
        trained: Params,
        grads: Params,
        rms: Params | None,
    ) -> Params:
        """The parameters of one network after one step of the rule."""
        protocol = self.protocol
        rate = protocol.learning_rate
        lambda_ = protocol.lambda_
        if rms is None:
            return jax.tree.map(
                lambda p, p0, g: p + lambda_ * (p0 - p) - rate * g, params, trained, grads
            )
        rate_factors = jax.tree.map(lambda leaf: 1, params)
        if protocol.as_krause:
            rate_factors["layers"] = [{**layer, "bias": 2} for layer in rate_factors["layers"]]
        mean = self._mean(rms)

        def step(
            p,
            p0,
            g,
            rate_factor,
            rms,
        ):
            decay = jnp.minimum(lambda_ * rms / mean, 1) * (p0 - p)
            return p + decay - rate_factor * rate * g / (rms + protocol.epsilon)

        return jax.tree.map(step, params, trained, grads, rate_factors, rms)

    def _mean(self, rms: Params) -> Array:
        """The mean of RMS over the tensors, as the protocol takes it."""
        protocol = self.protocol
        tensors = jax.tree.leaves(rms)
        if protocol.as_krause:  # a layer has two kernels and two biases, whose sum is the bias here
            tensors = jax.tree.leaves({**rms, "layers": []})
            for layer, width in zip(rms["layers"], self.network.model.hidden_sizes, strict=True):
                kernel = layer["kernel"]
                tensors += [kernel[:-width], kernel[-width:], layer["bias"], layer["bias"]]
        if protocol.compatibility == "lamb":
            total = jnp.stack([tensor.sum() for tensor in tensors]).sum()
            return total / sum(tensor.size for tensor in tensors)
        return jnp.stack([tensor.mean() for tensor in tensors]).mean()


def gradient_statistics(
    network: Any,
    ids: np.ndarray,
    protocol: Dynamic,
    optimizer: Optimizer | None = None,
) -> Params:
    """RMS, for which the training text is read once, without learning from it.

    The text is cut into `statistics_rows` rows, and these into windows of the protocol's segment
    length; the carry is passed on. A last window with one prediction a row is left out.

    Args:
        network: The network with the trained parameters.
        ids: The training text [N].
        protocol: The rule and its numbers.
        optimizer: As `text_gradient` takes it.

    Raises:
        DataError: The text is too short.
    """
    B = protocol.statistics_rows
    T = protocol.segment_length
    rows = len(ids) // B
    windows = math.ceil((rows - 2) / T)
    if windows < 1:
        text = f"the {len(ids):,} tokens of the training text"
        raise DataError(
            f"statistics_rows {B:,} cuts {text} into rows of {rows:,}, and dynamic evaluation "
            "needs at least 3: lower statistics_rows"
        )
    windows = min(windows, protocol.statistics_windows or windows)
    C = min(WINDOWS_PER_CALL, windows)
    squares = _zeros_like(network.learnt)
    carry = network.carry(B)
    for first in range(0, windows, C):
        tokens = batch(ids, B, start=first * T, stop=min(rows, (first + C) * T + 1))
        # Predictions of a row in these windows.
        count = min(len(tokens) - 1, (windows - first) * T)
        tokens = np.pad(tokens, ((0, C * T + 1 - len(tokens)), (0, 0)))
        squares, carry = _add_squares(
            network, optimizer, squares, tokens, jnp.int32(count), carry, length=T
        )
    return _root_mean(squares, np.float32(windows))


# One program each, in place of one for each shape of a parameter.
@jax.jit
def _zeros_like(params):
    return jax.tree.map(jnp.zeros_like, params)


@jax.jit
def _root_mean(squares, count):
    return jax.tree.map(lambda total: jnp.sqrt(total / count), squares)


@partial(jax.jit, static_argnames="length")
def _add_squares(
    network,
    optimizer,
    squares,
    tokens,
    count,
    carry,
    *,
    length,
):
    """Adds the squared gradients of windows of tokens [C * length + 1, B].

    The first `count` predictions of a row count.
    """

    def add(state, window):
        squares, carry = state
        grads, (_, carry) = text_gradient(network, window, carry, optimizer)
        return (jax.tree.map(lambda total, g: total + g * g, squares, grads), carry), None

    counted = jnp.broadcast_to((jnp.arange(len(tokens) - 1) < count)[:, None], tokens[1:].shape)
    read = Tokens(tokens[:-1], tokens[1:], counted)
    windows = jax.tree.map(lambda ids: ids.reshape(-1, length, *ids.shape[1:]), read)
    return lax.scan(add, (squares, carry), windows)[0]


def text_gradient(
    network: Network,
    tokens: Tokens,
    carry: Carry,
    optimizer: Optimizer | None = None,
    length: Array | None = None,
) -> tuple[Any, tuple[Any, Carry]]:
    """The gradient of the mean nats of the targets that count.

    Args:
        network: The model.
        tokens: The tokens [T, B].
        carry: The carry before them.
        optimizer: Asks for the gradient that it trains by: of the sum over T and mean over B with
            its L2 penalty, clipped.
        length: Steps after which the carry is taken, traced; None: all.

    Returns:
        The gradient; the features [T, B, ...] and the new carry.
    """
    inputs, targets, counted = tokens
    weights = counted / (jnp.maximum(counted.sum(), 1) if optimizer is None else inputs.shape[1])
    params = network.learnt

    def nats(params):
        learner = network.with_learnt(params)
        features, after = learner.features(inputs, carry, length=length)
        return learner.summed_nats(features, targets, weights), (features, after)

    grads, features_and_carry = jax.grad(nats, has_aux=True)(params)
    l2_penalty = getattr(optimizer, "l2_penalty", None)
    if l2_penalty is not None:
        grads = jax.tree.map(lambda g, p: g + l2_penalty * p, grads, params)
    if optimizer is not None and optimizer.clip_norm is not None:
        clip_norm = optimizer.clip_norm
        factor = clip_norm / jnp.maximum(optax.tree.norm(grads), clip_norm)
        grads = jax.tree.map(lambda g: factor * g, grads)
    return grads, features_and_carry


class AdaptiveScoring:
    """Scores each sentence by parameters that have learnt from all sentences before; a `Scoring`.

    After each sentence comes one step of SGD on the mean nats of its words and its `<eos>`, as in
    neural-complexity (van Schijndel and Linzen 2018, arXiv:1808.09930): no dropout, the gradient
    clipped to a global norm of 0.25, and Nesterov's momentum of 0.9 kept from sentence to sentence.

    Args:
        network: The model; a copy of its parameters learns.
        rate: Learning rate, above 0.
        stream: Whether the carry passes from sentence to sentence.
        detail: How much to find of each token.

    Attributes:
        params: The parameters as adapted so far.

    Raises:
        JaxlmError: The rate is not above 0.
    """

    def __init__(
        self,
        network: Network,
        rate: float,
        stream: bool,
        detail: Detail,
    ):
        rate = checked_value("the rate of adaptation", rate, float, above=0)
        self.params: Params = jax.tree.map(partial(jax.device_put, may_alias=False), network.params)
        self._adapt = partial(_adapt, network, rate, detail=detail)
        self._momentum = _SENTENCE_SGD.init(self.params)
        self._carry = network.carry()
        self._rate = rate
        self._stream = stream
        self._sentences_read = 0

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        """Scores sentences of ids [n + 1], and learns from each."""
        return TokenScores.joined([self._scored(ids) for ids in sentences])

    def _scored(self, ids: np.ndarray) -> TokenScores:
        count = len(ids) - 1
        length = max(8, 1 << (count - 1).bit_length())  # so that few lengths are compiled
        tokens = Tokens(*np.pad(read_and_predicted(ids), ((0, 0), (0, length - count)))[..., None])
        learnt = self.params, self._momentum
        scores, (self.params, self._momentum), carry, finite = self._adapt(
            learnt, tokens, self._carry
        )
        if self._stream:
            self._carry = carry
        self._sentences_read += 1
        if not finite:
            raise Diverged(
                f"the gradient of sentence {self._sentences_read} is not finite: use a lower rate "
                f"than {self._rate:g}"
            )
        return scores.rows((slice(count), 0))


@partial(jax.jit, static_argnames="detail", donate_argnames="learnt")
def _adapt(
    network,
    rate,
    learnt,
    tokens,
    carry,
    *,
    detail,
):
    """Scores one sentence, then takes one step on it.

    Also returns the new carry, and whether the gradient was finite.
    """
    params, momentum = learnt
    network = network._replace(params=params)
    grads, (features, carry) = text_gradient(network, tokens, carry, length=tokens.counted.sum())
    scores = own_scores(network, features, tokens, detail)
    updates, momentum = _SENTENCE_SGD.update(grads, momentum)
    params = jax.tree.map(lambda p, update: p - rate * update, params, updates)
    return scores, (params, momentum), carry, jnp.isfinite(optax.tree.norm(grads))
