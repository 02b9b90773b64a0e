"""Reads other people's language models, whatever kind of file they are in, and never runs anything from them."""

import os
from pathlib import Path
from typing import BinaryIO

from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.files import reader, reason
from jaxlm.interop.foreign import ForeignModel
from jaxlm.interop.safetensors_files import read_safetensors
from jaxlm.interop.sstable import MAGIC
from jaxlm.interop.tensorflow_checkpoint import checkpoint_prefix, read_checkpoint
from jaxlm.interop.tensorflow_layout import from_tensorflow_checkpoint
from jaxlm.interop.tensors import MOST_PATH, shown
from jaxlm.interop.torch_files import read_torch
from jaxlm.interop.torch_layout import from_torch
from jaxlm.interop.torch_modules import model_tensors
from jaxlm.interop.vocabularies import read_vocabulary, vocabulary_of_corpus

MOST_FILE = 1 << 32  # bytes


def import_model(file: str | Path, vocab: str | Path) -> tuple[ForeignModel, Vocab]:
    """A language model of another program, and its words.

    Args:
        file: as for `read_model`.
        vocab: a file of one word a line; or, of a program of PyTorch's, the folder of the train.txt, valid.txt and
            test.txt that the model was trained on, whose words are numbered in the order of their first appearance.
    Returns:
        The model and a vocabulary of its size.
    Raises:
        JaxlmError: as `read_model`; DataError for a vocabulary that cannot be read or has another size.
    """
    model = read_model(file)
    if not os.path.isdir(vocab):  # (which raises nothing)
        return model, read_vocabulary(vocab, model.vocab_size)
    if checkpoint_prefix(Path(file)) is not None:
        raise DataError(
            f"the vocabulary {shown(vocab, MOST_PATH)} is a folder, whose words would be numbered as "
            f"PyTorch's programs do, and the model is TensorFlow's: give a file of its words, one a line"
        )
    words = Vocab(vocabulary_of_corpus(vocab))
    if len(words) != model.vocab_size:
        raise DataError(
            f"the corpus {shown(vocab, MOST_PATH)} has {len(words):,} words, and the model has "
            f"{model.vocab_size:,}; give the corpus that the model was trained on"
        )
    return model, words


def read_model(file: str | Path) -> ForeignModel:
    """A stacked LSTM language model from a file of PyTorch, safetensors or TensorFlow 1.

    Args:
        file: what `torch.save` wrote (a module, a state_dict, or a list or dict with one), a .safetensors file, or a
            TensorFlow checkpoint (its common name, one of its files, or its folder).
    Returns:
        The model; its gates, biases, transposes and ties are jaxlm's.
    Raises:
        JaxlmError: there is no such file, it is damaged, claims more than it holds, is no LSTM language model, or asks
            for something that could run code, which is named; nothing was run.
    """
    try:
        return _read(Path(file))
    except MemoryError:
        raise JaxlmError(f"cannot import {shown(file, MOST_PATH)}: there is no memory for it") from None
    except OSError as error:
        raise JaxlmError(f"cannot import {shown(file, MOST_PATH)}: {reason(error)}") from None
    except JaxlmError as error:
        raise JaxlmError(f"cannot import {shown(file, MOST_PATH)}: {error}") from None


def _read(path: Path) -> ForeignModel:
    if (prefix := checkpoint_prefix(path)) is not None:
        return from_tensorflow_checkpoint(read_checkpoint(prefix), f"TensorFlow checkpoint {shown(prefix.name)}")
    with reader(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > MOST_FILE:
            raise JaxlmError(f"it has {size:,} bytes, expected at most {MOST_FILE:,}")
        head = file.read(9)
        file.seek(0)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
            return from_torch(read_safetensors(file.read()), "safetensors file")
        if size >= 8 and _last(file, 8) == MAGIC.to_bytes(8, "little"):
            raise JaxlmError(
                "it is a checkpoint of TensorFlow's first format, in one file; save it anew with the "
                "tf.train.Saver of TensorFlow 1.0 or later, which writes an .index and .data files"
            )
        value, layout, stored = read_torch(file, size)
        tensors, what = model_tensors(value, stored)
        return from_torch(tensors, f"PyTorch {what} ({layout})")


def _last(file: BinaryIO, count: int) -> bytes:
    """A file's last bytes; the file is at its beginning afterwards."""
    file.seek(-count, 2)
    data = file.read(count)
    file.seek(0)
    return data
