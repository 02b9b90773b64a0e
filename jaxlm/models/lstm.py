"""The LSTM. The gates' order is i, j, f, o, as in TensorFlow's BasicLSTMCell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from jaxlm.fields import number
from jaxlm.late import jnp
from jaxlm.models.recurrent import (
    CellNoise,
    Recurrent,
    state_dropout,
    torch_biases,
    uniform,
    weight_drop,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PRNGKeyArray

    from jaxlm.ops.lstm import LSTMState
    from jaxlm.ops.scans import Length

    class Layer(TypedDict):  # its parameters
        kernel: Float[Array, "E+H 4*H"]
        bias: Float[Array, " 4*H"]


@dataclass(frozen=True)
class LSTM(Recurrent):
    """Long short-term memory, as TensorFlow's BasicLSTMCell (Zaremba et al. 2014, arXiv:1409.2329)."""

    gates: ClassVar[int] = 4
    forget_bias: float = number(0.0, "added to the forget gate before its sigmoid")
    keep_recurrent_weights: float | None = weight_drop()
    keep_state: float | None = state_dropout()

    def init_layer(self, key: PRNGKeyArray, inputs: int, width: int) -> Layer:
        scale = self.layer_scale(width)
        bias = sum(
            torch_biases(key, scale, 4 * width) if self.torch_init else (), jnp.zeros(4 * width)
        )
        return {"kernel": uniform(key, scale, inputs + width, 4 * width), "bias": bias}

    def zero_state(self, rows: int, width: int, dtype: Any) -> LSTMState:
        from jaxlm.ops.lstm import LSTMState

        return LSTMState(jnp.zeros((rows, width), dtype), jnp.zeros((rows, width), dtype))

    def apply_layer(
        self,
        params: Layer,
        x: Float[Array, "T B E"],
        state: LSTMState,
        noise: CellNoise,
        length: Length,
    ) -> tuple[Float[Array, "T B H"], LSTMState]:
        from jaxlm.ops.lstm import lstm

        return lstm(
            x,
            params["kernel"],
            params["bias"],
            state,
            self.forget_bias,
            length,
            noise.kept,
            self.keep_state,
        )
