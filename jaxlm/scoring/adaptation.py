"""Adaptation: after each sentence is scored, one step of SGD on it, as neural-complexity does (van Schijndel and Linzen
2018, arXiv:1808.09930).

The step minimises the mean nats of the sentence's words and of the `<eos>` that ends it; the gradient is clipped by its
global norm, and Nesterov's momentum of 0.9 is kept from sentence to sentence. No dropout.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config.config import Recipe
from jaxlm.config.optimizers import SGD
from jaxlm.errors import Diverged, JaxlmError
from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.scoring.token_scores import TokenScores, read_on, score_rows
from jaxlm.training import optimizers

CLIP_NORM = 0.25  # neural-complexity's default


class Adaptive:
    """Scores each sentence by parameters that have learnt from all before it; a `Scoring`.

    Attributes:
        params: as adapted so far.
    """

    def __init__(
        self,
        model: Recurrent,
        params: Params,
        rate: float,
        *,
        clip_norm: float = CLIP_NORM,
        stream: bool = False,
        top: int = 0,
    ):
        """Starts from a copy of some parameters.

        Args:
            model: the config's model.
            params: to start from.
            rate: of learning.
            clip_norm: largest global norm of a gradient.
            stream: whether the carry is passed on between sentences; else each starts from zero.
            top: how many likeliest words to find.

        Raises:
            JaxlmError: the rate or the norm is not above 0.
        """
        for name, value in (("the rate of adaptation", rate), ("clip_norm", clip_norm)):
            if not (value > 0 and math.isfinite(value)):
                raise JaxlmError(f"{name} must be above 0; it is {value:g}")
        self.params: Params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
        self._recipe = Recipe(
            stack.exact(model), SGD(learning_rate=float(rate), clip_norm=float(clip_norm), momentum=0.9, nesterov=True)
        )
        self._optimizer = optimizers.transformation(self._recipe, 1.0).init(self.params)
        self._stream, self._top, self._done = stream, top, 0
        self._carry = stack.zero_carry(model, 1, params["embedding"].dtype)

    def __call__(self, sentences: Sequence[np.ndarray]) -> TokenScores:
        return TokenScores.joined([self._one(ids) for ids in sentences])

    def _one(self, ids: np.ndarray) -> TokenScores:
        model, before = self._recipe.model, self._carry
        rows, after = read_on(model, self.params, ids[:-1], before)
        scores = score_rows(model, self.params, [rows], [ids[1:]], self._top)
        steps = max(8, 1 << (len(ids) - 2).bit_length())
        inputs, targets = (np.pad(part, (0, steps - len(part)))[:, None] for part in (ids[:-1], ids[1:]))
        self.params, self._optimizer, finite = _step(
            self._recipe, self.params, self._optimizer, inputs, targets, len(ids) - 1, before
        )
        self._done += 1
        if not finite:
            raise Diverged(
                f"the gradient of sentence {self._done} is not finite: adapt at a lower rate than "
                f"{self._recipe.optimizer.learning_rate:g}"
            )
        if self._stream:
            self._carry = after
        return scores


@partial(jax.jit, donate_argnames=("params", "state"))
def _step(recipe, params, state, inputs, targets, count, carry):
    """One step on the first `count` of inputs and targets [T, 1]; and whether the gradient was finite."""
    model = recipe.model
    weights = (jnp.arange(len(inputs)) < count)[:, None] / count

    def mean_nats(params):
        features, _ = stack.features(model, params, no_noise(model), stack.embed(params, inputs), carry)
        return heads.summed_nats(model, params, features, targets, weights.astype(features.dtype))

    grads = jax.grad(mean_nats)(params)
    norm = optax.tree.norm(grads)
    updates, state = optimizers.transformation(recipe, 1.0).update(grads, state, params, grad_norm=norm)
    return jax.tree.map(jnp.add, params, updates), state, jnp.isfinite(norm)
