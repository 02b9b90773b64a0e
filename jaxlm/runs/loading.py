"""From a run to its model, and from a model to a run: to use, to keep and to train further."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.fields import checked_value
from jaxlm.base.files import Folder, explained, new_folder
from jaxlm.base.packaged import resolved
from jaxlm.config.config import Config, differences
from jaxlm.config.protocols import Plain
from jaxlm.config.settings import TOKEN_FIELDS
from jaxlm.data.corpora import UNKNOWN, open_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.options import TextOptions
from jaxlm.data.vocab import Vocab
from jaxlm.models.recurrent import Params
from jaxlm.ngrams import folder
from jaxlm.runs import checkpoint, directory, state_arrays
from jaxlm.runs.metrics import RunDir
from jaxlm.scoring.evaluation import Evaluation, Tuned
from jaxlm.scoring.language_model import LanguageModel, NgramModel

FIXED = {  # fields of the model that the parameters fix
    "kind",
    "vocab_size",
    "embedding_size",
    "hidden_sizes",
    "tied",
    "projection",
    "experts",
    "latent_size",
    "forget_bias",
    "skip",
    "running_sum",
    "heads",
    "lower_bound",
    "gate_cap",
    "input_gate",
    "scale_embedding",
}


def load(
    run_dir: str | Path,
    which: str = "last",
    data_dir: str | Path | None = None,
) -> LanguageModel:
    """The model of a run's checkpoint, or an n-gram model.

    The state of the optimiser is verified, and takes no memory.

    Args:
        run_dir: The directory of a run, or of an n-gram model; or `english`, the model that comes
            with jaxlm.
        which: `last`, `best` (on validation), or a step, of a run.
        data_dir: Where the model looks for Penn Treebank first.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    run_dir = resolved(checked_value("run_dir", run_dir, Path))
    ngrams = ngram_model(run_dir, data_dir)
    if ngrams is not None:
        return ngrams
    saved = checkpoint.load(run_dir, which, state_arrays.evaluated)
    corpus = saved.manifest.corpus
    return LanguageModel(saved.state, saved.config, saved.vocab, corpus, data_dir, open_model=load)


def ngram_model(path: Path, data_dir: str | Path | None = None) -> NgramModel | None:
    """The n-gram model of a directory; None of any other directory.

    Args:
        path: The directory.
        data_dir: Where the model looks for Penn Treebank first.

    Raises:
        DataError: It is damaged.
    """
    if folder.is_ngram_folder(path):
        return NgramModel.of(folder.load(path), data_dir)
    return None


def model_of(run: str | Path | LanguageModel, which: str | int) -> LanguageModel:
    """A model as it is, or that of a run's checkpoint.

    Args:
        run: A model, or a run's directory.
        which: The checkpoint of a directory, as in `load`.

    Raises:
        JaxlmError: A checkpoint is named beside a model.
    """
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
    protocol: str | Plain | None = None,
    tokenizer: str | None = None,
) -> Evaluation:
    """Evaluates a model on a text (`LanguageModel.evaluate`).

    Args:
        run: A run's directory, or a model.
        split: train, valid or test, of the corpus.
        text: A file of text in place of a split.
        which: The run's checkpoint, as in `load`.
        corpus: In place of the run's own corpus.
        protocol: How the model reads the text; plain by default.
        tokenizer: How the text is cut into words.

    Raises:
        JaxlmError: The checkpoint or the text cannot be used.
    """
    return model_of(run, which).evaluate(
        split, text=text, corpus=corpus, protocol=protocol, tokenizer=tokenizer
    )


def tune_protocol(
    run: str | Path | LanguageModel,
    protocol: str | Plain,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    which: str = "last",
    corpus: Corpus | str | Path | None = None,
) -> Tuned:
    """Tunes a protocol's numbers on the validation split (`LanguageModel.tune`).

    Args:
        run: A run's directory, or a model.
        protocol: The protocol.
        grid: {number: the values to try}.
        which: The run's checkpoint, as in `load`.
        corpus: In place of the run's own corpus.

    Raises:
        JaxlmError: The checkpoint, the text or the grid cannot be used.
    """
    return model_of(run, which).tune(protocol, grid=grid, corpus=corpus)


def unread_corpus(
    name: str,
    sha256: str,
    vocab: Vocab,
    *notes: str,
    spec: str = UNKNOWN,
) -> Corpus:
    """The corpus of a model whose text is not read.

    Args:
        name: The corpus's name.
        sha256: Its hash; of an imported model that of the model's file.
        vocab: The model's vocabulary.
        *notes: Sentences about it.
        spec: What `--corpus` takes to read the text, where that is known.
    """
    none = np.zeros(0, np.int32)
    return Corpus(
        name, "a text that was not read", vocab, none, none, none, sha256, notes=notes, spec=spec
    )


def keep_model(
    run_dir: RunDir,
    config: Config,
    params: Params,
    corpus: Corpus,
) -> None:
    """Makes a run whose only checkpoint is of step 0; its directory appears whole or not at all.

    Args:
        run_dir: The directory, which must not exist yet, or be empty; or one that the caller's
            `new_folder` makes.
        config: The model's config.
        params: Its parameters.
        corpus: What they were trained on (`unread_corpus`); its vocabulary is the model's.

    Raises:
        JaxlmError: The parameters do not have the config's shapes, or the directory cannot be
            written.
    """
    config = config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec)
    state = state_arrays.new_state(config, params)
    made = nullcontext(run_dir) if isinstance(run_dir, Folder) else new_folder(run_dir)
    with explained(RunDirError, f"cannot make the run {Path(run_dir)}"), made as folder:
        directory.begin(folder, config, corpus, directory.Setup(given_params=True))
        folder.write("metrics.jsonl", b"")
        manifest = checkpoint.Manifest(
            step=0, epoch=0, valid_perplexity=None, corpus=corpus.identity
        )
        checkpoint.save(folder, state, config, corpus.vocab, manifest)


def init_config(
    model: LanguageModel,
    start: Config,
    changes: Mapping[str, Any],
    own_model: bool = False,
) -> Config:
    """The config of a run that begins from a model's parameters, by default on the model's text.

    Args:
        model: Whose vocabulary, parameters and, unless `own_model`, model section the run takes
            over.
        start: Of which the optimiser, the schedule and the counts are taken.
        changes: Fields to change (`Config.replace`).
        own_model: Take the model section of `start` too.

    Raises:
        JaxlmError: A field of the model contradicts the parameters, or cannot be set.
    """
    model.check_network("a run that begins from it")
    section = start.model if own_model else model.config.model
    config = start.replace(model=section, data=model.config.data, vocab_size=len(model.vocab))
    config = config.replace(**changes)
    fixed = {*(f"model.{name}" for name in FIXED), *(f"data.{name}" for name in TOKEN_FIELDS)}
    contradicted = [
        line for line in differences(model.config, config) if line.split(":")[0] in fixed
    ]
    if contradicted:
        raise JaxlmError(
            "the parameters to begin from are fixed in these fields of the model: "
            f"{'; '.join(contradicted)}; leave them out, or train a new model without --init"
        )
    return config


def init_corpus(
    model: LanguageModel,
    config: Config,
    source: str,
    data_dir: str | Path | None = None,
) -> Corpus:
    """The config's text, encoded with a model's vocabulary.

    Args:
        model: The model that a run begins from.
        config: The run's config.
        source: What the model is, for the record in the run's directory.
        data_dir: Where to look for Penn Treebank first.

    Raises:
        DataError: The text cannot be used, or has a word that the vocabulary lacks while it has no
            `<unk>`.
    """
    data = config.data
    options = TextOptions(max_vocab=len(model.vocab), **data.options)
    corpus = open_corpus(data.corpus, options, data_dir, model.vocab)
    note = (
        f"begins from the parameters and the vocabulary of {source}, "
        f"trained on {model.corpus.get('name')}"
    )
    return replace(corpus, notes=(*corpus.notes, note))
