"""From a file of another program, and its words, to a model to use, and to a run."""

import hashlib
import io
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm.config.config import Config
from jaxlm.data.tokens import EOS, WORDS
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.files import MAX_VOCAB_BYTES, explained, read_bytes, reader, reason
from jaxlm.interop.foreign import MOST_PATH, shown
from jaxlm.interop.hub_tokenizer import VOCAB
from jaxlm.interop.import_hub import WEIGHTS
from jaxlm.interop.importing import read_model
from jaxlm.interop.tensorflow_checkpoint import checkpoint_prefix
from jaxlm.runs import directory
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring.language_model import LanguageModel

MOST_TEXT = 1 << 32  # bytes of one file of a corpus
SPLITS = ("train.txt", "valid.txt", "test.txt")


def import_model(file: str | Path, vocab: str | Path | None = None, run_dir: str | Path | None = None) -> LanguageModel:
    """A language model of another program, ready to use.

    Args:
        file: of `torch.save`, a .safetensors file, a TensorFlow 1 checkpoint, or a hub's folder of `export_model`.
            Nothing in the file is ever executed.
        vocab: a file of one word a line; or the folder of the train.txt, valid.txt and test.txt that the model was
            trained on, whose words are numbered in the order of their first appearance. None: the vocabulary of a
            hub's folder.
        run_dir: a new directory, which becomes an ordinary run of the model; None keeps nothing.
    Returns:
        The model.
    Raises:
        JaxlmError: the file is damaged, is no LSTM language model, asks for something that could run code (which is
            named), or is larger than this machine's memory.
        DataError: the vocabulary cannot be read, or has another size than the model.
        RunDirError: the directory holds something already, or cannot be written.
    """
    found = read_model(file)
    prefix = None if found.run else checkpoint_prefix(file)
    if vocab is None and found.run is None:
        raise DataError(f"{shown(file, MOST_PATH)} has no vocabulary: give the file of its words, one a line (--vocab)")
    path = Path(file).resolve()
    path = path.parent if found.run and path.is_file() else path  # the model.safetensors of a hub's folder
    words = model_vocabulary(vocab or path / VOCAB, found.config.vocab_size, tensorflow=prefix is not None)
    corpus = unread_corpus(
        f"imported:{path.name}",
        _sha256(path / WEIGHTS if found.run else path, prefix),
        words,
        f"imported from {path}, a {found.source}",
        *found.notes,
    )
    config = (found.run or Config(model=found.config, preset="imported")).replace(corpus=corpus.spec)
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
                hashlib.file_digest(file, lambda: digest)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            raise JaxlmError(f"{shown(path, MOST_PATH)} cannot be read: {reason(error)}") from None
    return digest.hexdigest()


def model_vocabulary(path: str | Path, size: int, tensorflow: bool = False) -> Vocab:
    """The `size` tokens of an imported model, of a file (.json: as a hub's folder has it) or a corpus's folder.

    Raises DataError.
    """
    found, tokens = shown(path, MOST_PATH), WORDS
    if os.path.isdir(path):  # (which raises nothing)
        if tensorflow:
            why = "whose words would be numbered as PyTorch's programs do, and the model is TensorFlow's"
            raise DataError(f"the vocabulary {found} is a folder, {why}: give a file of its words, one a line")
        words, what, give = vocabulary_of_corpus(path), "corpus", "corpus that the model was trained on"
    else:
        text = _text(Path(path), MAX_VOCAB_BYTES).replace("\r\n", "\n")
        words, what, give = text.removesuffix("\n").split("\n"), "vocabulary", "file that the model was trained with"
        if Path(path).suffix == ".json":
            with explained(DataError, f"the vocabulary {found} cannot be used"):
                words, tokens = (read := Vocab.from_json(text)).words, read.tokens
        elif len(words) != size == len(text.split()):
            words = text.split()  # colorlessgreenRNNs reads its files so
    if len(words) != size:
        raise DataError(f"the {what} {found} has {len(words):,} words, and the model has {size:,}; give the {give}")
    try:
        return Vocab(tuple(words), tokens)
    except DataError as error:
        raise DataError(f"the {what} {found} cannot be used: {error}") from None


def vocabulary_of_corpus(folder: str | Path) -> tuple[str, ...]:
    """The words of train.txt, valid.txt and test.txt in the order of their first appearance; each line ends in `<eos>`.

    pytorch/examples and awd-lstm-lm number words so, and keep no vocabulary. Raises DataError.
    """
    words: dict[str, None] = {}
    for split in SPLITS:
        for line in io.StringIO(_text(Path(folder) / split, MOST_TEXT), newline=None):
            words.update(dict.fromkeys(line.split()))
            words.setdefault(EOS)
    return tuple(words)


def _text(path: Path, most: int) -> str:
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise DataError(
            f"{shown(path, MOST_PATH)} is not UTF-8 text: line {line:,} has the byte 0x{byte:02x}"
        ) from None
    except OSError as error:
        raise DataError(f"{shown(path, MOST_PATH)} cannot be read: {reason(error)}") from None
