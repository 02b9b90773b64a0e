"""Export to a PyTorch state_dict: as `torch.save` writes it, and as a .safetensors file."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxlm.files import new_file
from jaxlm.interop.torch_naming import StateDict, state_dict
from jaxlm.interop.torch_writing import write_state_dict
from jaxlm.scoring.language_model import LanguageModel

TIED = "the model is tied: decoder.weight is encoder.weight, kept once and named in the file's metadata"


def export_torch(model: LanguageModel, out: Path) -> list[str]:
    """Writes a file that `torch.load(OUT, weights_only=True)` reads; returns notes. Raises JaxlmError, OSError."""
    tensors, notes = state_dict(model.config.model, model.params)
    with new_file(out) as file:
        write_state_dict(file, tensors)
    return notes


def export_safetensors(model: LanguageModel, out: Path) -> list[str]:
    """Writes the state_dict as a .safetensors file; returns notes. Raises JaxlmError, OSError."""
    tensors, notes = state_dict(model.config.model, model.params)
    with new_file(out) as file:
        file.write(safetensors_bytes(tensors))
    return [*notes, TIED] if model.config.model.tied else notes


def safetensors_bytes(tensors: StateDict) -> bytes:
    """The bytes of a .safetensors file; an array of two names is kept once, as safetensors.torch.save_model does."""
    kept: dict[int, str] = {}
    metadata = {"format": "pt"}
    unique: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if (first := kept.setdefault(id(tensor), name)) == name:
            unique[name] = tensor
        else:
            metadata[name] = first
    return safetensors.numpy.save(unique, metadata)
