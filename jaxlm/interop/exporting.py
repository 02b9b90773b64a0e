"""Models for other programs: one function a format, each in a file of its own beside this one."""

import os
from collections.abc import Callable
from pathlib import Path

from jaxlm.errors import JaxlmError
from jaxlm.files import new_file, reason
from jaxlm.interop.export_hub import export_hub
from jaxlm.interop.export_onnx import to_onnx
from jaxlm.interop.export_stablehlo import to_stablehlo
from jaxlm.interop.export_torch import to_safetensors, to_torch
from jaxlm.runs.loading import load
from jaxlm.scoring.language_model import LanguageModel

EXPORTERS: dict[str, Callable[[LanguageModel], tuple[bytes, list[str]]]] = {  # to a file's bytes, and notes
    "safetensors": to_safetensors,
    "torch": to_torch,
    "onnx": to_onnx,
    "stablehlo": to_stablehlo,
}
TARGETS = (*EXPORTERS, "hub")


def export_model(run: str | Path | LanguageModel, target: str, out: str | Path, which: str = "last") -> list[str]:
    """Writes a model for another program, whole or not at all.

    The parameters are those of evaluation: the average, if the run keeps one.

    Args:
        run: a run's directory, or a model.
        target: safetensors or torch (a PyTorch state_dict), hub (a folder with a model card, and a folder within it for
            each checkpoint of keep_checkpoints), onnx or stablehlo (by jax.export).
        out: the file or folder to make, which must not exist.
        which: `last`, `best` or a step, of a run's directory.
    Returns:
        Notes for the user: parameters that were added up, averaged or renamed.
    Raises:
        JaxlmError: the target is unknown or cannot express the model (with the reason), a package for it is missing,
            or OUT exists or cannot be written.
    """
    if target not in TARGETS:
        raise JaxlmError(f"expected one of {', '.join(TARGETS)} to export to, found {target!r}")
    model = run if isinstance(run, LanguageModel) else load(run, which)
    try:
        if target == "hub":
            export_hub(model, Path(out), None if isinstance(run, LanguageModel) else Path(run))
            notes = []
        else:
            data, notes = EXPORTERS[target](model)
            with new_file(out) as file:
                file.write(data)
    except (OSError, MemoryError) as error:
        problem = "there is not enough memory" if isinstance(error, MemoryError) else reason(error)
        raise JaxlmError(f"cannot export to {os.fspath(out)}: {problem}") from None
    if model.config.optimizer.average_decay is not None:
        notes = [*notes, "the parameters are the average, as evaluation uses them, not the last ones"]
    return notes
