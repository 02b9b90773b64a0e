"""The table of models: a kind by the name that `--model` and `replace(model=...)` take."""

from functools import cache
from typing import Any

from jaxlm.fields import specs
from jaxlm.late import jax
from jaxlm.models.gated_deltanet import GatedDeltaNet
from jaxlm.models.gru import GRU
from jaxlm.models.hawk import Hawk
from jaxlm.models.hgrn2 import HGRN2
from jaxlm.models.lstm import LSTM
from jaxlm.models.mingru import MinGRU, MinLSTM
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.models.xlstm import MLSTM, SLSTM

MODELS: dict[str, type[Recurrent]] = {
    "lstm": LSTM,
    "gru": GRU,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "mogrifier": Mogrifier,
    "hawk": Hawk,
    "hgrn2": HGRN2,
    "slstm": SLSTM,
    "mlstm": MLSTM,
    "gated-deltanet": GatedDeltaNet,
}


@cache
def register(kind: type) -> None:
    """Makes a kind a pytree, once: its numbers are leaves, its class and all else are static.

    (`jax.tree_util.register_dataclass` will not do: of two classes with the same fields it makes equal trees, and
    `jax.jit` may then take one's program for the other's, wherever their hashes happen to meet.)
    """
    numbers = [name for name, spec in specs(kind).items() if spec.type is float]
    static = [name for name in specs(kind) if name not in numbers]

    def flatten(section: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(section, name) for name in numbers], (
            kind,
            *(getattr(section, name) for name in static),
        )

    def unflatten(rest: tuple[Any, ...], leaves: Any) -> Any:
        return kind(
            **dict(zip(static, rest[1:], strict=True)), **dict(zip(numbers, leaves, strict=True))
        )

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
