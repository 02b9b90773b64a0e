"""Fine-tuning: a run that begins from another run's parameters, in its vocabulary."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.config.config import Config, differences
from jaxlm.config.settings import TOKEN_FIELDS
from jaxlm.data.corpora import load_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.errors import JaxlmError
from jaxlm.scoring.language_model import LanguageModel

FIXED = {  # fields of the model that the parameters fix
    *("kind", "vocab_size", "embedding_size", "hidden_sizes", "tied"),
    *("projection", "experts", "latent_size", "forget_bias"),
}


def tuning_config(model: LanguageModel, start: Config, changes: Mapping[str, Any], own_model: bool = False) -> Config:
    """The config of a run that begins from a model's parameters, on its text unless `changes` names another.

    Args:
        model: whose vocabulary, parameters and, unless `own_model`, model section the run takes over.
        start: of which the optimiser, the schedule and the counts are taken.
        changes: fields to change (`Config.replace`).
        own_model: take the model section of `start` too.
    Raises:
        JaxlmError: a field of the model contradicts the parameters, or cannot be set.
    """
    section = start.model if own_model else model.config.model
    config = start.replace(model=section, data=model.config.data).replace(vocab_size=len(model.vocab))
    config = config.replace(**changes)
    fixed = {*(f"model.{name}" for name in FIXED), *(f"data.{name}" for name in TOKEN_FIELDS)}
    if contradicted := [line for line in differences(model.config, config) if line.split(":")[0] in fixed]:
        raise JaxlmError(
            f"the parameters to begin from are fixed in these fields of the model: "
            f"{'; '.join(contradicted)}; leave them out, or train a new model without --init"
        )
    return config


def tuning_corpus(model: LanguageModel, config: Config, source: str, data_dir: str | Path | None = None) -> Corpus:
    """The config's text, encoded with a model's vocabulary; `source` says in the run's directory what the model is.

    Raises:
        DataError: the text cannot be used, or has a word that the vocabulary lacks while it has no `<unk>`.
    """
    data = config.data
    corpus = load_corpus(data.corpus, data_dir=data_dir, max_vocab=len(model.vocab), vocab=model.vocab, **data.options)
    note = f"begins from the parameters and the vocabulary of {source}, trained on {model.corpus.get('name')}"
    return replace(corpus, notes=(*corpus.notes, note))
