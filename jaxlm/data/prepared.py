"""Prepared folders: what every corpus is read from, whatever its size.

    prepared.json (seals the rest)  vocab.json  train.ids  valid.ids  test.ids

The ids are plain little-endian integers, of two bytes while they fit. A folder from a stranger is
only data: nothing in it is opened through a link, only the files above are opened, every byte of
them is verified before it is used, and every id is one of the vocabulary's.
"""

import hashlib
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.files import Folder, explained
from jaxlm.base.hashed_json import from_hashed_json
from jaxlm.config.settings import DataConfig
from jaxlm.data.corpus import Corpus
from jaxlm.data.encoding import Encoder
from jaxlm.data.options import TextOptions
from jaxlm.data.text import SPLITS, Stamp, read_errors
from jaxlm.data.vocab import MAX_VOCAB_BYTES, Vocab, check_ids

FORMAT = 1
HEADER = "prepared.json"
VOCAB = "vocab.json"
IDS = {split: f"{split}.ids" for split in SPLITS}
_BLOCK = 1 << 20  # bytes that are read at once
_MAX_HEADER_BYTES = 64 << 20  # a header may name half a million files of a text


# The fields of `prepared.json`, and their types.
FIELDS = {
    "format": int,
    "name": str,
    "description": str,
    "corpus_sha256": str,
    "notes": list,
    "text": list,  # the stamp of each file
    "max_vocab": int | None,
    "options": dict,
    "floor": dict | None,  # the least nats of each split, of the generated corpus
    "files": dict,  # the bytes and the sha256 of each file
}


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a folder with a prepared corpus."""
    return os.path.lexists(os.path.join(path, HEADER))


def write(
    folder: Folder,
    encoder: Encoder,
    stamps: list[Stamp],
) -> None:
    """Writes a corpus into an empty folder.

    Args:
        folder: The folder.
        encoder: The vocabulary and the ids of the text.
        stamps: What identifies each file of the text.

    Raises:
        DataError: The vocabulary is too large.
        OSError: The folder cannot be written.
    """
    vocab = encoder.vocab
    source = encoder.source
    vocab_json = vocab.to_bytes()
    dtype = _dtype(vocab)
    files = {VOCAB: (len(vocab_json), hashlib.sha256(vocab_json).hexdigest())}
    folder.write(VOCAB, vocab_json)
    for split, name in IDS.items():
        digest = hashlib.sha256()
        with folder.replacing(name) as file:
            for ids in encoder.ids(split):
                data = ids.astype(dtype).tobytes()
                digest.update(data)
                file.write(data)
            files[name] = file.tell(), digest.hexdigest()
    header = {
        "format": FORMAT,
        "text": stamps,
        "max_vocab": source.options.max_vocab,
        "options": source.options.options | {"tokens": vocab.kind},
        "files": files,
        **encoder.describe(),
    }
    folder.write(HEADER, _seal(header).encode())


def load_prepared(path: str | Path, options: TextOptions | None = None) -> Corpus:
    """Opens a prepared folder, its ids memory-mapped, after every byte was verified.

    Args:
        path: The folder.
        options: With which options the text should have been prepared; None: any.

    Raises:
        DataError: A file is missing, altered or no regular file, an id is outside the vocabulary,
            or an option is neither a default nor that of the preparation (`max_vocab`: there are
            more words or characters).
    """
    with read_errors(path), Folder.open(path) as folder:
        header = read_header(folder)
        with _intact(folder, VOCAB):
            data = folder.read(VOCAB, MAX_VOCAB_BYTES)
            if [len(data), hashlib.sha256(data).hexdigest()] != header["files"][VOCAB]:
                raise ValueError("its content is not what was prepared")
            vocab = Vocab.from_json(data.decode())
        if options:
            _check_options(path, header, vocab, options)
        ids = {
            split: _map_ids(folder, name, header["files"][name], vocab)
            for split, name in IDS.items()
        }
    return Corpus(
        name=header["name"],
        description=header["description"],
        vocab=vocab,
        **ids,
        sha256=header["corpus_sha256"],
        floor=header["floor"],
        notes=tuple(header["notes"]),
        spec=os.path.abspath(path),
        options=header["options"],
    )


def _check_options(
    path: str | Path,
    header: dict[str, Any],
    vocab: Vocab,
    options: TextOptions,
) -> None:
    """Raises DataError where a folder was prepared with other options than those asked for."""
    defaults = DataConfig().options
    remedy = "or prepare the text again in another folder"
    for name, value in options.options.items():
        prepared = header["options"][name]
        if value not in (defaults[name], prepared):
            raise DataError(
                f"{path} was prepared with {name} {prepared}, not {value}: leave that out, {remedy}"
            )
    max_vocab = options.max_vocab
    if max_vocab is not None and len(vocab) > max_vocab and not vocab.tokens.names:
        raise DataError(
            f"{path} was prepared with {len(vocab):,} words, more than the vocabulary size "
            f"{max_vocab:,}: raise that, {remedy}"
        )


def read_header(folder: Folder) -> dict[str, Any]:
    """Returns the fields of `prepared.json`, with all options.

    Raises:
        DataError: The file is missing, or is not what was written.
    """
    with _intact(folder, HEADER):
        header: dict[str, Any] = dict.fromkeys(FIELDS)
        header |= from_hashed_json(folder.read(HEADER, _MAX_HEADER_BYTES), _seal)
        wrong = [name for name, kind in FIELDS.items() if not isinstance(header[name], kind)]
        wrong = wrong or _wrong_values(header)
        if wrong:
            raise ValueError(f"its {', '.join(wrong)} cannot be right")
    return header | {"options": DataConfig().options | header["options"]}


def _wrong_values(header: dict[str, Any]) -> list[str]:
    """The fields whose values cannot be right, though they have the right types."""
    files = header["files"]
    entries_are_right = files.keys() == {*IDS.values(), VOCAB} and all(
        type(entry) is list and list(map(type, entry)) == [int, str] for entry in files.values()
    )
    is_right = {
        "format": header["format"] == FORMAT,
        "notes": all(type(note) is str for note in header["notes"]),
        "options": header["options"].keys() <= DataConfig().options.keys(),
        "files": entries_are_right,
    }
    return [name for name, right in is_right.items() if not right]


def _dtype(vocab: Vocab) -> str:
    """The dtype of ids in files: of two bytes if all ids of the vocabulary fit into them."""
    return "<u2" if len(vocab) <= 1 << 16 else "<i4"


def _map_ids(
    folder: Folder,
    name: str,
    entry: tuple[int, str],
    vocab: Vocab,
) -> np.ndarray:
    """The ids of a file, memory-mapped, once one pass over it has verified all of them.

    Args:
        folder: The prepared folder.
        name: The file.
        entry: How many bytes it has, and their sha256.
        vocab: The vocabulary that the ids are of.
    """
    path = folder.path / name
    size, sha256 = entry
    with _intact(folder, name), folder.reader(name) as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != size:
            raise ValueError(f"it has {actual:,} bytes, not {size:,}")
        digest = hashlib.sha256()
        bounds = [0]
        while True:
            data = file.read(_BLOCK)
            if not data:
                break
            digest.update(data)
            block = np.frombuffer(data, _dtype(vocab))
            bounds += [int(block.min()), int(block.max())]
        if digest.hexdigest() != sha256:
            raise ValueError("its content is not what was prepared")
        check_ids(np.array(bounds), len(vocab), str(path))
        ids = np.memmap(file, np.dtype(_dtype(vocab)), "r")  # pyright: ignore[reportCallIssue, reportArgumentType]
    # An open descriptor has no name, and `filename` is typed as final.
    setattr(ids, "filename", os.path.abspath(path))  # noqa: B010
    return ids


def _intact(folder: Folder, name: str) -> AbstractContextManager[None]:
    """Converts an error of a folder's file into a DataError of one sentence."""
    remedy = f"remove {folder.path} and prepare the text again"
    return explained(DataError, f"{folder.path / name} is damaged", remedy)


def _seal(tree: dict[str, Any]) -> str:
    """The header's JSON, as format 1 has it: with the sha256 of its other fields inside."""
    body = json.dumps(tree, sort_keys=True)
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**tree, "sha256": sha256}, indent=1) + "\n"
