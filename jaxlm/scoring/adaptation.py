"""Adaptation: after each sentence is scored, one step of SGD on it, as neural-complexity does (van Schijndel and Linzen
2018, arXiv:1808.09930).

The step minimises the mean nats of the sentence's words and of the `<eos>` that ends it. The gradient is clipped by its
global norm. Nesterov's momentum of 0.9 is kept from sentence to sentence. No dropout.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.errors import Diverged, JaxlmError
from jaxlm.models.recurrent import Params
from jaxlm.scoring.dynamic_evaluation import Objective, gradient
from jaxlm.scoring.network import Network, carry_after
from jaxlm.scoring.token_scores import Detail, Tokens, TokenScores, own_scores

CLIP_NORM = 0.25  # neural-complexity's default
MOMENTUM = optax.trace(0.9, nesterov=True)


class Adaptive:
    """Scores each sentence by parameters that have learnt from all sentences before; a `Scoring`.

    Attributes:
        params: as adapted so far, from a copy of the network's.
    """

    def __init__(self, network: Network, rate: float, clip_norm: float, stream: bool, detail: Detail):
        """With `stream` the carry is passed on between sentences; else each starts from zero.

        Raises JaxlmError where the learning rate or the largest norm of a gradient is not above 0.
        """
        for name, value in (("the rate of adaptation", rate), ("clip_norm", clip_norm)):
            if not (value > 0 and math.isfinite(value)):
                raise JaxlmError(f"{name} must be above 0; it is {value:g}")
        self.params: Params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), network.params)
        self._network, self._rate, self._objective = network, float(rate), Objective(clip_norm=float(clip_norm))
        self._momentum = MOMENTUM.init(self.params)
        self._stream, self._detail, self._done = stream, detail, 0
        self._carry = network.carry()

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        return TokenScores.joined([self._one(ids) for ids in sentences])

    def _one(self, ids: np.ndarray) -> TokenScores:
        before, count = self._carry, len(ids) - 1
        if self._stream:  # (of the parameters that score the sentence)
            self._carry = carry_after(replace(self._network, params=self.params), ids[:-1], before)
        steps = max(8, 1 << (count - 1).bit_length())  # a power of two, so that few lengths are compiled
        inputs, targets = (np.pad(part, (0, steps - count))[:, None] for part in (ids[:-1], ids[1:]))
        tokens = map(jnp.asarray, (inputs, targets, np.arange(steps)[:, None] < count))
        learnt = self.params, self._momentum
        model, begins = self._network.model, self._network.begins
        scores, (self.params, self._momentum), finite = _adapt(
            model, begins, self._objective, self._rate, learnt, Tokens(*tokens), before, detail=self._detail
        )
        self._done += 1
        if not finite:
            raise Diverged(
                f"the gradient of sentence {self._done} is not finite: adapt at a lower rate than {self._rate:g}"
            )
        return scores.rows((slice(count), 0))


@partial(jax.jit, static_argnames="detail", donate_argnames="learnt")
def _adapt(model, begins, objective, rate, learnt, tokens, carry, *, detail):
    """Scores one sentence, then takes one step on it; also whether the gradient was finite."""
    params, momentum = learnt
    network = Network(model, params, begins)
    grads, (found, _) = gradient(network, objective, tokens, carry)
    scores = own_scores(network, found, tokens, detail)
    updates, momentum = MOMENTUM.update(grads, momentum)
    params = jax.tree.map(lambda p, update: p - rate * update, params, updates)
    return scores, (params, momentum), jnp.isfinite(optax.tree.norm(grads))
