"""PyTorch: the LSTM language model of a file of `torch.save` or safetensors, without PyTorch.

`torch.save` writes a zip archive (since 1.6), or pickles with raw storages behind them (before). In
it lies a module or a state_dict. PyTorch has kernels `[4H, in]`, apart for input and state, gates
in the order i, f, g, o, and two biases that add. jaxlm has one kernel `[in + H, 4H]`, gates i, j,
f, o, and one bias; g and j are two names of one gate.
"""

import io
import json
import os
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import reader
from jaxlm.interop.foreign import (
    LSTM_GATES,
    ForeignModel,
    as_float32,
    by_role,
    check_sharing,
    listed,
    matrix_shape,
    quote,
    reordered,
)
from jaxlm.interop.torch_pickle import MOST_NAME, Global, Instance, unpickle
from jaxlm.runs import ram

MOST_FILE = 1 << 32  # bytes
MOST_PICKLE = 1 << 28  # bytes of the pickles before 1.6; the tensors are not in them
MOST_EXPANSION = 20  # how much larger than the file its content may be, beside 64 MiB
MOST_PREFIX = 1000  # letters of the path to a module
MAGIC = 0x1950A86A20F9469CFC6C  # what files before 1.6 begin with
_DTYPES = {  # by the KIND of torch.KINDStorage
    "Half": "float16",
    "Float": "float32",
    "Double": "float64",
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Char": "int8",
    "Byte": "uint8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}  # safetensors'
Tensors = dict[str, np.ndarray]
_NESTED = dict | list | tuple | Instance
_EMBEDDINGS = ("encoder", "embedding", "embeddings", "embed", "emb", "word_embeddings")
_HEADS = ("decoder", "linear", "fc", "out", "output", "proj", "head", "lm_head", "output_layer")
# As rnn.weight_ih_l0, rnns.1.module.weight_ih_l0 or rnns.1.module.weight_hh_l0_raw.
_LAYER_WEIGHT = re.compile(
    r"(?P<stack>.*?)(?:\.(?P<index>[0-9]{1,3}))?(?:\.module)?\.?"
    r"(?P<part>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>[0-9]{1,3})(?:_raw)?"
)


def read_pytorch(path: Path) -> ForeignModel:
    """The model of a file.

    Raises:
        JaxlmError: The file holds no such model, could run code, or is too large.
        OSError: It cannot be read.
        Exception: It is damaged.
    """
    with reader(path) as file:
        size = os.fstat(file.fileno()).st_size
        # A file of 0 bytes may be one of the kernel's, as /proc/kmsg, which waits for its reader.
        if not 0 < size <= MOST_FILE:
            raise JaxlmError(f"it has {size:,} bytes, expected a model of 1 to {MOST_FILE:,}")
        head = file.read(9)
        file.seek(0)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
            tensors, stored = _load_safetensors(file.read())
        elif head[:4] == b"PK\x03\x04":
            tensors, stored = _load_zip(file, size)
        elif head[:1] in b"\x80(]}c":  # how a pickle of a container, an object or a class begins
            tensors, stored = _load_old(file, size)
        else:
            raise JaxlmError(
                "it is no file of PyTorch or safetensors, nor a TensorFlow 1 checkpoint"
            )
    check_sharing((tensor.nbytes for tensor in tensors.values()), stored)
    return _model_of(tensors, path)


def _load_safetensors(data: bytes) -> tuple[Tensors, int]:
    """The tensors of a file, by name, and the number of their stored bytes."""
    tensors: Tensors = {}
    for name, entry in safetensors.deserialize(data):
        dtype = entry["dtype"]
        if dtype not in _FLOATS:
            raise JaxlmError(
                f"{quote(name)} holds {quote(dtype)}, expected one of {', '.join(_FLOATS)}"
            )
        tensors[name] = np.frombuffer(entry["data"], _FLOATS[dtype]).reshape(entry["shape"])
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:end]).get("__metadata__") or {}
    for name, stored_name in metadata.items():  # safetensors.torch.save_model leaves out tied ones
        if name not in tensors and stored_name in tensors:
            tensors[name] = tensors[stored_name]
    return tensors, len(data) - end


class _Storages:
    """The storages that the persistent ids of a pickle name, as arrays [n]."""

    def __init__(
        self,
        stored_bytes: Callable[[str], int],
        load: Callable[[str, np.dtype, int], np.ndarray],
    ):
        """Begins without storages.

        Args:
            stored_bytes: How many bytes the file has for a key.
            load: The elements of a key, of a dtype and number.
        """
        self._stored_bytes = stored_bytes
        self._load = load
        self.arrays: dict[str, np.ndarray] = {}
        self.nbytes = 0  # of all of them

    def __call__(self, identifier: Any) -> Any:
        """The storage of an id, ("storage", class, key, device, elements[, view])."""
        match identifier:
            case (str("module"), name, _, _):  # in old files: a class, its file and source text
                return name
            case (str("storage"), Global() as name, str() as key, _, int() as count, *view) if (
                count >= 0
            ):
                package, _, kind = name.removesuffix("Storage").rpartition(".")
            case _:
                raise JaxlmError(
                    "its pickle refers to something outside itself that is not a storage"
                )
        if package not in ("torch", "torch.cuda") or kind not in _DTYPES:
            raise JaxlmError(
                f"a tensor's storage is {quote(name)}; readable are those of {', '.join(_DTYPES)}"
            )
        dtype = np.dtype(_DTYPES[kind])
        if key not in self.arrays:
            claimed = count * dtype.itemsize
            stored = self._stored_bytes(key)
            if claimed > stored:
                raise JaxlmError(
                    f"the storage {quote(key)} claims {claimed:,} bytes of {stored:,}; "
                    "it is cut short"
                )
            self.arrays[key] = self._load(key, dtype, count)
            self.nbytes += claimed
        storage = self.arrays[key]
        match view:
            case [] | [None]:
                return storage
            case [(_, int() as start, int() as length)] if (
                0 <= start <= start + length <= storage.size
            ):
                return storage[start : start + length]
        raise JaxlmError(
            f"a view of the storage {quote(key)} does not lie within its {storage.size:,} elements"
        )


def _load_zip(file: BinaryIO, size: int) -> tuple[Tensors, int]:
    """An archive of NAME/data.pkl, NAME/byteorder, and a file NAME/data/KEY for each storage."""
    archive = zipfile.ZipFile(file)
    infos = archive.NameToInfo
    total = sum(info.file_size for info in archive.filelist)
    if total > MOST_EXPANSION * size + (1 << 26):
        raise JaxlmError(
            f"its archive unpacks to {total:,} bytes, more than belongs in a file of {size:,}"
        )
    ram.check(total, "what the archive holds", "it cannot be loaded here")
    top = [name.partition("/") for name in infos if name.count("/") == 1]
    if any(name == "constants.pkl" for _, _, name in top):
        raise JaxlmError(
            "it is a TorchScript program, which is code; save the model's state_dict instead"
        )
    roots = [root for root, _, name in top if name == "data.pkl"]
    if len(roots) != 1:
        raise JaxlmError(
            f"expected an archive with one data.pkl, as torch.save makes it, found {len(roots)}"
        )

    def info_of(name: str) -> zipfile.ZipInfo:
        if f"{roots[0]}/{name}" not in infos:
            raise JaxlmError(f"the entry {quote(name)} is not in the archive; it is cut short")
        return infos[f"{roots[0]}/{name}"]

    def read(name: str) -> bytes:
        info = info_of(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise JaxlmError(
                f"the entry {quote(name)} of its archive is packed in a way that torch.save "
                "never uses"
            )
        with archive.open(info) as unpacked:
            return unpacked.read(info.file_size + 1)  # a number: no more is ever unpacked

    def load(
        key: str,
        dtype: np.dtype,
        count: int,
    ) -> np.ndarray:
        if not count:
            return np.empty(0, dtype)
        return np.frombuffer(read(f"data/{key}"), dtype, count)

    if f"{roots[0]}/byteorder" in infos:
        order = read("byteorder")
        if order != b"little":
            raise JaxlmError(
                f"expected the byte order little, found {quote(order.decode('latin-1'))}"
            )
    storages = _Storages(lambda key: info_of(f"data/{key}").file_size, load)
    value = unpickle(io.BytesIO(read("data.pkl")), storages)
    return _tensors_of(value), storages.nbytes


def _load_old(file: BinaryIO, size: int) -> tuple[Tensors, int]:
    """Pickles of a magic number, the protocol, the system, the value and the storages' keys.

    Behind them are the storages: each its number of elements (int64) and its elements, always
    little endian. A bare pickle without a magic number is read too: it has no tensors, but an error
    names what it asks for.
    """
    stream = io.BytesIO(file.read(MOST_PICKLE))
    # All storages together fit in the file; they are filled at the end.
    storages = _Storages(
        lambda _: size - storages.nbytes, lambda _, dtype, count: np.empty(count, dtype)
    )
    value = unpickle(stream, storages)
    if not isinstance(value, int) or value != MAGIC:
        return _tensors_of(value), 0
    _, _, value, keys = (unpickle(stream, storages) for _ in range(4))
    are_keys = isinstance(keys, list) and all(
        isinstance(key, str) and len(key) <= MOST_NAME for key in keys
    )
    if not are_keys or sorted(keys) != sorted(storages.arrays):
        raise JaxlmError(
            f"its list of storages is not that of the {len(storages.arrays)} in use; it is damaged"
        )
    file.seek(stream.tell())
    for key in keys:
        array = storages.arrays[key]
        count = int.from_bytes(file.read(8), "little")
        read = file.readinto(array.view(np.uint8))  # pyright: ignore[reportAttributeAccessIssue]
        if count != array.size or read < array.nbytes:
            raise JaxlmError(
                f"the storage {quote(key)} does not hold its {array.size:,} elements; "
                "it is cut short"
            )
    return _tensors_of(value), storages.nbytes


def _tensors_of(value: Any) -> Tensors:
    """The tensors, by name, of the one model in a module, a state_dict, or a list or dict with one.

    Raises:
        JaxlmError: There is no model, there are several, or it computes what jaxlm does not.
    """
    models = {path: tensors for path, tensors in _models(value) if tensors}
    recurrent = {
        path: tensors
        for path, tensors in models.items()
        if any("weight_ih_l" in name for name in tensors)
    }
    models = recurrent or models
    if not models:
        content = f"a {type(value).__name__}"
        if isinstance(value, dict):
            content = f"a dict of {listed(value) or 'nothing'}"
        elif isinstance(value, Instance):
            content = f"an object of {quote(value.kind)}"
        raise JaxlmError(
            f"expected a model or a state_dict, found {content} without named weights in it"
        )
    if len(models) > 1:
        raise JaxlmError(
            f"it holds {len(models)} models ({listed(models)}); save alone the one to import"
        )
    return next(iter(models.values()))


def _models(value: Any) -> Iterator[tuple[str, Tensors]]:
    """(path, tensors) of each module and dict of weights, nearest first.

    Nothing is looked at twice, nor inside of a dict of weights: a pickle may hold a value in
    itself, and many times.
    """
    queue: deque[tuple[str, Any]] = deque()
    if isinstance(value, _NESTED):
        queue.append(("", value))
    seen = {id(value)}
    while queue:
        path, item = queue.popleft()
        if _is_module(item):
            yield path, _module_tensors(item, seen)
            continue
        if isinstance(item, Instance):
            item = {"": item.state}
        items = list(item.items() if isinstance(item, dict) else enumerate(item))
        tensors = {str(name): leaf for name, leaf in items if isinstance(leaf, np.ndarray)}
        if any(name.endswith(".weight") or "weight_ih_l" in name for name in tensors):
            yield path, tensors
            continue
        for name, child in items:
            if isinstance(child, _NESTED) and id(child) not in seen:
                seen.add(id(child))
                queue.append((f"{path}.{name}"[-200:].strip("."), child))


def _is_module(item: Any) -> bool:
    return isinstance(item, Instance) and isinstance(item.state.get("_parameters"), dict)


def _module_tensors(module: Instance, seen: set[int]) -> Tensors:
    """Parameters and buffers of a module and those below it, as its state_dict names them.

    Raises:
        JaxlmError: It computes something that the names and shapes of its tensors do not tell.
    """
    tensors = {}
    queue = deque([("", module)])
    while queue:
        prefix, current = queue.popleft()
        if len(prefix) > MOST_PREFIX:
            raise JaxlmError(
                f"its modules are nested too deeply: a name has over {MOST_PREFIX:,} letters"
            )
        kind = current.kind.rpartition(".")[2]
        name = quote(prefix.rstrip(".") or kind)
        if kind == "Embedding" and current.state.get("max_norm") is not None:
            raise JaxlmError(
                f"the module {name} shortens vectors as it reads them (max_norm), "
                "which jaxlm does not"
            )
        splits = current.state.get("nsplits")
        if isinstance(splits, int) and splits > 1:
            raise JaxlmError(
                f"the module {name} has {min(splits, 10**9):,} splits; "
                "only plain softmax is imported"
            )
        for table in ("_parameters", "_buffers", "_modules"):
            entries = current.state.get(table)
            if not isinstance(entries, dict) or id(entries) in seen:
                continue
            seen.add(id(entries))
            for name, entry in entries.items():
                if isinstance(entry, np.ndarray):
                    tensors[prefix + name] = entry
                elif _is_module(entry):
                    queue.append((f"{prefix}{name}.", entry))
    return tensors


def _model_of(tensors: Tensors, file: Path) -> ForeignModel:
    """The model of a PyTorch state_dict, under any prefix.

    A weight under dropout (awd-lstm-lm) is kept as NAME_raw; NAME beside it is the copy that the
    last window dropped.

    Raises:
        JaxlmError: It is another model. The error names the tensors.
    """
    matches = [_LAYER_WEIGHT.fullmatch(name) for name in tensors]
    stacks = {match["stack"] for match in matches if match}
    if len(stacks) > 1:
        raise JaxlmError(
            f"it has several recurrent modules ({listed(stacks)}), in an order that no name gives"
        )
    raw = {_role(name) for name in tensors if name.endswith("_raw")} - {None}
    names = [name for name in tensors if name.endswith("_raw") or _role(name) not in raw]
    parts = ["weight_ih", "weight_hh"]
    biased = any("bias_ih_l" in name for name in tensors)
    if biased:
        parts += ["bias_ih", "bias_hh"]
    roles, layers = by_role(names, _role, ["encoder.weight", "decoder.weight"], parts)
    embedding = tensors[roles["encoder.weight"]]
    kernel = tensors[roles["decoder.weight"]]
    vocab_size, width = matrix_shape(roles["encoder.weight"], embedding)
    table = as_float32(roles["encoder.weight"], embedding, (vocab_size, width))
    params: dict[str, Any] = {"embedding": table, "layers": []}
    for layer in layers:
        params["layers"].append(_lstm(tensors, layer, width))
        width = len(params["layers"][-1]["bias"]) // 4
    head = as_float32(roles["decoder.weight"], kernel, (vocab_size, width))
    softmax = {"bias": np.zeros(vocab_size, np.float32)}
    notes = []
    if "decoder.bias" in roles:
        bias = roles["decoder.bias"]
        softmax["bias"] = as_float32(bias, tensors[bias], (vocab_size,))
    else:
        notes.append("the output layer has no bias: zeros stand in its place")
    shared = np.may_share_memory(kernel, embedding)
    constant = not np.ptp(table)  # as zeros, which say nothing
    if not np.array_equal(head, table) or (constant and not shared):
        softmax["kernel"] = np.ascontiguousarray(head.T)
    elif not shared:
        notes.append(
            "the output matrix equals the embedding in every number: the model is taken as tied"
        )
    if biased:
        notes.append("each layer's two biases were added up")
    return ForeignModel.of_lstm({**params, "softmax": softmax}, notes, file)


def _role(name: str) -> str | None:
    """What a tensor of this name is; None: nothing that an LSTM language model has."""
    weight = _LAYER_WEIGHT.fullmatch(name)
    if weight:
        index = int(weight["index"] or 0)
        layer = int(weight["layer"])
        if index and layer:
            return None
        return f"{weight['part']} of layer {index + layer}"
    module, _, parameter = name.rpartition(".")
    module = module.split(".")[-1]
    if module in _EMBEDDINGS and parameter == "weight":
        return "encoder.weight"
    if module in _HEADS and parameter in ("weight", "bias"):
        return f"decoder.{parameter}"
    return None


def _lstm(
    tensors: Tensors,
    layer: dict[str, str],
    inputs: int,
) -> dict[str, np.ndarray]:
    """jaxlm's kernel and bias of a layer, {part: name}.

    Raises:
        JaxlmError: It has other shapes than an LSTM's.
    """
    recurrent = layer["weight_hh"]
    rows, hidden = matrix_shape(recurrent, tensors[recurrent])
    cell = {hidden: "a plain RNN", 3 * hidden: "a GRU"}.get(rows)
    if cell:
        raise JaxlmError(
            f"{quote(recurrent)} is {rows}x{hidden}: that is {cell}; only LSTMs are imported"
        )
    columns = {"weight_ih": (inputs,), "weight_hh": (hidden,), "bias_ih": (), "bias_hh": ()}
    weights = {
        part: as_float32(name, tensors[name], (4 * hidden, *columns[part]))
        for part, name in layer.items()
    }
    bias = np.zeros(4 * hidden, np.float32)
    if "bias_ih" in layer:
        with np.errstate(over="ignore"):
            both = weights["bias_ih"] + weights["bias_hh"]
        bias = as_float32(layer["bias_ih"], both, (4 * hidden,))
    kernel = reordered(np.hstack([weights["weight_ih"], weights["weight_hh"]]), LSTM_GATES)
    return {"kernel": np.ascontiguousarray(kernel.T), "bias": reordered(bias, LSTM_GATES)}
