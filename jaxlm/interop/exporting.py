"""Models for other programs: one function a format; those but StableHLO's are in files beside this one."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from jaxlm.errors import JaxlmError
from jaxlm.files import explained, new_file
from jaxlm.interop.export_hub import export_hub
from jaxlm.interop.export_onnx import to_onnx
from jaxlm.interop.export_torch import to_safetensors, to_torch
from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.runs.loading import load
from jaxlm.scoring.language_model import LanguageModel

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A file that `jax.export.deserialize` reads, and notes.

    Its `call(tokens, *carry)` takes tokens int32 [1, B], for any B, and the carry's arrays, all zero before the first
    word, and returns the logits [1, B, V] of the next word and the new carry.

    Raises:
        JaxlmError: the package flatbuffers is missing.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError("StableHLO needs the package flatbuffers: pip install 'jaxlm[stablehlo]'") from None
    recurrent, params = stack.exact(model.config.model), model.params
    like = jax.eval_shape(lambda: stack.zero_carry(recurrent, 1))
    structure = jax.tree.structure(like)

    def next_word(tokens: jax.Array, *carry: jax.Array) -> tuple[jax.Array, ...]:
        state = jax.tree.unflatten(structure, carry)
        features, state = stack.features(recurrent, params, no_noise(recurrent), stack.embed(params, tokens), state)
        return heads.logits(recurrent, params, features), *jax.tree.leaves(state)

    rows = export.symbolic_shape("B")[0]
    arguments = [jax.ShapeDtypeStruct((1, rows), jnp.int32)]
    arguments += [jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for leaf in jax.tree.leaves(like)]
    made = export.export(jax.jit(next_word), platforms=PLATFORMS)(*arguments)
    shapes = ", ".join(str(list(argument.shape)) for argument in arguments[1:])
    answer = f"logits [1, B, {len(model.vocab)}] and the new carry"
    note = f"call(tokens int32 [1, B], carry {shapes}) -> {answer}; for {', '.join(PLATFORMS)}"
    return bytes(made.serialize()), [note]


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
    with explained(JaxlmError, f"cannot export to {os.fspath(out)}"):
        if target == "hub":
            export_hub(model, Path(out), None if isinstance(run, LanguageModel) else Path(run))
            notes = []
        else:
            data, notes = EXPORTERS[target](model)
            with new_file(out) as file:
                file.write(data)
    if model.config.optimizer.average_decay is not None:
        notes = [*notes, "the parameters are the average, as evaluation uses them, not the last ones"]
    return notes
