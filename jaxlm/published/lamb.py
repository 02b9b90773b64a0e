"""Adam and the Mogrifier as the Mogrifier's published code runs them (google-deepmind/lamb).

It runs on TensorFlow 1.

What differs:

- Adam's epsilon is added to the root of the squared gradient's mean before its bias correction.
- Untied, the embedding's gradient is IndexedSlices: the global norm counts every occurrence of a
  word by itself.
- Averaging starts once the best validation is `nonmonotone` validations old.
- A dropped word is dropped from the one embedding tensor, which a tied softmax reads too.
- A kept update of the cell is scaled by 1.5 whatever its probability, and in evaluation too.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxlm.base.errors import JaxlmError
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import MODELS
from jaxlm.optimizers.adamw import AdamW
from jaxlm.optimizers.optimizer import OPTIMIZERS

UPDATE_SCALE = 1.5


@OPTIMIZERS.kind("lamb-adam")
class LambAdam(AdamW):
    """Adam with the quirks of lamb and TensorFlow 1 (docs/mogrifier.md)."""

    updates_rows = False
    averages_once_stale = True

    def check(self) -> None:
        """Raises JaxlmError where a field is none of lamb's."""
        super().check()
        if self.rectified:
            raise JaxlmError("lamb-adam is not rectified: take --optimizer adamw, or leave it out")

    def keeps_rows(self, tied: bool) -> bool:
        return not tied and self.l2_penalty is None

    def adam(self) -> optax.GradientTransformation:
        """Adam's direction, with epsilon added before the bias correction."""

        def update(
            updates,
            state,
            params=None,
        ):
            corrected = jnp.sqrt(1 - self.beta2 ** (state.count + 1))
            return optax.scale_by_adam(self.beta1, self.beta2, self.epsilon / corrected).update(
                updates, state, params
            )

        return optax.GradientTransformation(super().adam().init, update)


@MODELS.kind("lamb-mogrifier")
class LambMogrifier(Mogrifier):
    """Mogrifier with lamb's quirks of dropout (docs/mogrifier.md)."""

    @property
    def drops_output_words(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A tied softmax reads the embedding whose words are dropped."""
        return self.tied

    def update_scale(
        self, updated: Bool[Array, "B H"] | None
    ) -> Float[Array, "B H"] | float | None:
        """The factor on what is written to the cell: lamb's constant, whatever the probability."""
        if self.keep_update is None or self.input_gate == "free":
            return super().update_scale(updated)
        if updated is None:
            return UPDATE_SCALE
        return jnp.where(updated, UPDATE_SCALE, 0)
