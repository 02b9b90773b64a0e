"""NT-ASGD as the published code of AWD-LSTM runs it (salesforce/awd-lstm-lm).

MoS has the same optimiser.

What differs from `ASGD`:

- Each layer has two biases of equal gradient, of which ours is the sum: the sum moves at twice the
  rate of one, and counts as two in the global norm.
- The norm that clips is 1e-6 larger.
- PyTorch sets the rate of averaged SGD at the end of a step, so that each step but the first moves
  by the rate of the step before; and the first iterate of the average is overwritten by the second.
- Evaluation divides by all tokens, though the first of each row is not predicted.
- An epoch of random windows ends, and rates its last window, as `RandomLengths.as_published` tells.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.base.errors import JaxlmError
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.optimizers.descent import ASGD
from jaxlm.optimizers.optimizer import OPTIMIZERS, clip_by_given_norm


@OPTIMIZERS.kind("awd-lstm")
class PublishedASGD(ASGD):
    """NT-ASGD with the quirks of AWD-LSTM's published code (docs/awd-lstm.md)."""

    forgotten_iterates = 1
    windows_as_published = True

    def check_model(self, model: Recurrent) -> None:
        """Raises JaxlmError for a model that is no LSTM."""
        super().check_model(model)
        if model.title != LSTM.kind_name:
            raise JaxlmError(
                f"the optimizer awd-lstm is for LSTMs; the model is {model.title}: take asgd"
            )

    def counted(self, predictions: int, rows: int) -> int:
        """All tokens, though the first of each row is not predicted."""
        return predictions + rows

    def keeps_rows(self, tied: bool) -> bool:
        return False

    def norm(self, grads: Params) -> jax.Array:
        """The global norm in which each layer's bias counts twice."""
        return super().norm(_with_biases_times(grads, 2**0.5))

    def transformation(
        self, model: Recurrent, factor: jax.Array | float
    ) -> optax.GradientTransformationExtraArgs:
        """Clipping and descent as PyTorch runs them, as `Optimizer.transformation` says."""
        steps: list[Any] = [
            optax.stateless(lambda updates, _: _with_biases_times(updates, 2)),
            *self.decay(),
            _by_lagging_rate(self.learning_rate * factor),
        ]
        if self.clip_norm is not None:
            steps.insert(0, clip_by_given_norm(self.clip_norm, 1e-6))
        return optax.chain(*steps)


class Lag(NamedTuple):
    """The rate of the step before, and whether it averaged."""

    rate: jax.Array
    averaging: jax.Array


def _by_lagging_rate(rate: jax.Array | float) -> optax.GradientTransformationExtraArgs:
    """Descent by the rate of the step before, from the second step that averages on."""

    def init(params: Any) -> Lag:
        return Lag(jnp.float32(0), jnp.bool_(False))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        **given: Any,
    ) -> tuple[Any, Any]:
        moved = jnp.where(state.averaging, state.rate, rate)
        after = Lag(jnp.asarray(rate, jnp.float32), state.averaging | given["averaging"])
        return jax.tree.map(lambda g: -moved.astype(g.dtype) * g, updates), after

    return optax.GradientTransformationExtraArgs(init, update)


def _with_biases_times(grads: Any, by: float) -> Any:
    """A gradient with the biases of the layers times a number."""
    return {
        **grads,
        "layers": jax.tree.map(lambda grad: grad * by if grad.ndim == 1 else grad, grads["layers"]),
    }
