"""The words of other people's models: files of one word a line, or a corpus in the order of first appearance."""

import io
from pathlib import Path

from jaxlm.data.vocab import EOS, Vocab
from jaxlm.errors import DataError
from jaxlm.files import MAX_VOCAB_BYTES, read_bytes, reason
from jaxlm.interop.tensors import MOST_PATH, shown

MOST_TEXT = 1 << 32  # bytes of one file of a corpus
SPLITS = ("train.txt", "valid.txt", "test.txt")


def read_vocabulary(path: str | Path, size: int | None = None) -> Vocab:
    """The vocabulary of a file of one word a line; a word's id is its line, counted from 0.

    Args:
        path: UTF-8; the last line may lack its newline.
        size: how many words there must be, as the model's weights have it.
    Raises:
        DataError: the file cannot be read, is not UTF-8, has a word twice or an empty line, or another number of words.
    """
    text = _text(Path(path), MAX_VOCAB_BYTES).replace("\r\n", "\n")
    words = text.removesuffix("\n").split("\n")
    if size is not None and len(words) != size:
        if len(text.split()) != size:
            raise DataError(
                f"the vocabulary {shown(path, MOST_PATH)} has {len(words):,} words, and the model has "
                f"{size:,}; give the file that the model was trained with"
            )
        words = text.split()  # colorlessgreenRNNs reads its files so
    try:
        return Vocab(tuple(words))
    except DataError as error:
        raise DataError(f"the vocabulary {shown(path, MOST_PATH)} cannot be used: {error}") from None


def vocabulary_of_corpus(folder: str | Path) -> tuple[str, ...]:
    """The words of train.txt, valid.txt and test.txt in the order of their first appearance; each line ends in `<eos>`.

    pytorch/examples and awd-lstm-lm number words so, and keep no vocabulary.

    Raises DataError where a file is missing, cannot be read or is not UTF-8.
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
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{shown(path, MOST_PATH)} is not UTF-8 text: line {line:,} has the byte 0x{error.object[error.start]:02x}"
        ) from None
    except OSError as error:
        raise DataError(f"{shown(path, MOST_PATH)} cannot be read: {reason(error)}") from None
