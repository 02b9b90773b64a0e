"""Models of other programs, from any kind of file: to use, and as runs. No file is ever run."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.base.errors import DataError, JaxlmError, reason
from jaxlm.base.files import explained, read_bytes, reader
from jaxlm.base.hashed_json import strict_json
from jaxlm.config.config import Config
from jaxlm.data.text import decode, read_errors, read_string
from jaxlm.data.tokens import EOS, WORDS
from jaxlm.data.vocab import MAX_VOCAB_BYTES, Vocab
from jaxlm.interop.foreign import MOST_PATH, ForeignModel, as_float32, quote
from jaxlm.interop.hub_files import CODE, CONFIG, FORMAT, SUMS, VOCAB, WEIGHTS
from jaxlm.interop.pytorch import read_pytorch
from jaxlm.interop.tensorflow import checkpoint_prefix, read_tensorflow
from jaxlm.ngrams import arpa
from jaxlm.runs import ram, state_arrays
from jaxlm.runs.loading import keep_model, load, unread_corpus
from jaxlm.runs.ngram_models import import_arpa
from jaxlm.scoring.language_model import LanguageModel


def import_model(
    file: str | Path,
    vocab: str | Path | None = None,
    run_dir: str | Path | None = None,
) -> LanguageModel:
    """Makes a language model of another program ready to use.

    Nothing in the file is ever executed.

    Args:
        file: A file of `torch.save`, a .safetensors file, a TensorFlow 1 checkpoint, a hub's folder
            of `export_model`, or an ARPA file of n-grams, which has its own words.
        vocab: A file of one word a line; the vocab.json of a hub's folder, with tokens of any kind;
            or the folder of the train.txt, valid.txt and test.txt that the model was trained on,
            whose words are numbered in the order of their first appearance. None: the vocabulary of
            a hub's folder.
        run_dir: A new directory, which becomes an ordinary run of the model; None keeps nothing.

    Returns:
        The model.

    Raises:
        JaxlmError: The file is damaged, is no LSTM language model, asks for something that could
            run code (which is named), or is larger than this machine's memory.
        DataError: The vocabulary cannot be read, or has another size than the model.
        RunDirError: The directory holds something already, or cannot be written.
    """
    if arpa.is_arpa(file):
        return import_arpa(file, run_dir)
    model = read_model(file)
    if vocab is None and model.run is None:
        raise DataError(
            f"{quote(file, MOST_PATH)} has no vocabulary: "
            "give the file of its words, one a line (--vocab)"
        )
    main_file = model.files[0].resolve()
    path = Path(file).resolve() if model.run is None else main_file.parent
    words = model_vocabulary(
        vocab or path / VOCAB, model.config.vocab_size, tensorflow=main_file.suffix == ".index"
    )
    corpus = unread_corpus(
        f"imported:{path.name}",
        _sha256(*model.files),
        words,
        f"imported from {main_file}",
        *model.notes,
    )
    config = model.run
    if config is None:
        config = Config(model=model.config, preset="imported").replace(tokens=words.kind)
    config = config.replace(corpus=corpus.spec)
    if run_dir is not None:
        keep_model(run_dir, config, model.params, corpus)
    params = jax.device_put(model.params)
    return LanguageModel(params, config, words, corpus.identity, open_model=load)


def read_model(file: str | Path) -> ForeignModel:
    """Reads the model of a file, which has no vocabulary yet.

    Args:
        file: As `import_model` takes it.

    Returns:
        The model.

    Raises:
        JaxlmError: As in `import_model`.
    """
    path = Path(file)
    try:
        folder = path
        if path.name == WEIGHTS and path.with_name(CODE).is_file():
            folder = path.parent
        if (folder / CONFIG).is_file():
            return _read_hub(folder)
        prefix = checkpoint_prefix(path)
        if prefix is None:
            return read_pytorch(path)
        return read_tensorflow(prefix)
    except Exception as error:
        name = getattr(error, "filename", None)
        if name or isinstance(error, MemoryError | JaxlmError):
            why = reason(error)
        else:  # a reader met damaged bytes
            why = f"it is damaged or cut short ({quote(error)})"
        if name and Path(name) != path:
            why = f"its {quote(Path(name).name)}: {why}"
        raise JaxlmError(f"cannot import {quote(file, MOST_PATH)}: {why}") from None


def _read_hub(folder: Path) -> ForeignModel:
    """The model of a folder that `export_hub` wrote.

    Raises:
        JaxlmError: The folder is damaged, or another program's.
        OSError: A file cannot be read.
    """
    _check_sums(folder)
    try:
        description: Any = strict_json(read_bytes(folder / CONFIG, 1 << 24))
        file_format = description["jaxlm_format"]
        config_json = json.dumps(description["jaxlm"])
    except (ValueError, KeyError, TypeError):
        raise JaxlmError(
            f"its {CONFIG} is damaged, or was not written by `jaxlm export --to hub`"
        ) from None
    if file_format != FORMAT:
        raise JaxlmError(
            f"expected a hub's folder of format {FORMAT}, found {quote(file_format)}: "
            "export the run anew"
        )
    config = Config.from_json(config_json)
    template = state_arrays.shapes_of_state(config).params
    # transformers has the embedding as a module, whose parameter is `weight`.
    template = {**template, "embedding": {"weight": template["embedding"]}}
    path = folder / WEIGHTS
    ram.check(state_arrays.bytes_of(template), "its model", "it cannot be loaded here")
    with reader(path) as file:
        params: Any = state_arrays.decoded(file, template, path)
    for name, leaf in state_arrays.flat(params).items():
        as_float32(name, np.asarray(leaf), leaf.shape)  # refuses what is not finite
    params = {**params, "embedding": params["embedding"]["weight"]}
    return ForeignModel(config.model, params, (), (path,), config)


def _check_sums(folder: Path) -> None:
    """Checks the files that an import reads against the folder's checksums, where it has some."""
    if not (folder / SUMS).is_file():
        return
    for line in read_bytes(folder / SUMS, 1 << 16).decode(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if name in (CONFIG, WEIGHTS, VOCAB) and digest != _sha256(folder / name):
            raise JaxlmError(
                f"its {name} is not the one of its {SUMS}: "
                f"get the file anew, or delete {SUMS} if the change was meant"
            )


def _sha256(*files: Path) -> str:
    """The digest of files, one after the other. Raises JaxlmError where one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        with (
            explained(JaxlmError, f"{quote(path, MOST_PATH)} cannot be read"),
            reader(path) as file,
        ):
            hashlib.file_digest(file, lambda: digest)  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def model_vocabulary(
    path: str | Path,
    size: int,
    tensorflow: bool = False,
) -> Vocab:
    """Reads the vocabulary of an imported model.

    Args:
        path: A file of words, a hub's vocab.json, or the folder of a corpus.
        size: How many tokens the model has.
        tensorflow: Whether the model is TensorFlow's, whose words a folder does not number.

    Returns:
        The vocabulary.

    Raises:
        DataError: The file cannot be read, or has another number of words.
    """
    place = f"the vocabulary {quote(path, MOST_PATH)}"
    tokens = WORDS
    if os.path.isdir(path):
        if tensorflow:
            raise DataError(
                f"{place} is a folder, whose words would be numbered as PyTorch's programs do, and "
                "the model is TensorFlow's: give a file of its words, one a line"
            )
        words = vocabulary_of_corpus(path)
    elif Path(path).suffix == ".json":
        with explained(DataError, f"{place} cannot be used"):
            vocabulary = Vocab.from_json(_text(Path(path)))
        words = vocabulary.words
        tokens = vocabulary.tokens
    else:
        text = _text(Path(path)).replace("\r\n", "\n")
        words = text.removesuffix("\n").split("\n")
        if len(words) != size and len(text.split()) == size:
            words = text.split()  # as colorlessgreenRNNs reads its files
    if len(words) != size:
        raise DataError(
            f"{place} has {len(words):,} words, and the model has {size:,}: "
            "give the one of its training"
        )
    try:
        return Vocab(tuple(words), tokens)
    except DataError as error:
        raise DataError(f"{place} cannot be used: {error}") from None


def vocabulary_of_corpus(folder: str | Path) -> tuple[str, ...]:
    """The words of train.txt, valid.txt and test.txt in the order of their first appearance.

    Each line ends in `<eos>`. pytorch/examples and awd-lstm-lm number words so, and keep no
    vocabulary.

    Raises:
        DataError: A file is missing or is not text.
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
