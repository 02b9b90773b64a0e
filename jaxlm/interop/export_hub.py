"""Export to a folder as model hubs expect it: config.json, vocab.json, model.safetensors and a model card (card.md)."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.config import kind_of
from jaxlm.data.vocab import EOS, UNK
from jaxlm.files import new_folder
from jaxlm.interop.export_torch import safetensors_bytes
from jaxlm.report.curve import by_kind
from jaxlm.report.units import perplexity_text
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import printable


def export_hub(model: LanguageModel, out: Path, metrics: Sequence[dict[str, Any]] = ()) -> list[str]:
    """Writes the folder, whose model card shows the results among the run's metrics; returns notes.

    Raises:
        JaxlmError: PyTorch has no such layer.
        OSError: the folder cannot be written.
    """
    config, ids = model.config.model, model.vocab.ids
    kind = kind_of("model", config)
    data, notes = safetensors_bytes(model)
    described = {
        "model_type": f"jaxlm-{kind}",
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
    card = _card(
        kind=kind,
        sizes=config.hidden_sizes,
        corpus=model.corpus.get("name", "an unknown corpus"),
        words=len(model.vocab),
        embedding=config.embedding_size,
        count=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        tied=config.tied,
        results=_results(metrics),
    )
    with new_folder(out) as folder:
        folder.write("config.json", _json(described))
        folder.write("vocab.json", _json(ids))
        folder.write("vocab.txt", "".join(f"{word}\n" for word in model.vocab.words).encode())
        folder.write("model.safetensors", data)
        folder.write("README.md", card.encode())
    return notes


def _card(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = _cell
    return environment.from_string(files("jaxlm.interop").joinpath("card.md").read_text("utf-8")).render(values)


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


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
