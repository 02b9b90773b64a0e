"""A run's directory for a model that was not trained here: its only checkpoint is of step 0, with given parameters."""

from pathlib import Path

import numpy as np

from jaxlm.config.config import Config
from jaxlm.data.corpora import UNKNOWN
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab
from jaxlm.errors import RunDirError
from jaxlm.files import explained, new_folder
from jaxlm.models.recurrent import Params
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.trainer import new_state
from jaxlm.scoring.language_model import LanguageModel

_NONE = np.zeros(0, np.int32)


def unknown_corpus(name: str, sha256: str, vocab: Vocab, *notes: str) -> Corpus:
    """The corpus of an imported model, whose text is unknown: where its file came from, that file's hash, its words."""
    about = "an unknown text: the model was imported"
    return Corpus(name, about, vocab, _NONE, _NONE, _NONE, sha256, notes=notes, spec=UNKNOWN)


def known_corpus(model: LanguageModel, *notes: str) -> Corpus:
    """The corpus that a run's model was trained on, named by its hash; the text is not read, and `notes` are added."""
    name, sha256, spec = model.corpus["name"], model.corpus["sha256"], model.config.data.corpus
    about = f"the text of {name}, which was not read"
    return Corpus(name, about, model.vocab, _NONE, _NONE, _NONE, sha256, notes=notes, spec=spec)


def keep_model(run_dir: str | Path, config: Config, params: Params, corpus: Corpus) -> Path:
    """Makes the directory of a run that has trained no window; it appears whole or not at all.

    Args:
        run_dir: the directory, which must not exist yet, or be empty.
        config: whose model has the parameters' shapes.
        params: the model's.
        corpus: what they were trained on, as far as it is known (`unknown_corpus`); its vocabulary is the model's.
    Returns:
        The directory.
    Raises:
        JaxlmError: the parameters do not have the config's shapes.
        RunDirError: the directory holds something already, or cannot be written.
    """
    config = config.replace(vocab_size=len(corpus.vocab), corpus=corpus.spec)
    state = new_state(config, params)
    with explained(RunDirError, f"cannot make the run {run_dir}"), new_folder(run_dir) as folder:
        directory.begin(folder, config, corpus, given_params=True)
        folder.write("metrics.jsonl", b"")
        manifest = checkpoint.Manifest(step=0, epoch=0, valid_perplexity=None, corpus=directory.named(corpus))
        checkpoint.save(folder, state, config, corpus.vocab, manifest)
    return Path(run_dir)
