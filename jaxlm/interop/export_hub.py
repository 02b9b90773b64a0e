"""Export to a folder as model hubs expect it: config.json, vocab.json, model.safetensors and a model card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.config.config import kind_of
from jaxlm.data.vocab import EOS, UNK
from jaxlm.files import new_folder
from jaxlm.interop.export_torch import TIED, safetensors_bytes, state_dict
from jaxlm.report.units import perplexity_text
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import printable

CARD = """\
---
library_name: jaxlm
pipeline_tag: text-generation
tags:
- language-model
- {kind}
- jaxlm
---

# {name} language model of {corpus}

A recurrent language model ({layers}), trained with jaxlm on {corpus}.

| | |
|---|---|
| vocabulary | {words:,} words |
| embedding | {embedding} units{tied} |
| layers | {layers} |
| parameters | {count:,} |

## Results

{results}

## Files

- `model.safetensors`: a PyTorch state_dict under the names of pytorch/examples' word_language_model{apart}
- `vocab.json`: each word's id; `vocab.txt`: a word a line, in the order of their ids
- `config.json`: the sizes, and under `jaxlm` the whole config of the run

## Use

{use}"""
IMPORT = """```sh
jaxlm import model.safetensors --vocab vocab.txt run
jaxlm predict run "some words"
```
"""
OTHERS = """`safetensors.torch.load_file("model.safetensors")` gives PyTorch the tensors.
(jaxlm itself imports LSTMs only.)
"""


def export_hub(model: LanguageModel, out: Path, metrics: Sequence[dict[str, Any]] = ()) -> list[str]:
    """Writes the folder; returns notes.

    Args:
        model: what to export.
        out: the folder to make.
        metrics: the run's, of which the results are shown.
    Raises:
        JaxlmError: PyTorch has no such layer.
        OSError: the folder cannot be written.
    """
    tensors, notes = state_dict(model.config.model, model.params)
    count = sum(tensor.size for tensor in {id(tensor): tensor for tensor in tensors.values()}.values())
    with new_folder(out) as folder:
        folder.write("config.json", _json(_config(model)))
        folder.write("vocab.json", _json(model.vocab.ids))
        folder.write("vocab.txt", "".join(f"{word}\n" for word in model.vocab.words).encode())
        folder.write("model.safetensors", safetensors_bytes(tensors))
        folder.write("README.md", _card(model, count, metrics).encode())
    return [*notes, TIED] if model.config.model.tied else notes


def _config(model: LanguageModel) -> dict[str, Any]:
    config, ids = model.config.model, model.vocab.ids
    return {
        "model_type": f"jaxlm-{kind_of('model', config)}",
        "architectures": ["RNNModel"],
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "embedding_size": config.embedding_size,
        "hidden_sizes": list(config.hidden_sizes),
        "num_hidden_layers": len(config.hidden_sizes),
        "tie_word_embeddings": config.tied,
        "eos_token_id": ids.get(EOS),
        "unk_token_id": ids.get(UNK),
        "jaxlm": json.loads(model.config.to_json()),
    }


def _card(model: LanguageModel, count: int, metrics: Sequence[dict[str, Any]]) -> str:
    config = model.config.model
    kind = kind_of("model", config)
    return CARD.format(
        kind=kind,
        name=kind.upper(),
        layers=f"{kind.upper()} of {', '.join(map(str, config.hidden_sizes))} units",
        corpus=_cell(model.corpus.get("name", "an unknown corpus")),
        words=len(model.vocab),
        embedding=config.embedding_size,
        count=count,
        tied=", also the output matrix" if config.tied else "",
        apart="" if len(set(config.hidden_sizes)) == 1 else ", each layer a module of its own (`rnns.0`, ...)",
        results=_results(metrics),
        use=IMPORT if kind == "lstm" else OTHERS,
    )


def _results(metrics: Sequence[dict[str, Any]]) -> str:
    """A table of the tests and of the last epoch."""
    rows = [
        (row, f"test, {_cell(row.get('checkpoint', 'last'))} parameters", "test_perplexity")
        for row in metrics
        if row["kind"] == "test"
    ]
    epochs = [row for row in metrics if row["kind"] == "epoch"][-1:]
    rows += [(row, f"validation, epoch {_cell(row.get('epoch', ''))}", "valid_perplexity") for row in epochs]
    if not rows:
        return "None were measured: this model was not trained by jaxlm, or its training was not finished."
    lines = [f"| {_cell(row.get('corpus', ''))} {what} | {_value(row.get(field))} |" for row, what, field in rows]
    return "\n".join(["| | perplexity |", "|---|---|", *lines])


def _value(number: Any) -> str:
    return perplexity_text(number) if isinstance(number, float | int) else "unknown"


def _cell(text: object) -> str:
    """Text of a run within a line of a table."""
    return printable(str(text))[:200].replace("|", "\\|").replace("<", "&lt;").replace("{", "(").replace("}", ")")


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
