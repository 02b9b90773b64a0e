"""Export to a folder as model hubs expect it, for `transformers` with `trust_remote_code=True`.

Its files: config.json, model.safetensors (jaxlm's parameters, under its own names),
modeling_jaxlm.py (the model in PyTorch), tokenizer.json (of the library `tokenizers`),
tokenizer_config.json, vocab.json, vocab.txt, README.md (from card.md) and SHA256SUMS.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.serialization import to_state_dict
from jinja2 import StrictUndefined, Template

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder, new_folder
from jaxlm.base.terminal import printable
from jaxlm.base.units import perplexity_text
from jaxlm.data.vocab import Vocab
from jaxlm.interop.hub_files import (
    CODE,
    CONFIG,
    FORMAT,
    SUMS,
    WEIGHTS,
    as_json,
    is_json,
    special_tokens,
    tokenizer_files,
)
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.models.stack import zero_carry
from jaxlm.report.curve import by_kind
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.state_arrays import flat
from jaxlm.scoring.language_model import LanguageModel

CELLS = ("lstm", "gru", "mingru", "mogrifier", "hawk", "attention")  # of modeling_jaxlm.py
NEWLINES = ("\n", "\u010a", "<0x0A>")  # its names in a tokenizer.json


def export_hub(
    model: LanguageModel,
    out: Path,
    run: Path | None,
    which: str,
) -> None:
    """Writes a folder, and within it one for each checkpoint that the run kept by words.

    Args:
        model: The model.
        out: The folder, which must not exist.
        run: The directory of the run that the model is of.
        which: The step of the run.

    Raises:
        JaxlmError: modeling_jaxlm.py has no such layer, or other programs no such tokenizer.
        OSError: The folder cannot be written.
    """
    _cells_of(model.config.model)  # raises before a folder is made
    _check_newline(model.vocab)
    with new_folder(out) as folder:
        if run is None:
            _fill(folder, model, [])
            return
        step = int(which)
        _fill(folder, model, [row for row in read_metrics(run) if row.get("step") == step])
        for step, manifest in checkpoint.manifests(run).items():
            if manifest.words:
                with folder.new_folder(_revision(manifest.words)) as inner:
                    _fill(inner, load(run, str(step)), [])


def _check_newline(vocab: Vocab) -> None:
    """Raises JaxlmError where other programs would not read a newline as the model does."""
    end = vocab.words[vocab.eos]
    if is_json(vocab) and end not in NEWLINES:
        raise JaxlmError(
            f"other programs would not read a newline as {end!r}, as the model does: "
            "export it --to stablehlo"
        )
    if vocab.kind != "words" and vocab.newline_id < 0:
        raise JaxlmError(
            "other programs begin a text with a newline, and the model's training text had none: "
            "export it --to stablehlo, or train on a text of more than one line"
        )


def _fill(
    folder: Folder,
    model: LanguageModel,
    metrics: Sequence[dict[str, Any]],
) -> None:
    """Writes the files of one model."""
    config = model.config.model
    params = {**model.params, "embedding": {"weight": model.params["embedding"]}}
    description = {
        "model_type": "jaxlm",
        "jaxlm_format": FORMAT,
        "architectures": ["JaxlmForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_jaxlm.JaxlmConfig",
            "AutoModel": "modeling_jaxlm.JaxlmModel",
            "AutoModelForCausalLM": "modeling_jaxlm.JaxlmForCausalLM",
            "AutoModelForSequenceClassification": "modeling_jaxlm.JaxlmForSequenceClassification",
        },
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_sizes[-1],
        "num_hidden_layers": len(config.hidden_sizes),
        "tie_word_embeddings": False,  # also where jaxlm ties them: the file has one matrix
        **{f"{name}_id": place for name, place in special_tokens(model.vocab).items()},
        "cells": _cells_of(config),
        "shapes": jax.tree.map(lambda leaf: list(leaf.shape), to_state_dict(params)),
        "jaxlm": json.loads(model.config.to_json()),
    }
    contents = {
        CONFIG: as_json(description),
        CODE: files("jaxlm.interop").joinpath(CODE).read_bytes(),
        WEIGHTS: as_safetensors(flat(params)),
        **tokenizer_files(model),
        "README.md": _card(model, metrics),
    }
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
    contents[SUMS] = "".join(sums).encode()
    for name, data in contents.items():
        folder.write(name, data)


def as_safetensors(arrays: Mapping[str, Any]) -> bytes:
    """A .safetensors file of arrays by name, in float32."""
    tensors = {name: as_array(values) for name, values in arrays.items()}
    return safetensors.numpy.save(tensors, {"format": "pt"})


def as_array(values: object) -> np.ndarray:
    """Values as float32 in C order."""
    return np.asarray(values, np.float32, order="C")


def _card(model: LanguageModel, metrics: Sequence[dict[str, Any]]) -> bytes:
    """The folder's README.md."""
    template = Template(
        files("jaxlm.interop").joinpath("card.md").read_text("utf-8"),
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    card = template.render(
        kind=model.config.model.kind_name,
        model=model.config.model,
        vocab=model.vocab,
        corpus=_cell(model.corpus.get("name", "an unknown corpus")),
        count=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        results=_results(metrics),
    )
    return card.encode()


def _revision(words: int) -> str:
    """The name that BabyLM gives a model after this many words: chck_10M."""
    for unit, factor in (("M", 10**6), ("k", 10**3)):
        if words % factor == 0:
            return f"chck_{words // factor}{unit}"
    return f"chck_{words}"


def _cells_of(model: Recurrent) -> list[dict[str, Any]]:
    """What modeling_jaxlm.py has to know of each layer beside the model's fields.

    `state` has the shapes, without the batch, of its output and the arrays of its carry.

    Raises:
        JaxlmError: It has no such kind.
    """
    cells = []
    carry = jax.eval_shape(lambda: zero_carry(model, 1))
    for layer, width, state in zip(model.layers, model.hidden_sizes, carry, strict=True):
        kind = layer.kind_name.removeprefix("lamb-")
        if kind not in CELLS:
            raise JaxlmError(
                f"the model has layers of the kind {kind}, not {', '.join(CELLS)}: "
                "export it --to stablehlo"
            )
        scale = layer.update_scale(None) if isinstance(layer, Mogrifier) else None
        cells.append(
            {
                "kind": kind,
                "update_scale": 1.0 if scale is None else float(scale),
                "state": [(width,), *(leaf.shape[1:] for leaf in jax.tree.leaves(state))],
            }
        )
    return cells


def _results(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, perplexity) of the last test and the last validation among some lines of metrics."""
    _, epochs, tests = by_kind(metrics)
    results = []
    if tests:
        results.append(_result(tests[-1], "test", "test_perplexity"))
    if epochs:
        name = f"validation, epoch {epochs[-1].get('epoch', '')}"
        results.append(_result(epochs[-1], name, "valid_perplexity"))
    return results


def _result(row: dict[str, Any], name: str, column: str) -> tuple[str, str]:
    value = row.get(column)
    perplexity = perplexity_text(value) if isinstance(value, float | int) else "unknown"
    return _cell(f"{row.get('corpus', '')} {name}"), perplexity


def _cell(text: object) -> str:
    """A run's own words, for a cell of a table in Markdown."""
    escaped = re.sub(r"([\\`*\[\]!|])", r"\\\1", printable(str(text))[:200])
    return escaped.replace("<", "&lt;").replace("{", "(").replace("}", ")")
