"""The softmax at another temperature: p^(1 / temperature), normalised; 1 is the model itself.

Above 1 an overconfident model becomes more careful (Guo et al. 2017, arXiv:1706.04599).
"""

from dataclasses import dataclass

import jax

from jaxlm.config.protocols import Temperature
from jaxlm.models import heads, stack
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.scoring.reading import MOST_SENTENCES, Scale, features
from jaxlm.scoring.token_scores import Columns, score_logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TemperatureReader:
    """A `Reader`. Its state is the model's carry."""

    model: Recurrent
    params: Params
    protocol: Temperature

    segment = None
    most_sentences = MOST_SENTENCES

    def within(self, tokens: int) -> "TemperatureReader":
        return self

    def start(self) -> Carry:
        return stack.zero_carry(self.model, 1, self.params["embedding"].dtype)

    def read(
        self, state: Carry, inputs: jax.Array, targets: jax.Array, counted: jax.Array, scale: Scale
    ) -> tuple[Columns, Carry]:
        found, state = features(self.model, self.params, inputs, state)
        logits = heads.logits(self.model, self.params, found[:, 0]) / self.protocol.temperature
        return score_logits(logits, targets, scale.top, scale.full), state
