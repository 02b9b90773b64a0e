"""The two layouts of PyTorch's files: a zip archive (since 1.6), or pickles with raw storages behind them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from jaxlm.errors import JaxlmError
from jaxlm.interop.pickles import interpret
from jaxlm.interop.tensors import SIZES, shown
from jaxlm.interop.torch_objects import TORCH_CALLS, Storage, View, natural, storage_kind

MOST_PICKLE = 1 << 28  # bytes of a pickle; the tensors are not in it
MOST_DIRECTORY = 1 << 24  # bytes of a zip's list of names
MOST_EXPANSION = 20  # how much larger than the file its content may be, beside 64 MiB
CHUNK = 1 << 23
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what old files begin with
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    zlib.error,
    struct.error,
    OSError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
)


def read_torch(file: BinaryIO, size: int) -> tuple[Any, str, int]:
    """What `torch.save` wrote, without running any of it. Storages are read later, so the file must stay open.

    Args:
        file: the open file, at its beginning.
        size: its length in bytes.
    Returns:
        The value (as `interpret` gives it, with `Tensor`s), the layout in words, and the bytes of all storages.
    Raises:
        JaxlmError: it is damaged, claims more than it holds, or asks for something that could run code.
    """
    head = file.read(262)
    file.seek(0)
    if head[:4] == b"PK\x03\x04":
        return _Archive(file, size).load()
    if head[257:] == b"ustar":
        raise JaxlmError("it is in the tar layout of PyTorch 0.1, which is not read; save it anew with a later PyTorch")
    if head[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):  # how a pickle of a container, an object or a class begins
        raise JaxlmError(
            "it is in none of the formats that are read: PyTorch's, safetensors, TensorFlow 1's checkpoints"
        )
    return _load_old(file, size)


class _BoundedFile:
    """A file for `zipfile` that refuses to read as much at once as only an absurd list of names would need."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file

    def read(self, count: int = -1) -> bytes:
        if count > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of names takes {count:,} bytes, expected at most {MOST_DIRECTORY:,}")
        return self._file.read(MOST_DIRECTORY if count < 0 else count)


class _Archive:
    """A zip archive: NAME/data.pkl, NAME/byteorder, and a file NAME/data/KEY for each storage."""

    def __init__(self, file: BinaryIO, size: int):
        self.left = MOST_EXPANSION * size + (1 << 26)  # bytes that may still be unpacked
        self.zip = _guarded(lambda: zipfile.ZipFile(_BoundedFile(file)))  # pyright: ignore[reportArgumentType]
        names = self.zip.namelist()
        if len(set(names)) < len(names):
            raise JaxlmError("its archive has two entries of one name")
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if f"{names[0].split('/')[0] if names else ''}/constants.pkl" in names:
            raise JaxlmError("it is a TorchScript program, which is code; save the model's state_dict instead")
        if len(roots) != 1:
            raise JaxlmError(f"expected an archive with one data.pkl, as torch.save makes it, found {len(roots)}")
        self.root = roots[0]
        self.views: dict[str, View] = {}
        self.order = "<"

    def load(self) -> tuple[Any, str, int]:
        if f"{self.root}byteorder" in self.zip.NameToInfo:
            word = self._entry("byteorder", 16)
            if word not in (b"little", b"big"):
                raise JaxlmError(f"expected the byte order little or big, found {shown(ascii(bytes(word)))}")
            self.order = "<" if word == b"little" else ">"
        pickle = io.BytesIO(self._entry("data.pkl", MOST_PICKLE))
        value = interpret(pickle, TORCH_CALLS, self.storage)
        return value, "zip", sum(view.storage.size for view in self.views.values())

    def storage(self, identifier: Any) -> View:
        """The storage of a persistent id: ("storage", class, key, device, number of elements)."""
        kind, key, count = _claims(identifier)
        if key not in self.views:
            info = self.zip.NameToInfo.get(f"{self.root}data/{key}")
            if info is None:
                raise JaxlmError(f"the storage {shown(key)} is not in the archive; it is cut short")
            _check_held(key, count * SIZES[kind], info.file_size)
            fetch = partial(self._entry, f"data/{key}", info.file_size)
            self.views[key] = View(Storage(key, kind, count, self.order, fetch), 0, count)
        return _same(self.views[key], kind, count)

    def _entry(self, name: str, most: int) -> bytearray:
        """The content of an entry, its checksum checked; at most what it says, and `most`."""
        info = self.zip.NameToInfo[self.root + name]
        self.left -= info.file_size
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise JaxlmError(f"the entry {shown(name)} of its archive is packed in a way that torch.save never uses")
        if info.file_size > most or self.left < 0:
            raise JaxlmError(
                f"the entry {shown(name)} of its archive unpacks to {info.file_size:,} bytes, more than "
                "belongs in such a file"
            )
        data = _guarded(lambda: self._unpacked(info))
        if len(data) != info.file_size:
            raise JaxlmError(
                f"the entry {shown(name)} of its archive has {len(data):,} bytes, expected {info.file_size:,}"
            )
        return data

    def _unpacked(self, info: zipfile.ZipInfo) -> bytearray:
        data = bytearray()
        with self.zip.open(info) as entry:
            while len(data) <= info.file_size and (chunk := entry.read(CHUNK)):
                data += chunk
        return data


def _guarded(action: Callable[[], Any]) -> Any:
    """What an action of `zipfile` gives; its many errors are one."""
    try:
        return action()
    except _ZIP_ERRORS as error:
        raise JaxlmError(f"its archive is damaged or cut short ({shown(error)})") from None


def _load_old(file: BinaryIO, size: int) -> tuple[Any, str, int]:
    """Pickles of a magic number, the protocol, the system, the value and the storages' keys; then the storages.

    Each storage is its number of elements (int64) and its elements, always little endian. A bare pickle without a
    magic number is read too: it has no tensors, but what it asks for is worth a word.
    """
    stream = io.BytesIO(file.read(MOST_PICKLE))
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # ("module", class, file, its source text)
        kind, key, count = _claims(identifier)
        if key not in storages:
            _check_held(key, count * SIZES[kind], size)
            storages[key] = Storage(key, kind, count)
        whole = _same(View(storages[key], 0, count), kind, storages[key].count)
        part = identifier[5] if len(identifier) > 5 else None
        return whole if part is None else _part(whole, part)

    value = interpret(stream, TORCH_CALLS, persistent)
    if value != MAGIC:
        return value, "a bare pickle", 0
    if (protocol := interpret(stream, TORCH_CALLS, persistent)) != PROTOCOL:
        raise JaxlmError(f"expected the old layout's protocol {PROTOCOL}, found {shown(type(protocol).__name__)}")
    interpret(stream, TORCH_CALLS, persistent)  # the system that wrote it: the storages are little endian everywhere
    value = interpret(stream, TORCH_CALLS, persistent)
    keys = interpret(stream, TORCH_CALLS, persistent)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise JaxlmError("its list of storages is damaged")
    if set(keys) != set(storages):
        raise JaxlmError(f"it has {len(storages)} storages in use and a list of {len(keys)} others; it is damaged")
    place = stream.tell()
    for key in keys:
        place = _locate(file, size, place, storages[key])
    return value, "old layout", sum(storage.size for storage in storages.values())


def _locate(file: BinaryIO, size: int, place: int, storage: Storage) -> int:
    """Notes where a storage lies, and gives where the next one does."""
    file.seek(place)
    count = int.from_bytes(file.read(8), "little")
    if count != storage.count:
        raise JaxlmError(
            f"the storage {shown(storage.key)} holds {count:,} elements, expected {storage.count:,}; the "
            "file is damaged or cut short"
        )
    start, length = place + 8, storage.size
    _check_held(storage.key, length, size - start)

    def fetch() -> bytes:
        file.seek(start)
        data = file.read(length)
        if len(data) < length:
            raise JaxlmError(f"the storage {shown(storage.key)} is cut short")
        return data

    storage.fetch = fetch
    return start + length


def _claims(identifier: Any) -> tuple[str, str, int]:
    """(kind, key, number of elements) of a storage's persistent id."""
    if not isinstance(identifier, tuple) or not 5 <= len(identifier) <= 6 or identifier[0] != "storage":
        raise JaxlmError("its pickle refers to something outside itself that is not a storage")
    _, kind, key, _, count = identifier[:5]
    if not isinstance(key, str):
        raise JaxlmError("the key of a storage is not a string")
    return storage_kind(kind), key, natural(count, f"the length of the storage {shown(key)}")


def _check_held(key: str, claimed: int, held: int) -> None:
    if claimed > held:
        raise JaxlmError(
            f"the storage {shown(key)} claims {claimed:,} bytes, and the file holds {max(held, 0):,} for "
            "it; it is cut short or damaged"
        )


def _same(view: View, kind: str, count: int) -> View:
    if (view.storage.kind, view.count) != (kind, count):
        raise JaxlmError(f"the storage {shown(view.storage.key)} is described in two ways")
    return view


def _part(whole: View, part: Any) -> View:
    """The view of a storage that old files describe as (its key, offset, length)."""
    if not isinstance(part, tuple) or len(part) != 3 or not isinstance(part[0], str):
        raise JaxlmError(f"the view of the storage {shown(whole.storage.key)} is damaged")
    start, count = natural(part[1], "the offset of a storage"), natural(part[2], "the length of a storage")
    if start + count > whole.count:
        raise JaxlmError(
            f"a view of the storage {shown(whole.storage.key)} ends at element {start + count:,} of {whole.count:,}"
        )
    return View(whole.storage, start, count)
