"""Text files: find the file of each split, and read it in pieces."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm import files
from jaxlm.errors import DataError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
MAX_UNBROKEN = 64 << 20  # bytes without white space that still pass for text
BLOCK = 1 << 20  # bytes that are read at once
_WHITE_SPACE = (b" ", b"\n", b"\t")
_FILE_NAMES = {
    prefix + name + suffix: split
    for prefix in ("", "ptb.", "wiki.")
    for name, split in (*zip(SPLITS, SPLITS, strict=True), ("validation", "valid"), ("dev", "valid"))
    for suffix in ("", ".txt", ".tokens", ".raw")
}


def read_string(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises DataError where it has no word, or as `read_blocks`."""
    text = "".join(block for block, _ in read_blocks(path))
    if not text.strip():
        raise empty(path)
    return text


def read_blocks(path: str | Path, offset: int = 0) -> Iterator[tuple[str, int]]:
    """Yields a UTF-8 file from byte `offset` on: pieces of about `BLOCK` bytes, cut behind white space, and their ends.

    Raises:
        DataError: The path is no regular file that can be read, or it is binary, is not UTF-8, or has `MAX_UNBROKEN`
            bytes without white space. The message names the file and any offending byte.
    """
    rest = b""
    with read_errors(path), files.reader(path) as file:
        if offset:  # (a pipe has no other place than its beginning)
            file.seek(offset)
        while data := file.read(BLOCK):
            check_no_zero_byte(data, path, offset + len(rest))  # at once: the holes of a sparse file are zeros
            rest += data
            if cut := max(rest.rfind(space) for space in _WHITE_SPACE) + 1:
                yield decode(rest[:cut], path, offset), offset + cut
                rest, offset = rest[cut:], offset + cut
            elif len(rest) > MAX_UNBROKEN:
                raise DataError(f"{path} has {len(rest):,} bytes in a row without a space or a newline: give text")
        if rest:
            yield decode(rest, path, offset), offset + len(rest)


def decode(data: bytes, path: str | Path, start: int = 0) -> str:
    """The text of a part of a file that begins at byte `start`. Raises DataError where it is binary or not UTF-8."""
    check_no_zero_byte(data, path, start)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {start + error.start} (0x{data[error.start]:02x}) cannot be decoded "
            f"({error.reason}); convert it to UTF-8"
        ) from None
    return text if start else text.removeprefix("\ufeff")


def check_no_zero_byte(data: bytes, path: str | Path, start: int = 0) -> None:
    """Raises DataError if a part of a file that begins at byte `start` holds a zero byte, as binary files do."""
    if (zero := data.find(b"\0")) >= 0:
        raise DataError(f"{path} is not text: byte {start + zero} is zero, as in binary files; give text in UTF-8")


def empty(path: str | Path) -> DataError:
    """The error for a file without a word."""
    return DataError(f"{path} is empty; give a file with some text")


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Converts any failure to open or read `path` into a DataError of one sentence."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"{path} cannot be read: {files.reason(error)}") from None


def find_splits(path: Path) -> dict[str, Path]:
    """The text file of each split in a folder, such as `train.txt`, `ptb.valid.txt`, `wiki.test.tokens` or `dev`.

    Returns {"all": path} for a path that is not a folder. Raises DataError where the folder cannot be read, or a split
    has no file or more than one.
    """
    if not os.path.isdir(path):
        return {"all": path}
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.name in _FILE_NAMES and not entry.is_dir())
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror}") from None
    splits: dict[str, Path] = {}
    for split in SPLITS:
        found = [name for name in names if _FILE_NAMES[name] == split]
        if len(found) != 1:
            what = f"{' and '.join(found)}; keep one" if found else f"none; add one, such as {split}.txt"
            raise DataError(f"the folder {path} should hold one {split} text, and holds {what}")
        splits[split] = path / found[0]
    return splits
