"""From a file of another program to a model to use, and to a run."""

import hashlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.files import reader, reason
from jaxlm.interop.importing import read_model
from jaxlm.interop.tensorflow_checkpoint import checkpoint_prefix
from jaxlm.interop.tensors import MOST_PATH, shown
from jaxlm.interop.vocabularies import model_vocabulary
from jaxlm.runs import directory
from jaxlm.runs.adoption import keep_model, unknown_corpus
from jaxlm.scoring.language_model import LanguageModel

CHUNK = 1 << 22  # bytes


def import_model(file: str | Path, vocab: str | Path, run_dir: str | Path | None = None) -> LanguageModel:
    """A language model of another program, ready to use.

    Args:
        file: what `torch.save` wrote, a .safetensors file, or a TensorFlow 1 checkpoint; nothing in it is ever run.
        vocab: a file of one word a line; or the folder of the train.txt, valid.txt and test.txt that the model was
            trained on, whose words are numbered in the order of their first appearance.
        run_dir: a new directory, which becomes an ordinary run of that model, to be evaluated, used and trained
            further; None keeps nothing.
    Returns:
        The model.
    Raises:
        JaxlmError: the file is damaged, is no LSTM language model, asks for something that could run code (which is
            named), or is larger than this machine's memory.
        DataError: the vocabulary cannot be read, or has another size than the model.
        RunDirError: the directory holds something already, or cannot be written.
    """
    found = read_model(file)
    prefix = checkpoint_prefix(file)
    words = model_vocabulary(vocab, found.config.vocab_size, tensorflow=prefix is not None)
    path = Path(file).resolve()
    corpus = unknown_corpus(
        f"imported:{path.name}", _sha256(path, prefix), words, f"imported from {path}, a {found.source}", *found.notes
    )
    config = Config(model=found.config, preset="imported").replace(corpus=corpus.spec)
    if run_dir is not None:
        keep_model(run_dir, config, found.params, corpus)
    return LanguageModel(jax.tree.map(jnp.asarray, found.params), config, words, directory.named(corpus))


def _sha256(path: Path, prefix: Path | None) -> str:
    """The hash of the files that a model was read from, one after the other. Raises JaxlmError."""
    digest, files = hashlib.sha256(), [path]
    if prefix is not None:
        shards = sorted(path for path in prefix.parent.iterdir() if path.name.startswith(f"{prefix.name}.data-"))
        files = [prefix.with_name(f"{prefix.name}.index"), *shards]
    for path in files:
        try:
            with reader(path) as file:
                for chunk in iter(partial(file.read, CHUNK), b""):
                    digest.update(chunk)
        except OSError as error:
            raise JaxlmError(f"{shown(path, MOST_PATH)} cannot be read: {reason(error)}") from None
    return digest.hexdigest()
