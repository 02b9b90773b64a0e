"""Stacks whose layers are of several kinds in turn, as Griffin's `hawk,hawk,attention`.

(De et al. 2024, arXiv:2402.19427.) The model has the fields of all its kinds. A field that several
kinds have holds for each of them; its default is the first one's.
"""

from dataclasses import field, fields, make_dataclass
from functools import cache
from itertools import cycle
from typing import ClassVar

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked, setting_text, specs
from jaxlm.base.kinds import register_pytree
from jaxlm.models.recurrent import MODELS, Recurrent


class Mixed(Recurrent):
    """Layers of several kinds in turn."""

    parts: ClassVar[tuple[type[Recurrent], ...]]

    @property
    def layers(self) -> list[Recurrent]:
        """Each layer's model: its kind, with the fields that the kind has."""
        kinds = zip(cycle(self.parts), self.hidden_sizes, strict=False)
        return [part(**{name: getattr(self, name) for name in specs(part)}) for part, _ in kinds]

    @property
    def drops_output_words(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the kind of one of the layers does."""
        return any(layer.drops_output_words for layer in self.layers)

    def check(self) -> None:
        """Raises JaxlmError where there are too few layers, or the fields of one do not agree."""
        if len(self.parts) > len(self.hidden_sizes):
            raise JaxlmError(
                f"model {self.kind_name} names the kinds of {len(self.parts)} layers: hidden_sizes "
                f"is {setting_text(self.hidden_sizes)}; give it as many widths, or more"
            )
        for layer in self.layers:
            checked(layer)


@cache
def mixed(name: str) -> type[Mixed]:
    """The kind of several names in `MODELS` with commas between.

    >>> MODELS["mlstm,slstm"].kind_name
    'mlstm,slstm'
    """
    parts = tuple(MODELS[part] for part in name.split(","))
    declared = {}
    for part in parts:
        for item in fields(part):
            copy = field(default=item.default, metadata=item.metadata)
            declared.setdefault(item.name, (item.name, item.type, copy))
    own = {"parts": parts, "kind_name": name, "__doc__": Mixed.__doc__}
    kind = make_dataclass(name, declared.values(), bases=(Mixed,), namespace=own, frozen=True)
    register_pytree(kind)
    return kind


MODELS.of_several = mixed
