"""The two layouts of PyTorch's files: a zip archive (since 1.6), or pickles with raw storages behind them."""

import io
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import damage, shown
from jaxlm.interop.torch_pickle import MOST_NAME, Global, unpickle

MOST_FILE = 1 << 32  # bytes
MOST_PICKLE = 1 << 28  # bytes of a pickle; the tensors are not in it
MOST_DIRECTORY = 1 << 24  # bytes of a zip's list of names
MOST_EXPANSION = 20  # how much larger than the file its content may be, beside 64 MiB
_DTYPES = {  # the kind of elements of torch.KINDStorage
    **{"Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Char": "int8", "Byte": "uint8", "Short": "int16", "Int": "int32", "Long": "int64"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
MAGIC = 0x1950A86A20F9469CFC6C  # what old files begin with


def read_torch(file: BinaryIO, size: int) -> tuple[Any, int]:
    """What `torch.save` wrote into an open file: the value as `unpickle` gives it, and all storages' bytes.

    Raises JaxlmError where it is damaged, claims more than it holds, or asks for something that could run code.
    """
    head = file.read(262)
    file.seek(0)
    if head[:4] == b"PK\x03\x04":
        return _load_zip(file, size)
    if head[257:] == b"ustar":
        raise JaxlmError("it is in the tar layout of PyTorch 0.1, which is not read; save it anew with a later PyTorch")
    if head[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):  # how a pickle of a container, an object or a class begins
        raise JaxlmError("it is no file of PyTorch or safetensors, nor a TensorFlow 1 checkpoint")
    return _load_old(file, size)


class _Storages:
    """The storages that the persistent ids of a pickle name, as arrays [n]."""

    def __init__(self, held: Callable[[str], int], load: Callable[[str, np.dtype, int], np.ndarray]):
        self._held, self._load = held, load  # the bytes that the file has for a key; its elements
        self.arrays: dict[str, np.ndarray] = {}
        self.nbytes = 0  # of all of them

    def __call__(self, identifier: Any) -> Any:
        """The storage of an id: ("storage", class, key, device, number of elements[, view of an old file])."""
        match identifier:
            case (str("module"), name, _, _):  # ("module", class, file, its source text), in old files
                return name
            case (str("storage"), Global() as name, str() as key, _, int() as count, *view) if count >= 0:
                package, _, kind = name.removesuffix("Storage").rpartition(".")
            case _:
                raise JaxlmError("its pickle refers to something outside itself that is not a storage")
        if package not in ("torch", "torch.cuda") or kind not in _DTYPES:
            raise JaxlmError(f"a tensor's storage is {shown(name)}; readable are those of {', '.join(_DTYPES)}")
        dtype = np.dtype(_DTYPES[kind])
        if key not in self.arrays:
            claimed, held = count * dtype.itemsize, self._held(key)
            if claimed > held:
                raise JaxlmError(f"the storage {shown(key)} claims {claimed:,} bytes of {held:,}; it is cut short")
            self.arrays[key] = self._load(key, dtype, count)
            self.nbytes += claimed
        whole = self.arrays[key]
        match view:
            case _ if (whole.dtype, whole.size) != (dtype, count):
                raise JaxlmError(f"the storage {shown(key)} is described in two ways")
            case [] | [None]:
                return whole
            case [(_, int() as start, int() as length)] if 0 <= start <= start + length <= count:
                return whole[start : start + length]
        raise JaxlmError(f"a view of the storage {shown(key)} does not lie within its {count:,} elements")


class _BoundedFile:
    """A file for `zipfile` that refuses to read as much at once as only an absurd list of names would need."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file

    def read(self, count: int = -1) -> bytes:
        if count > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of names takes {count:,} bytes, expected at most {MOST_DIRECTORY:,}")
        return self._file.read(MOST_DIRECTORY if count < 0 else count)


def _load_zip(file: BinaryIO, size: int) -> tuple[Any, int]:
    """An archive of NAME/data.pkl, NAME/byteorder, and a file NAME/data/KEY for each storage."""
    with damage("archive"):
        archive = zipfile.ZipFile(_BoundedFile(file))  # pyright: ignore[reportArgumentType]
    infos = archive.NameToInfo
    if (total := sum(info.file_size for info in archive.filelist)) > MOST_EXPANSION * size + (1 << 26):
        raise JaxlmError(f"its archive unpacks to {total:,} bytes, more than belongs in a file of {size:,}")
    roots = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") and name.count("/") == 1 for name in infos):
        raise JaxlmError("it is a TorchScript program, which is code; save the model's state_dict instead")
    if len(roots) != 1:
        raise JaxlmError(f"expected an archive with one data.pkl, as torch.save makes it, found {len(roots)}")

    def read(name: str, most: int = MOST_FILE) -> bytes:
        info, entry = infos[roots[0] + name], f"the entry {shown(name)} of its archive"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise JaxlmError(f"{entry} is packed in a way that torch.save never uses")
        if info.file_size > most:
            raise JaxlmError(f"{entry} unpacks to {info.file_size:,} bytes, expected at most {most:,}")
        with damage("archive"), archive.open(info) as unpacked:
            return unpacked.read(info.file_size + 1)  # (a number, so that no more is ever unpacked)

    def held(key: str) -> int:
        if (info := infos.get(f"{roots[0]}data/{key}")) is None:
            raise JaxlmError(f"the storage {shown(key)} is not in the archive; it is cut short")
        return info.file_size

    def load(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        return np.frombuffer(read(f"data/{key}"), dtype, count) if count else np.empty(0, dtype)

    if f"{roots[0]}byteorder" in infos and (order := read("byteorder", 16)) != b"little":
        raise JaxlmError(f"expected the byte order little, found {shown(order.decode('latin-1'))}")
    storages = _Storages(held, load)
    return unpickle(io.BytesIO(read("data.pkl", MOST_PICKLE)), storages), storages.nbytes


def _load_old(file: BinaryIO, size: int) -> tuple[Any, int]:
    """Pickles of a magic number, the protocol, the system, the value and the storages' keys; then the storages.

    Each storage is its number of elements (int64) and its elements, always little endian. A bare pickle without a
    magic number is read too: it has no tensors, but what it asks for is worth a word.
    """
    stream = io.BytesIO(file.read(MOST_PICKLE))
    # All storages together fit in the file; they are filled at the end.
    storages = _Storages(lambda _: size - storages.nbytes, lambda _, dtype, count: np.empty(count, dtype))
    value = unpickle(stream, storages)
    if not isinstance(value, int) or value != MAGIC:
        return value, 0
    _, _, value, keys = (unpickle(stream, storages) for _ in range(4))
    listed = isinstance(keys, list) and all(isinstance(key, str) and len(key) <= MOST_NAME for key in keys)
    if not listed or sorted(keys) != sorted(storages.arrays):
        raise JaxlmError(f"its list of storages is not that of the {len(storages.arrays)} in use; it is damaged")
    file.seek(stream.tell())
    for key in keys:
        array = storages.arrays[key]
        count = int.from_bytes(file.read(8), "little")
        read = file.readinto(array.view(np.uint8))  # pyright: ignore[reportAttributeAccessIssue]
        if count != array.size or read < array.nbytes:
            raise JaxlmError(f"the storage {shown(key)} does not hold its {array.size:,} elements; it is cut short")
    return value, storages.nbytes
