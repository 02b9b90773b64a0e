"""Dynamic evaluation (Krause et al. 2018, arXiv:1709.07432): a segment is scored, and then learnt, so that the model
follows the text; a decay draws it back to the trained parameters p0.

    rms:  p += min(lambda * RMS / mean, 1) (p0 - p) - rate * g / (RMS + epsilon)
    sgd:  p += lambda (p0 - p) - rate * g

g is the gradient of the segment's mean nats, without dropout. RMS is the root of the mean square of such gradients over
the windows of the training text, for each parameter; mean is its mean over each tensor, and of these over the tensors.

With `compatibility="krause"` the tensors are those of the paper's PyTorch code: an LSTM layer has two kernels and two
biases, and jaxlm's one bias, their sum, moves at twice the rate. A last segment of one prediction is not scored. With
`compatibility="lamb"`, the Mogrifier's code (Melis et al. 2020), g is the gradient that trained the run: of the sum
over T with the optimiser's L2 penalty, clipped; mean is the mean of all parameters at once.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxlm.config.config import Config
from jaxlm.config.protocols import Dynamic
from jaxlm.data.windows import batch
from jaxlm.errors import DataError
from jaxlm.models import heads
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring.network import Network
from jaxlm.scoring.reading import Reader
from jaxlm.scoring.token_scores import Detail, Tokens, TokenScores, own_scores

MOST_COPIES = 1 << 26  # numbers in all sentences' parameters, where several are read side by side
WINDOWS_PER_CALL = 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Objective:
    """What is differentiated: the mean nats; if `summed`, their sum over T and mean over B."""

    summed: bool = field(default=False, metadata={"static": True})
    clip_norm: Any = None  # largest global norm of the gradient; None: any
    l2_penalty: Any = None  # weight of half the squared norm of all parameters; None: 0


MEAN_NATS = Objective()


class Statistics(NamedTuple):
    """The training text's gradients: the root of their mean square over a number of windows."""

    rms: Params
    windows: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DynamicReader(Reader):
    """The model, which learns from each segment. Its state is the parameters as learnt so far, and the carry."""

    network: Network  # with the trained parameters
    protocol: Dynamic
    statistics: Statistics | None  # of the training text; None with the rule sgd
    objective: Objective = MEAN_NATS

    @property
    def segment(self) -> int:
        return self.protocol.segment_length

    @property
    def most_sentences(self) -> int:
        """Few where a model is large: each sentence has parameters of its own."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.network.params))
        return max(1, MOST_COPIES // size)

    def start(self) -> tuple[Params, Carry]:
        return self.network.params, self.network.carry()

    def read(self, state: Any, tokens: Tokens, detail: Detail) -> tuple[TokenScores, Any]:
        params, carry = state
        network, column = replace(self.network, params=params), jax.tree.map(lambda ids: ids[:, None], tokens)
        grads, (found, carry) = gradient(network, self.objective, column, carry)
        scores = own_scores(network, found, column, detail)
        return jax.tree.map(lambda one: one[:, 0], scores), (self._learnt(params, grads), carry)

    def _learnt(self, params: Params, grads: Params) -> Params:
        """The parameters after one step."""
        model, trained, protocol = self.network.model, self.network.params, self.protocol
        rate, lambda_, epsilon = protocol.learning_rate, protocol.lambda_, protocol.epsilon
        times = _summed_tensors(params, protocol)
        if self.statistics is None:
            return jax.tree.map(
                lambda p, p0, g, tensors: p + lambda_ * (p0 - p) - tensors * rate * g, params, trained, grads, times
            )
        if protocol.compatibility == "krause-oldhyper":  # as the option --oldhyper of the paper's code
            root = jnp.sqrt(self.statistics.windows)
            rate, lambda_, epsilon = rate / root, lambda_ / len(_tensors(model, trained, protocol)), epsilon / root
        mean = _mean(model, self.statistics.rms, protocol)

        def step(p, p0, g, tensors, rms):
            return p + jnp.minimum(lambda_ * rms / mean, 1) * (p0 - p) - tensors * rate * g / (rms + epsilon)

        return jax.tree.map(step, params, trained, grads, times, self.statistics.rms)


def objective_of(config: Config, protocol: Dynamic) -> Objective:
    """What a protocol differentiates for a run's model."""
    if protocol.compatibility != "lamb":
        return Objective()
    return Objective(True, config.optimizer.clip_norm, getattr(config.optimizer, "l2_penalty", None))


def gradient_statistics(
    network: Network, ids: np.ndarray, protocol: Dynamic, objective: Objective = MEAN_NATS
) -> Statistics:
    """Reads the training text, ids [N], once, without learning from it.

    The text is cut into `statistics_rows` rows, and these into windows of the protocol's segment length; the carry is
    passed on. A last window with one prediction a row is left out. Raises DataError where the text is too short.
    """
    B, T = protocol.statistics_rows, protocol.segment_length
    rows = len(ids) // B
    windows = math.ceil((rows - 2) / T)
    if windows < 1:
        raise DataError(
            f"statistics_rows {B:,} cuts the {len(ids):,} tokens of the training text into rows of "
            f"{rows:,}, and dynamic evaluation needs at least 3: lower statistics_rows"
        )
    windows = min(windows, protocol.statistics_windows or windows)
    C = min(WINDOWS_PER_CALL, windows)
    squares = jax.tree.map(jnp.zeros_like, network.params)
    carry = network.carry(B)
    for first in range(0, windows, C):
        tokens = batch(ids, B, start=first * T, stop=min(rows, (first + C) * T + 1))
        count = min(len(tokens) - 1, (windows - first) * T)  # predictions of a row in these windows
        tokens = np.pad(tokens, ((0, C * T + 1 - len(tokens)), (0, 0)))
        squares, carry = _add_squares(network, objective, squares, tokens, jnp.int32(count), carry, length=T)
    return Statistics(jax.tree.map(lambda total: jnp.sqrt(total / windows), squares), float(windows))


def gradient(
    network: Network, objective: Objective, tokens: Tokens, carry: Carry
) -> tuple[Params, tuple[jax.Array, Carry]]:
    """The gradient over the counted targets of [T, B]; with the features [T, B, H] and the new carry."""
    inputs, targets, counted = tokens
    weights = counted / (inputs.shape[1] if objective.summed else jnp.maximum(counted.sum(), 1))
    model, params = network.model, network.params

    def nats(params):
        found, after = Network(model, params).features(inputs, carry)
        return heads.summed_nats(model, params, found, targets, weights.astype(found.dtype)), (found, after)

    grads, kept = jax.grad(nats, has_aux=True)(params)
    if objective.l2_penalty is not None:
        grads = jax.tree.map(lambda g, p: g + objective.l2_penalty * p, grads, params)
    if objective.clip_norm is not None:
        shrunk = objective.clip_norm / jnp.maximum(optax.tree.norm(grads), objective.clip_norm)
        grads = jax.tree.map(lambda g: shrunk * g, grads)
    return grads, kept


@partial(jax.jit, static_argnames="length")
def _add_squares(network, objective, squares, tokens, count, carry, *, length):
    """Adds the squared gradients of the windows of tokens [C * length + 1, B]; `count` predictions of a row count."""

    def add(state, start):
        squares, carry = state
        rows = lax.dynamic_slice_in_dim(tokens, start, length + 1)
        counted = jnp.broadcast_to((start + jnp.arange(length) < count)[:, None], rows[1:].shape)
        grads, (_, carry) = gradient(network, objective, Tokens(rows[:-1], rows[1:], counted), carry)
        return (jax.tree.map(lambda total, g: total + g * g, squares, grads), carry), None

    starts = jnp.arange(0, len(tokens) - 1, length)
    return lax.scan(add, (squares, carry), starts)[0]


def _tensors(model: Recurrent, tree: Params, protocol: Dynamic) -> list[jax.Array]:
    """The tensors as the protocol counts them: for krause each layer has PyTorch's two kernels and two biases."""
    if not protocol.as_krause:
        return jax.tree.leaves(tree)
    found = jax.tree.leaves({**tree, "layers": []})
    for layer, width in zip(tree["layers"], model.hidden_sizes, strict=True):
        found += [layer["kernel"][:-width], layer["kernel"][-width:], layer["bias"], layer["bias"]]
    return found


def _mean(model: Recurrent, rms: Params, protocol: Dynamic) -> jax.Array:
    """The mean over the tensors of each one's mean; for lamb the mean of all numbers."""
    tensors = _tensors(model, rms, protocol)
    if protocol.compatibility == "lamb":
        return jnp.stack([tensor.sum() for tensor in tensors]).sum() / sum(tensor.size for tensor in tensors)
    return jnp.stack([tensor.mean() for tensor in tensors]).mean()


def _summed_tensors(params: Params, protocol: Dynamic) -> Params:
    """For each parameter the number of the reference's tensors whose sum it is."""
    ones = jax.tree.map(lambda leaf: 1, params)
    return {**ones, "layers": [{**layer, "bias": 2} for layer in ones["layers"]]} if protocol.as_krause else ones
