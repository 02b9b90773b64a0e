"""An n-gram model in a directory of its own.

    DIR/  ngram.json  vocab.json  tables.safetensors

`ngram.json` holds its own hash and those of the other files; every byte is verified before it is
used, and nothing in a file is executed.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxlm.base.errors import DataError
from jaxlm.base.files import Folder, explained, new_folder
from jaxlm.base.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.data.vocab import MAX_VOCAB_BYTES, Vocab
from jaxlm.ngrams.backoff import BackoffModel, Table

RECORD = "ngram.json"
FORMAT = 1
_VOCAB = "vocab.json"
_TABLES = "tables.safetensors"
_MOST_BYTES = {_VOCAB: MAX_VOCAB_BYTES, _TABLES: 64 << 30}
_COLUMNS = {"keys": np.int64, "log_probability": np.float64, "log_backoff": np.float64}


@dataclass(frozen=True, eq=False)
class Ngrams:
    """An n-gram model and what it was made of.

    Attributes:
        model: The model.
        vocab: The names of its tokens.
        corpus: Name, hash and argument of the text, as `Corpus` has them.
        options: The fields of `DataConfig` with which the text was read.
    """

    model: BackoffModel
    vocab: Vocab
    corpus: dict[str, str]
    options: dict[str, Any]


def is_ngram_folder(path: str | Path) -> bool:
    """Whether a directory holds an n-gram model."""
    return os.path.isfile(Path(path, RECORD))  # False too for a name that no file can have


def save(path: str | Path, ngrams: Ngrams) -> None:
    """Writes an n-gram model into a new directory, which appears once it is whole.

    Args:
        path: The directory, which must be empty or absent.
        ngrams: The model.

    Raises:
        DataError: The directory cannot be made or written, or is not empty.
    """
    arrays = {
        f"{order}.{name}": np.asarray(column, dtype)
        for order, table in enumerate(ngrams.model.tables, start=1)
        for (name, dtype), column in zip(_COLUMNS.items(), table, strict=True)
    }
    contents = {
        _VOCAB: ngrams.vocab.to_bytes(),
        _TABLES: safetensors.numpy.save(arrays),
    }
    record = {
        "format": FORMAT,
        "order": ngrams.model.order,
        "end": ngrams.model.end,
        "corpus": ngrams.corpus,
        "options": ngrams.options,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[RECORD] = to_hashed_json(record).encode()
    with explained(DataError, f"{path} cannot be written"), new_folder(path) as folder:
        for name, data in contents.items():
            folder.write(name, data)


def load(path: str | Path) -> Ngrams:
    """Reads an n-gram model, every byte of it verified.

    Args:
        path: The directory.

    Raises:
        DataError: A file is missing, damaged, or another model's.
    """
    with explained(DataError, f"{path} is damaged"), Folder.open(path) as folder:
        record = from_hashed_json(folder.read(RECORD, 1 << 20))
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is another than {FORMAT}, which this jaxlm reads")
        contents = {}
        for name, most in _MOST_BYTES.items():
            contents[name] = folder.read(name, most)
            if hashlib.sha256(contents[name]).hexdigest() != record["files"].get(name):
                raise ValueError(f"{name} is not what was written: its sha256 is another")
        vocab = Vocab.from_json(contents[_VOCAB].decode())
        try:
            arrays = safetensors.numpy.load(contents[_TABLES])
        except safetensors.SafetensorError as error:
            raise ValueError(f"{_TABLES} is no file of safetensors: {error}") from None
        tables = tuple(
            Table(*(arrays[f"{order}.{name}"] for name in _COLUMNS))
            for order in range(1, record["order"] + 1)
        )
        model = BackoffModel(len(vocab), record["end"], tables)
        return Ngrams(model, vocab, record["corpus"], record["options"])
