"""Export to a folder as model hubs expect it, which `transformers` loads with `trust_remote_code=True`.

config.json  model.safetensors (jaxlm's parameters, under its own names)  modeling_jaxlm.py (the model in PyTorch)
tokenizer.json  tokenizer_config.json  vocab.json  vocab.txt  README.md (card.md)
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import safetensors.numpy
from flax.serialization import to_state_dict
from jinja2 import Environment, StrictUndefined

from jaxlm.config.config import kind_of
from jaxlm.errors import JaxlmError
from jaxlm.files import Folder, new_folder
from jaxlm.interop.export_torch import array
from jaxlm.interop.hub_tokenizer import as_json, special_tokens, tokenizer_files
from jaxlm.interop.importing import CODE, CONFIG, FORMAT, WEIGHTS
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.report.curve import by_kind
from jaxlm.report.units import perplexity_text
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.state_arrays import named
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import printable

CELLS = ("lstm", "gru", "mingru", "mogrifier")  # that modeling_jaxlm.py has


def export_hub(model: LanguageModel, out: Path, run: Path | None) -> None:
    """Writes the folder, whose model card shows the run's results.

    Each checkpoint that the run kept by words seen is a folder in it: chck_1M, chck_2M, ...

    Raises:
        JaxlmError: modeling_jaxlm.py has no such layer.
        OSError: the folder cannot be written.
    """
    with new_folder(out) as folder:
        _fill(folder, model, read_metrics(run) if run else [])
        for step, manifest in checkpoint.manifests(run).items() if run else ():
            if run and manifest.words:
                with folder.new_folder(_revision(manifest.words)) as inner:
                    _fill(inner, load(run, str(step)), [])


def _fill(folder: Folder, model: LanguageModel, metrics: Sequence[dict[str, Any]]) -> None:
    """Writes the files of one model."""
    config, params = model.config.model, {**model.params, "embedding": {"weight": model.params["embedding"]}}
    described = {
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
        "embedding_size": config.embedding_size,
        "hidden_size": config.hidden_sizes[-1],
        "hidden_sizes": list(config.hidden_sizes),
        "num_hidden_layers": len(config.hidden_sizes),
        "tie_word_embeddings": False,  # (tied or not, there is nothing for transformers to tie)
        **{f"{name}_id": place for name, place in special_tokens(model.vocab).items()},
        "cell": _cell_of(config),
        "shapes": jax.tree.map(lambda leaf: list(leaf.shape), to_state_dict(params)),  # (lists as dicts)
        "jaxlm": json.loads(model.config.to_json()),
    }
    environment = Environment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = _cell
    card = environment.from_string(files("jaxlm.interop").joinpath("card.md").read_text("utf-8")).render(
        kind=kind_of("model", config),
        model=config,
        vocab=model.vocab,
        corpus=model.corpus.get("name", "an unknown corpus"),
        count=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        results=_results(metrics),
    )
    contents = {
        CONFIG: as_json(described),
        CODE: files("jaxlm.interop").joinpath(CODE).read_bytes(),
        WEIGHTS: safetensors.numpy.save({name: array(leaf) for name, leaf in named(params).items()}, {"format": "pt"}),
        **tokenizer_files(model),
        "README.md": card.encode(),
    }
    for name, data in contents.items():
        folder.write(name, data)


def _revision(words: int) -> str:
    """The name of a model that saw so many words, as BabyLM has it: chck_10M."""
    unit, factor = next((unit, factor) for unit, factor in (("M", 10**6), ("k", 10**3), ("", 1)) if not words % factor)
    return f"chck_{words // factor}{unit}"


def _cell_of(model: Recurrent) -> dict[str, Any]:
    """What modeling_jaxlm.py has to know of a kind beside its fields. Raises JaxlmError for one that it lacks."""
    kind = kind_of("model", model).removeprefix("lamb-")
    if kind not in CELLS:
        raise JaxlmError(
            f"the model has layers of the kind {kind}, and a hub's folder takes {', '.join(CELLS)}: export it --to "
            f"stablehlo"
        )
    scale = model.update_scale(None) if isinstance(model, Mogrifier) else None
    return {"kind": kind, "update_scale": 1.0 if scale is None else float(scale)}


def _results(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, perplexity) of the tests and of the last epoch."""
    _, epochs, tests = by_kind(metrics)
    rows = [(f"test, {row.get('checkpoint', 'last')} parameters", row, "test_perplexity") for row in tests]
    rows += [(f"validation, epoch {row.get('epoch', '')}", row, "valid_perplexity") for row in epochs[-1:]]
    known = [(f"{row.get('corpus', '')} {name}", row.get(field)) for name, row, field in rows]
    return [(name, perplexity_text(value) if isinstance(value, float | int) else "unknown") for name, value in known]


def _cell(text: object) -> str:
    """Text of a run within a line of a table."""
    return printable(str(text))[:200].replace("|", "\\|").replace("<", "&lt;").replace("{", "(").replace("}", ")")
