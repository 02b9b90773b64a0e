"""Export to orbax: the parameter tree as it is, of any kind of model."""

import logging
from pathlib import Path

import jax
import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.files import new_folder
from jaxlm.scoring.language_model import LanguageModel


def export_orbax(model: LanguageModel, out: Path) -> list[str]:
    """Writes OUT/params, which `StandardCheckpointer().restore` reads, config.json and vocab.json; returns notes.

    Raises:
        JaxlmError: the package orbax-checkpoint is missing.
        OSError: the folder cannot be written.
    """
    try:
        import orbax.checkpoint as orbax
    except ModuleNotFoundError:
        raise JaxlmError("exporting to orbax needs the package orbax-checkpoint: pip install 'jaxlm[orbax]'") from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # (it notes each file that it writes)
    with new_folder(out) as folder:
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.path / "params", jax.tree.map(np.asarray, model.params))
        folder.write("config.json", model.config.to_json().encode())
        folder.write("vocab.json", model.vocab.to_json().encode())
    return ["the tree is jaxlm's: embedding, the layers' kernels and biases, softmax"]
