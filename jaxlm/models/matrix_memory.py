"""What the kinds share whose heads have an output gate and a matrix [keys, values] as memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.base.fields import count
from jaxlm.models.recurrent import Params, Recurrent, head_count


@dataclass(frozen=True)
class MatrixMemory(Recurrent):
    """Heads with queries, keys, values and an output gate, in this order in one kernel.

    Where keys are not as wide as values, queries and keys have a kernel of their own, `key_kernel`.
    """

    gates = 4
    head_units = 2
    heads: int = head_count()
    key_units: int = count(0, "units of each head's keys (0: as of its values)", "units")

    @property
    def kernel_gates(self) -> Mapping[str, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With `key_units`: queries and keys in one kernel, values and output gate in the other."""
        if self.key_units:
            return {"key_kernel": 2, "kernel": 2}
        return {}

    def key_size(self, width: int) -> int:
        """The width of all heads' keys together, given the width H of all their values."""
        return self.heads * self.key_units or width

    def init_kernels(
        self,
        key: PRNGKeyArray,
        inputs: int,
        width: int,
    ) -> Params:
        """Fresh kernels.

        Args:
            key: For the initial values.
            inputs: Width E of what the layer reads.
            width: Width H of all heads' values.

        Returns:
            `kernel` [E, 4 * H], or `key_kernel` [E, 2 * keys] and `kernel` [E, 2 * H].
        """
        if not self.key_units:
            return {"kernel": self.matrix(key, inputs, 4 * width)}
        of_keys, of_values = jax.random.split(key)
        return {
            "key_kernel": self.matrix(of_keys, inputs, 2 * self.key_size(width)),
            "kernel": self.matrix(of_values, inputs, 2 * width),
        }

    def whole_kernel(self, params: Mapping[str, Any]) -> Float[Array, "E G"]:
        """The kernels side by side."""
        if self.key_units:
            return jnp.concatenate([params["key_kernel"], params["kernel"]], 1)
        return params["kernel"]

    def by_head(self, x: Float[Array, "T B _"]) -> Float[Array, "T B N _"]:
        """Gives the heads an axis of their own."""
        return x.reshape(*x.shape[:2], self.heads, -1)
