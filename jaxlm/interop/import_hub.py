"""Reads the folder that `export_hub` wrote back to the same config and parameters; its code is never run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.files import read_bytes, strict_json
from jaxlm.interop.foreign import ForeignModel, check_finite, shown

FORMAT, CONFIG, WEIGHTS, CODE = 1, "config.json", "model.safetensors", "modeling_jaxlm.py"  # of the folder
MOST_CONFIG = 1 << 24  # bytes


def read_hub(folder: Path) -> ForeignModel:
    """The model of a folder. Raises JaxlmError or OSError where it is damaged, or not what this version writes."""
    from jaxlm.runs import state_arrays  # imports JAX

    try:
        described: Any = strict_json(read_bytes(folder / CONFIG, MOST_CONFIG))
        found, config = described["jaxlm_format"], json.dumps(described["jaxlm"])
    except (ValueError, KeyError, TypeError):
        raise JaxlmError(f"its {CONFIG} is damaged, or was not written by `jaxlm export --to hub`") from None
    if found != FORMAT:
        raise JaxlmError(f"expected a hub's folder of format {FORMAT}, found {shown(found)}: export the run anew")
    config = Config.from_json(config)
    template = state_arrays.shapes_of_state(config).params
    template = {**template, "embedding": {"weight": template["embedding"]}}
    state_arrays.check_room(template, "its model")
    path = folder / WEIGHTS
    params: Any = state_arrays.decoded(read_bytes(path, state_arrays.most_bytes(template)), template, path)
    for name, leaf in state_arrays.named(params).items():
        check_finite(name, np.asarray(leaf))
    params = {**params, "embedding": params["embedding"]["weight"]}
    return ForeignModel(config.model, params, "folder of a model hub", (), config)
