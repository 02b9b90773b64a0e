"""Models for other programs: one function a format, each in a file of its own beside this one."""

import os
from collections.abc import Callable
from pathlib import Path

from jaxlm.errors import JaxlmError
from jaxlm.files import reason
from jaxlm.interop.export_hub import export_hub
from jaxlm.interop.export_onnx import export_onnx
from jaxlm.interop.export_stablehlo import export_stablehlo
from jaxlm.interop.export_torch import export_safetensors, export_torch
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics
from jaxlm.scoring.language_model import LanguageModel

EXPORTERS: dict[str, Callable[[LanguageModel, Path], list[str]]] = {
    "safetensors": export_safetensors,
    "torch": export_torch,
    "hub": export_hub,
    "onnx": export_onnx,
    "stablehlo": export_stablehlo,
}
TARGETS = tuple(EXPORTERS)


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
    if target not in EXPORTERS:
        raise JaxlmError(f"expected one of {', '.join(TARGETS)} to export to, found {target!r}")
    model = run if isinstance(run, LanguageModel) else load(run, which)
    try:
        if target == "hub" and not isinstance(run, LanguageModel):
            saved = checkpoint.manifests(run).items()
            kept = ((words, load(run, str(step))) for step, manifest in saved if (words := manifest.words))
            notes = export_hub(model, Path(out), read_metrics(run), kept)
        else:
            notes = EXPORTERS[target](model, Path(out))
    except (OSError, MemoryError) as error:
        problem = "there is not enough memory" if isinstance(error, MemoryError) else reason(error)
        raise JaxlmError(f"cannot export to {os.fspath(out)}: {problem}") from None
    if model.config.optimizer.average_decay is not None:
        notes = [*notes, "the parameters are the average, as evaluation uses them, not the last ones"]
    return notes
