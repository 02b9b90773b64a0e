"""From a file of another program to a model to use, and to a run."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm.config.config import Config
from jaxlm.config.models import LSTM
from jaxlm.errors import JaxlmError
from jaxlm.files import reader, reason
from jaxlm.interop import importing
from jaxlm.interop.tensorflow_checkpoint import checkpoint_prefix
from jaxlm.interop.tensors import MOST_PATH, shown
from jaxlm.runs import directory
from jaxlm.runs.adoption import keep_model, unknown_corpus
from jaxlm.scoring.language_model import LanguageModel

CHUNK = 1 << 22


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
    found, words = importing.import_model(file, vocab)
    config = Config(
        model=LSTM(
            vocab_size=found.vocab_size,
            embedding_size=found.embedding_size,
            hidden_sizes=found.hidden_sizes,
            tied=found.tied,
            forget_bias=0.0,
        ),
        preset="imported",
    )
    source = _source(Path(file))
    corpus = unknown_corpus(
        f"imported:{Path(file).resolve().name}",
        _sha256(source),
        words,
        f"imported from {Path(file).resolve()}, a {found.source}",
        *found.notes,
    )
    config = config.replace(corpus=corpus.spec)
    if run_dir is not None:
        keep_model(run_dir, config, found.params, corpus)
    return LanguageModel(jax.tree.map(jnp.asarray, found.params), config, words, directory.named(corpus))


def _source(file: Path) -> list[Path]:
    """The files that a model is read from."""
    prefix = checkpoint_prefix(file)
    if prefix is None:
        return [file]
    beside = sorted(path for path in prefix.parent.iterdir() if path.name.startswith(f"{prefix.name}.data-"))
    return [prefix.with_name(f"{prefix.name}.index"), *beside]


def _sha256(files: list[Path]) -> str:
    """The hash of files, one after the other. Raises JaxlmError where one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with reader(path) as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise JaxlmError(f"{shown(path, MOST_PATH)} cannot be read: {reason(error)}") from None
    return digest.hexdigest()
