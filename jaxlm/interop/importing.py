"""Reads other programs' language models, whatever kind of file they are in, and never runs anything from them."""

import os
from pathlib import Path

from jaxlm.errors import JaxlmError
from jaxlm.files import reader, reason
from jaxlm.interop import sstable
from jaxlm.interop.foreign import ForeignModel
from jaxlm.interop.safetensors_files import read_safetensors
from jaxlm.interop.tensorflow import from_tensorflow_checkpoint
from jaxlm.interop.tensorflow_checkpoint import checkpoint_prefix, read_checkpoint
from jaxlm.interop.tensors import MOST_PATH, shown
from jaxlm.interop.torch_files import MOST_FILE, read_torch
from jaxlm.interop.torch_layout import from_torch
from jaxlm.interop.torch_modules import model_tensors


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
        problem = "there is no memory for it"
    except OSError as error:
        problem = reason(error)
    except JaxlmError as error:
        problem = str(error)
    raise JaxlmError(f"cannot import {shown(file, MOST_PATH)}: {problem}")


def _read(path: Path) -> ForeignModel:
    if (prefix := checkpoint_prefix(path)) is not None:
        return from_tensorflow_checkpoint(read_checkpoint(prefix), f"TensorFlow checkpoint {shown(prefix.name)}")
    with reader(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MOST_FILE:  # (0: what the kernel makes up, as /proc/kmsg, waits for who reads it)
            raise JaxlmError(f"it has {size:,} bytes, expected a model of 1 to {MOST_FILE:,}")
        head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
            file.seek(0)
            return from_torch(read_safetensors(file.read()), "safetensors file")
        file.seek(max(size - 8, 0))
        if file.read() == sstable.MAGIC:
            raise JaxlmError(
                "it is a checkpoint of TensorFlow's first format, in one file; save it anew with the "
                "tf.train.Saver of TensorFlow 1.0 or later, which writes an .index and .data files"
            )
        file.seek(0)
        value, layout, stored = read_torch(file, size)
        tensors, what = model_tensors(value, stored)
        return from_torch(tensors, f"PyTorch {what} ({layout})")
