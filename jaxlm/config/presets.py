"""Named recipes, from `presets.json`: the base and the fields that differ from it, and where they come from."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.fields import nearest

PRESETS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())


@cache
def preset(name: str) -> Config:
    """A named recipe, one of PRESETS.

    Raises:
        JaxlmError: the name is unknown.

    >>> preset("zaremba-medium").model.hidden_sizes
    (650, 650)
    """
    if name not in PRESETS:
        raise JaxlmError(f"unknown preset {name!r}{nearest(name, list(PRESETS))}")
    changes = {field: tuple(value) if isinstance(value, list) else value for field, value in PRESETS[name].items()}
    base, _ = changes.pop("base", None), changes.pop("source", None)
    return (preset(base) if base else Config()).replace(**changes, preset=name)
