"""The words of other people's models: files of one word a line, or a corpus in the order of first appearance."""

import io
import os
from pathlib import Path

from jaxlm.data.vocab import EOS, Vocab
from jaxlm.errors import DataError
from jaxlm.files import MAX_VOCAB_BYTES, read_bytes, reason
from jaxlm.interop.tensors import MOST_PATH, shown

MOST_TEXT = 1 << 32  # bytes of one file of a corpus
SPLITS = ("train.txt", "valid.txt", "test.txt")


def model_vocabulary(path: str | Path, size: int, tensorflow: bool = False) -> Vocab:
    """The words of an imported model.

    Args:
        path: a file of one word a line; or, of a program of PyTorch's, the folder of the train.txt, valid.txt and
            test.txt that the model was trained on, whose words are numbered in the order of their first appearance.
        size: how many words there must be, as the model's weights have it.
        tensorflow: whether the model is TensorFlow's.
    Raises:
        DataError: the file or folder cannot be read, is not UTF-8, has a word twice or an empty line, or another
            number of words.
    """
    found = shown(path, MOST_PATH)
    if os.path.isdir(path):  # (which raises nothing)
        if tensorflow:
            raise DataError(
                f"the vocabulary {found} is a folder, whose words would be numbered as PyTorch's programs do, and the "
                "model is TensorFlow's: give a file of its words, one a line"
            )
        words, what, give = vocabulary_of_corpus(path), "corpus", "corpus that the model was trained on"
    else:
        text = _text(Path(path), MAX_VOCAB_BYTES).replace("\r\n", "\n")
        words, what, give = text.removesuffix("\n").split("\n"), "vocabulary", "file that the model was trained with"
        if len(words) != size == len(text.split()):
            words = text.split()  # colorlessgreenRNNs reads its files so
    if len(words) != size:
        raise DataError(f"the {what} {found} has {len(words):,} words, and the model has {size:,}; give the {give}")
    try:
        return Vocab(tuple(words))
    except DataError as error:
        raise DataError(f"the {what} {found} cannot be used: {error}") from None


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
