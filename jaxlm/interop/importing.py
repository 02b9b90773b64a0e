"""Models of other programs, from whatever kind of file: to use, and as runs. Nothing from a file is ever run."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.data.text import decode, read_errors, read_string
from jaxlm.data.tokens import EOS, WORDS
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.files import MAX_VOCAB_BYTES, explained, read_bytes, reader, reason
from jaxlm.hashed_json import strict_json
from jaxlm.interop.foreign import MOST_PATH, ForeignModel, as_float32, quote
from jaxlm.interop.pytorch import read_pytorch
from jaxlm.interop.tensorflow import checkpoint_prefix, read_tensorflow
from jaxlm.ngrams import arpa
from jaxlm.runs import directory, ram, state_arrays
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.runs.ngram_models import import_arpa
from jaxlm.scoring.language_model import LanguageModel

FORMAT = 1  # of a hub's folder, which has the files:
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CODE = "modeling_jaxlm.py"
VOCAB = "vocab.json"


def import_model(
    file: str | Path, vocab: str | Path | None = None, run_dir: str | Path | None = None
) -> LanguageModel:
    """A language model of another program, ready to use.

    Args:
        file: of `torch.save`, a .safetensors file, a TensorFlow 1 checkpoint, or a hub's folder of `export_model`.
            Nothing in the file is ever executed.
        vocab: a file of one word a line; the vocab.json of a hub's folder, with tokens of any kind; or the folder of
            the train.txt, valid.txt and test.txt that the model was trained on, whose words are numbered in the order
            of their first appearance. None: the vocabulary of a hub's folder.
        run_dir: a new directory, which becomes an ordinary run of the model; None keeps nothing.
    Raises:
        JaxlmError: the file is damaged, is no LSTM language model, asks for something that could run code (which is
            named), or is larger than this machine's memory.
        DataError: the vocabulary cannot be read, or has another size than the model.
        RunDirError: the directory holds something already, or cannot be written.
    """
    if arpa.is_arpa(file):
        return import_arpa(file, run_dir)
    found = read_model(file)
    if vocab is None and found.run is None:
        raise DataError(
            f"{quote(file, MOST_PATH)} has no vocabulary: give the file of its words, one a line (--vocab)"
        )
    path = (found.files[0].parent if found.run else Path(file)).resolve()
    words = model_vocabulary(
        vocab or path / VOCAB, found.config.vocab_size, found.files[0].suffix == ".index"
    )
    about = f"imported from {found.files[0].resolve()}"
    digest = hashlib.sha256()  # of the files, one after the other
    for one in found.files:
        with (
            explained(JaxlmError, f"{quote(one, MOST_PATH)} cannot be read"),
            reader(one) as opened,
        ):
            hashlib.file_digest(opened, lambda: digest)  # pyright: ignore[reportArgumentType]
    corpus = unread_corpus(f"imported:{path.name}", digest.hexdigest(), words, about, *found.notes)
    config = found.run or Config(model=found.config, preset="imported").replace(tokens=words.kind)
    config = config.replace(corpus=corpus.spec)
    if run_dir is not None:
        keep_model(run_dir, config, found.params, corpus)
    return LanguageModel(
        jax.tree.map(jnp.asarray, found.params), config, words, directory.named(corpus)
    )


def read_model(file: str | Path) -> ForeignModel:
    """The model of a file, before it has a vocabulary; `file` and JaxlmError are as in `import_model`."""
    path = Path(file)
    try:
        folder = path.parent if path.name == WEIGHTS and (path.parent / CODE).is_file() else path
        if (folder / CONFIG).is_file():
            return _read_hub(folder)
        prefix = checkpoint_prefix(path)
        if prefix is None:
            return read_pytorch(path)
        return read_tensorflow(prefix)
    except Exception as error:
        name = getattr(error, "filename", None)
        known = name or isinstance(
            error, MemoryError | JaxlmError
        )  # else a reader met damaged bytes
        why = reason(error) if known else f"it is damaged or cut short ({quote(error)})"
        where = f"its {quote(Path(name).name)}: " if name and Path(name) != path else ""
        raise JaxlmError(f"cannot import {quote(file, MOST_PATH)}: {where}{why}") from None


def _read_hub(folder: Path) -> ForeignModel:
    """The model of a folder that `export_hub` wrote. Raises JaxlmError or OSError where it is damaged, or another's."""
    try:
        described: Any = strict_json(read_bytes(folder / CONFIG, 1 << 24))
        found = described["jaxlm_format"]
        config = json.dumps(described["jaxlm"])
    except (ValueError, KeyError, TypeError):
        raise JaxlmError(
            f"its {CONFIG} is damaged, or was not written by `jaxlm export --to hub`"
        ) from None
    if found != FORMAT:
        raise JaxlmError(
            f"expected a hub's folder of format {FORMAT}, found {quote(found)}: export the run anew"
        )
    config = Config.from_json(config)
    template = state_arrays.shapes_of_state(config).params
    template = {**template, "embedding": {"weight": template["embedding"]}}
    path = folder / WEIGHTS
    ram.check(state_arrays.bytes_of(template), "its model", "it cannot be loaded here")
    with reader(path) as file:
        params: Any = state_arrays.decoded(file.read, template, path)
    for name, leaf in state_arrays.flat(params).items():
        as_float32(name, np.asarray(leaf), leaf.shape)  # refuses what is not finite
    params = {**params, "embedding": params["embedding"]["weight"]}
    return ForeignModel(config.model, params, (), (path,), config)


def model_vocabulary(path: str | Path, size: int, tensorflow: bool = False) -> Vocab:
    """The `size` tokens of an imported model, of a file (.json: as a hub's folder has it) or a corpus's folder.

    Raises DataError.
    """
    found = f"the vocabulary {quote(path, MOST_PATH)}"
    tokens = WORDS
    if os.path.isdir(path):  # (which raises nothing)
        if tensorflow:
            why = "whose words would be numbered as PyTorch's programs do, and the model is TensorFlow's"
            raise DataError(f"{found} is a folder, {why}: give a file of its words, one a line")
        words = vocabulary_of_corpus(path)
    elif Path(path).suffix == ".json":
        with explained(DataError, f"{found} cannot be used"):
            words = (read := Vocab.from_json(_text(Path(path)))).words
            tokens = read.tokens
    else:
        text = _text(Path(path)).replace("\r\n", "\n")
        words = text.removesuffix("\n").split("\n")
        if len(words) != size == len(text.split()):
            words = text.split()  # colorlessgreenRNNs reads its files so
    if len(words) != size:
        raise DataError(
            f"{found} has {len(words):,} words, and the model has {size:,}: give the one of its training"
        )
    try:
        return Vocab(tuple(words), tokens)
    except DataError as error:
        raise DataError(f"{found} cannot be used: {error}") from None


def vocabulary_of_corpus(folder: str | Path) -> tuple[str, ...]:
    """The words of train.txt, valid.txt and test.txt in the order of their first appearance; each line ends in `<eos>`.

    pytorch/examples and awd-lstm-lm number words so, and keep no vocabulary. Raises DataError.
    """
    words: dict[str, None] = {}
    for split in ("train.txt", "valid.txt", "test.txt"):
        for line in io.StringIO(read_string(Path(folder) / split), newline=None):
            words.update(dict.fromkeys(line.split()))
            words.setdefault(EOS)
    return tuple(words)


def _text(path: Path) -> str:
    with read_errors(path):
        return decode(read_bytes(path, MAX_VOCAB_BYTES), path)
