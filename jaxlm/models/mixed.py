"""Stacks whose layers are of several kinds in turn, as Griffin's `hawk,hawk,attention`.

(De et al. 2024, arXiv:2402.19427.) The model has the fields of all its kinds. A field that several
kinds have applies to each of them; its default is the first kind's.
"""

from dataclasses import field, fields, make_dataclass
from functools import cache
from itertools import cycle, islice
from typing import ClassVar

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked, setting_text, specs
from jaxlm.base.kinds import register_pytree
from jaxlm.models.recurrent import MODELS, Recurrent


class Mixed(Recurrent):
    """Layers of several kinds in turn.

    Attributes:
        layer_kinds: The kinds, of which the layers take one after the other, then begin anew.
    """

    layer_kinds: ClassVar[tuple[type[Recurrent], ...]]

    @property
    def layers(self) -> list[Recurrent]:
        """Each layer's model: its kind, with the fields that the kind has."""
        layers = []
        for kind in islice(cycle(self.layer_kinds), len(self.hidden_sizes)):
            layers.append(kind(**{name: getattr(self, name) for name in specs(kind)}))
        return layers

    @property
    def drops_output_words(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a word that is dropped as an input is no output of one of the layers' kinds."""
        return any(layer.drops_output_words for layer in self.layers)

    def check(self) -> None:
        """Raises JaxlmError where there are too few layers, or the fields of one do not agree."""
        if len(self.layer_kinds) > len(self.hidden_sizes):
            raise JaxlmError(
                f"model {self.kind_name} names the kinds of {len(self.layer_kinds)} layers: "
                f"hidden_sizes is {setting_text(self.hidden_sizes)}; give it as many widths, "
                "or more"
            )
        for layer in self.layers:
            checked(layer)


@cache
def mixed(name: str) -> type[Mixed]:
    """The kind that joins several of `MODELS`.

    Args:
        name: The names of the kinds, with commas between.

    >>> MODELS["mlstm,slstm"].kind_name
    'mlstm,slstm'
    """
    kinds = tuple(MODELS[kind_name] for kind_name in name.split(","))
    declared = {}
    for kind in kinds:
        for item in fields(kind):
            copy = field(default=item.default, metadata=item.metadata)
            declared.setdefault(item.name, (item.name, item.type, copy))
    namespace = {"layer_kinds": kinds, "kind_name": name, "__doc__": Mixed.__doc__}
    kind = make_dataclass(name, declared.values(), bases=(Mixed,), namespace=namespace, frozen=True)
    register_pytree(kind)
    return kind


MODELS.of_several = mixed
