"""The files of a prepared corpus: the sealed header, and a reader that verifies every byte before it is used.

    prepared.json (seals the rest)  vocab.json  train.ids  valid.ids  test.ids (plain little-endian integers)

A folder from a stranger is only data: nothing in it is opened through a link, only the files above are opened, all
sizes but those of the ids are bounded, and every id is one of the vocabulary's.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.data.corpus import Corpus, check_ids
from jaxlm.data.text import SPLITS, read_errors
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError
from jaxlm.files import MAX_VOCAB_BYTES, Folder, strict_json

FORMAT = 1
HEADER, VOCAB = "prepared.json", "vocab.json"
IDS = {split: f"{split}.ids" for split in SPLITS}
PARTIAL = ".partial"  # the working files of a corpus that is not finished
MAX_HEADER_BYTES = 1 << 20
_DTYPES = ("<u2", "<i4")
_BLOCK = 1 << 20  # bytes that are read at once
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Header:
    """The content of `prepared.json`."""

    format: int
    name: str
    notes: list[str]
    text: list[list[Any]]  # the `ingestion.stamp` of each text file
    max_vocab: int | None
    min_count: int
    lowercase: bool
    limited: bool  # whether max_vocab dropped a word
    description: str
    words: int  # of the vocabulary
    dtype: str  # of the ids
    files: dict[str, tuple[int, str]]  # name: (bytes, sha256)
    corpus_sha256: str

    def to_json(self) -> str:
        """Its JSON with the sha256 of the rest inside."""
        return _sealed(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """Reads what `to_json` wrote. Raises ValueError or TypeError for anything else."""
        tree = strict_json(text)
        if not isinstance(tree, dict):
            raise ValueError("it is not a JSON object")
        tree.pop("sha256", None)
        if _sealed(tree) != text:
            raise ValueError("its seal is broken")
        if tree.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        header = cls(**tree)
        for name in ("name", "description", "corpus_sha256"):
            _require(isinstance(getattr(header, name), str), name)
        for name in ("lowercase", "limited"):
            _require(isinstance(getattr(header, name), bool), name)
        _require(isinstance(header.notes, list) and all(isinstance(note, str) for note in header.notes), "notes")
        _require(isinstance(header.text, list) and len(header.text) in (1, len(SPLITS)), "text")
        _require(header.max_vocab is None or _is_count(header.max_vocab), "max_vocab")
        _require(_is_count(header.min_count), "min_count")
        _require(header.dtype in _DTYPES, "dtype")
        _require(_is_count(header.words, 1 << 16 if header.dtype == "<u2" else 1 << 31), "words")
        _require(isinstance(header.files, dict) and header.files.keys() == {*IDS.values(), VOCAB}, "files")
        for name, entry in header.files.items():
            size, sha256 = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
            _require(_is_count(size, MAX_VOCAB_BYTES if name == VOCAB else 1 << 62), name)
            _require(name == VOCAB or size % np.dtype(header.dtype).itemsize == 0, name)  # type: ignore[operator]
            _require(isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)), name)
        return header


def is_prepared(folder: str | Path) -> bool:
    """Whether a path is a folder with a prepared corpus, finished or not."""
    return any(os.path.lexists(os.path.join(folder, name)) for name in (HEADER, PARTIAL))


def read_header(folder: Folder) -> Header:
    """The header of a prepared corpus.

    Raises:
        DataError: There is none, or it is not what was written.
    """
    path = folder.path / HEADER
    try:
        return Header.from_json(folder.read(HEADER, MAX_HEADER_BYTES).decode())
    except FileNotFoundError:
        raise DataError(
            f"{folder.path} is not a finished corpus: resume it by the `jaxlm prepare` command that started it"
        ) from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or ascii(str(error))[1:-1][:200]
        raise DataError(f"{path} is damaged ({reason}): remove {folder.path} and prepare the text again") from None


def load_prepared(
    folder: str | Path, *, max_vocab: int | None = None, min_count: int = 1, lowercase: bool = False
) -> Corpus:
    """The corpus of a prepared folder, its ids memory-mapped, after every byte was verified.

    Args:
        folder: A folder that `prepare` made.
        max_vocab: The most words that its vocabulary may have.
        min_count: What it was prepared with, or 1.
        lowercase: What it was prepared with, or False.

    Returns:
        The corpus; its splits are `np.memmap`s of their files.

    Raises:
        DataError: A file is missing, shortened, altered, or no regular file, an id is outside the vocabulary, or an
            option differs from that of the preparation.
    """
    with read_errors(folder), Folder.open(folder) as opened:
        header = read_header(opened)
        for name, asked, default in (("min_count", min_count, 1), ("lowercase", lowercase, False)):
            if asked not in (default, getattr(header, name)):
                raise DataError(
                    f"{folder} was prepared with {name} {getattr(header, name)}, not {asked}: leave that "
                    "out, or prepare the text again in another folder"
                )
        if max_vocab is not None and header.words > max_vocab:
            raise DataError(
                f"{folder} was prepared with {header.words:,} words, more than the vocabulary size "
                f"{max_vocab:,}: raise that, or prepare the text again in another folder"
            )
        vocab = _read_vocab(opened, header)
        ids = {split: _map_ids(opened, header, name) for split, name in IDS.items()}
    return Corpus(
        name=header.name,
        description=header.description,
        vocab=vocab,
        train=ids["train"],
        valid=ids["valid"],
        test=ids["test"],
        sha256=header.corpus_sha256,
        notes=tuple(header.notes),
        spec=os.path.abspath(folder),
        options={"min_count": header.min_count, "lowercase": header.lowercase},
    )


def _read_vocab(folder: Folder, header: Header) -> Vocab:
    path, (size, sha256) = folder.path / VOCAB, header.files[VOCAB]
    with read_errors(path):
        _check_size(folder, VOCAB, size)
        data = folder.read(VOCAB, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(folder, VOCAB, "its content is not what was prepared")
    try:
        vocab = Vocab.from_json(data.decode())
    except UnicodeDecodeError:
        raise _damaged(folder, VOCAB, "it is not UTF-8") from None
    if len(vocab) != header.words:
        raise _damaged(folder, VOCAB, f"it has {len(vocab):,} words, not {header.words:,}")
    return vocab


def _map_ids(folder: Folder, header: Header, name: str) -> np.memmap:
    """The ids of a file, memory-mapped, once one pass over the open file has verified all of them."""
    path, (size, sha256) = folder.path / name, header.files[name]
    with read_errors(path):
        _check_size(folder, name, size)
        with folder.reader(name) as file:
            if _hash_ids(file, header, path) != sha256:
                raise _damaged(folder, name, "its content is not what was prepared")
            ids = np.memmap(file, np.dtype(header.dtype), "r")  # pyright: ignore[reportCallIssue, reportArgumentType]
    ids.filename = os.path.abspath(path)  # an open descriptor has no name
    return ids


def _hash_ids(file: BinaryIO, header: Header, path: Path) -> str:
    """The sha256 of a file. Raises DataError for an id outside the vocabulary, but only if the hash is right."""
    digest, wrong = hashlib.sha256(), None
    while data := file.read(_BLOCK):
        digest.update(data)
        try:
            check_ids(np.frombuffer(data, header.dtype), header.words, str(path))
        except DataError as error:
            wrong = wrong or error
    found = digest.hexdigest()
    if wrong is not None and found == header.files[path.name][1]:
        raise wrong
    return found


def _check_size(folder: Folder, name: str, size: int) -> None:
    """Raises DataError where a file has another size, or almost nothing of a large one is on the disk."""
    with folder.reader(name) as file:
        status = os.fstat(file.fileno())
    if status.st_size != size:
        raise _damaged(folder, name, f"it has {status.st_size:,} bytes, not {size:,}")
    if size > 1 << 30 and status.st_blocks * 512 < size // 16:
        raise _damaged(folder, name, f"only {status.st_blocks * 512:,} of its {size:,} bytes are on the disk")


def _damaged(folder: Folder, name: str, what: str) -> DataError:
    return DataError(f"{folder.path / name} is damaged: {what}; remove {folder.path} and prepare the text again")


def _sealed(tree: dict[str, Any]) -> str:
    """JSON with the sha256 of the rest inside, in the form of format 1."""
    body = json.dumps(tree, sort_keys=True)
    return json.dumps({**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1) + "\n"


def _require(valid: bool, name: str) -> None:
    if not valid:
        raise ValueError(f"its {name} cannot be right")


def _is_count(value: object, most: int = 1 << 62) -> bool:
    return type(value) is int and 1 <= value <= most
