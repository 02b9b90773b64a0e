"""From a run to its model, and from a model to a run: to use it, to keep it, and to train it further."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.config import Config, differences
from jaxlm.config.protocols import Plain
from jaxlm.config.settings import TOKEN_FIELDS
from jaxlm.data.corpora import UNKNOWN, load_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.fields import checked_value
from jaxlm.files import Folder, explained, new_folder
from jaxlm.models.recurrent import Params
from jaxlm.runs import checkpoint, directory
from jaxlm.scoring.evaluation import Evaluation, Tuned
from jaxlm.scoring.language_model import LanguageModel

FIXED = {  # fields of the model that the parameters fix
    *("kind", "vocab_size", "embedding_size", "hidden_sizes", "tied"),
    *("projection", "experts", "latent_size", "forget_bias", "skip", "scale_embedding"),
    *("heads", "lower_bound", "gate_cap", "input_gate"),
}


def load(run_dir: str | Path, which: str = "last") -> LanguageModel:
    """The model of a run's checkpoint.

    Args:
        which: `last`, `best` (on validation), or a step.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    found = checkpoint.load(checked_value("run_dir", run_dir, Path), which)
    return LanguageModel(found.state.evaluated, found.config, found.vocab, found.manifest.corpus)


def model_of(run: str | Path | LanguageModel, which: str | int) -> LanguageModel:
    """A model as it is, or a run's checkpoint `which`. Raises JaxlmError where one is named beside a model."""
    if not isinstance(run, LanguageModel):
        return load(run, str(which))
    if which != "last":
        raise JaxlmError(
            f"{which!r} is a checkpoint of a run's directory, and a model is given: leave it out"
        )
    return run


def evaluate(
    run: str | Path | LanguageModel,
    split: str = "test",
    *,
    text: str | Path | None = None,
    which: str = "last",
    corpus: Corpus | str | Path | None = None,
    data_dir: str | Path | None = None,
    protocol: str | Plain | None = None,
    tokenizer: str | None = None,
) -> Evaluation:
    """Evaluates a run's checkpoint `which`, or a model, by `LanguageModel.evaluate`, with its arguments."""
    return model_of(run, which).evaluate(
        split, text=text, corpus=corpus, data_dir=data_dir, protocol=protocol, tokenizer=tokenizer
    )


def tune_protocol(
    run: str | Path | LanguageModel,
    protocol: str | Plain,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    which: str = "last",
    corpus: Corpus | str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Tuned:
    """Tunes a protocol for a run's checkpoint `which`, or a model, by `LanguageModel.tune`, with its arguments."""
    return model_of(run, which).tune(protocol, grid=grid, corpus=corpus, data_dir=data_dir)


def unread_corpus(name: str, sha256: str, vocab: Vocab, *notes: str, spec: str = UNKNOWN) -> Corpus:
    """The corpus of a model whose text is not read; an imported model's has the hash of its file."""
    none = np.zeros(0, np.int32)
    return Corpus(
        name, "a text that was not read", vocab, none, none, none, sha256, notes=notes, spec=spec
    )


def keep_model(
    run_dir: str | Path | Folder, config: Config, params: Params, corpus: Corpus
) -> None:
    """Makes the directory of a run whose only checkpoint is of step 0; it appears whole or not at all.

    Args:
        run_dir: the directory, which must not exist yet, or be empty; or one that the caller's `new_folder` makes.
        corpus: what the parameters were trained on (`unread_corpus`); its vocabulary is the model's.
    Raises:
        JaxlmError: the parameters do not have the config's shapes, or the directory cannot be written.
    """
    from jaxlm.runs.trainer import new_state

    config = config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec)
    state = new_state(config, params)
    made = nullcontext(run_dir) if isinstance(run_dir, Folder) else new_folder(run_dir)
    with explained(RunDirError, f"cannot make the run {Path(run_dir)}"), made as folder:
        directory.begin(folder, config, corpus, given_params=True)
        folder.write("metrics.jsonl", b"")
        manifest = checkpoint.Manifest(
            step=0, epoch=0, valid_perplexity=None, corpus=directory.named(corpus)
        )
        checkpoint.save(folder, state, config, corpus.vocab, manifest)


def init_config(
    model: LanguageModel, start: Config, changes: Mapping[str, Any], own_model: bool = False
) -> Config:
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
    config = start.replace(model=section, data=model.config.data).replace(
        vocab_size=len(model.vocab)
    )
    config = config.replace(**changes)
    fixed = {*(f"model.{name}" for name in FIXED), *(f"data.{name}" for name in TOKEN_FIELDS)}
    contradicted = [
        line for line in differences(model.config, config) if line.split(":")[0] in fixed
    ]
    if contradicted:
        what = "the parameters to begin from are fixed in these fields of the model"
        raise JaxlmError(
            f"{what}: {'; '.join(contradicted)}; leave them out, or train a new model without --init"
        )
    return config


def init_corpus(
    model: LanguageModel, config: Config, source: str, data_dir: str | Path | None = None
) -> Corpus:
    """The config's text, encoded with a model's vocabulary; `source` says in the run's directory what the model is.

    Raises:
        DataError: the text cannot be used, or has a word that the vocabulary lacks while it has no `<unk>`.
    """
    data = config.data
    corpus = load_corpus(
        data.corpus,
        data_dir=data_dir,
        max_vocab=len(model.vocab),
        vocab=model.vocab,
        **data.options,
    )
    note = f"begins from the parameters and the vocabulary of {source}, trained on {model.corpus.get('name')}"
    return replace(corpus, notes=(*corpus.notes, note))
