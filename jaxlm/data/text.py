"""Text files: find the file of each split, read it in pieces, and split it into tokens."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm import files
from jaxlm.data.vocab import EOS
from jaxlm.errors import DataError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
MAX_BYTES = 4 << 30  # of a text that `read_text` reads into memory, where its tokens take some four times that
MAX_UNBROKEN = 64 << 20  # bytes without white space that still pass for text
BLOCK = 1 << 20  # bytes that are read at once
_WHITE_SPACE = (b" ", b"\n", b"\t")
_FILE_NAMES = {
    prefix + name + suffix: split
    for prefix in ("", "ptb.", "wiki.")
    for name, split in (*zip(SPLITS, SPLITS, strict=True), ("validation", "valid"), ("dev", "valid"))
    for suffix in ("", ".txt", ".tokens", ".raw")
}


def tokenize(text: str, lowercase: bool = False) -> list[str]:
    """Splits text at white space; each newline (LF, CR LF or CR) becomes `<eos>`.

    Text that is cut behind white space may be tokenized piece by piece.

    Args:
        text: Any text.
        lowercase: Whether to convert it to lower case first.

    Returns:
        The tokens, in order.
    """
    return normalize_newlines(text.lower() if lowercase else text).replace("\n", f" {EOS} ").split()


def normalize_newlines(text: str) -> str:
    """The text with every CR LF and CR replaced by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, lowercase: bool = False) -> list[str]:
    """The tokens of a UTF-8 text file, each newline as `<eos>`.

    Args:
        path: A regular file of at most `MAX_BYTES`.
        lowercase: Whether to convert the text to lower case first.

    Returns:
        The tokens, in order.

    Raises:
        DataError: The file is too large or has no word, or as `read_blocks`.
    """
    tokens: list[str] = []
    for block, end in read_blocks(path):
        tokens += map(sys.intern, tokenize(block, lowercase))  # one string object for each distinct word
        if end > MAX_BYTES:
            raise DataError(
                f"{path} has more than {MAX_BYTES:,} bytes, the most that is read into memory; "
                "convert it with `jaxlm prepare`, or give a part of it"
            )
    if set(tokens) <= {EOS}:
        raise empty(path)
    return tokens


def read_string(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises DataError where it has no word, or as `read_blocks`."""
    text = "".join(block for block, _ in read_blocks(path))
    if not text.strip():
        raise empty(path)
    return text


def read_blocks(path: str | Path, offset: int = 0) -> Iterator[tuple[str, int]]:
    """The text of a UTF-8 file without a byte order mark, in pieces that are cut behind white space.

    Args:
        path: A regular file.
        offset: The byte where the first piece begins: 0, or the end of a piece.

    Yields:
        (piece, the byte where it ends); a piece is decoded from about `BLOCK` bytes.

    Raises:
        DataError: The file is missing, cannot be read, is not a regular file, is binary, is not UTF-8, or has
            `MAX_UNBROKEN` bytes without white space. The message names the file and any offending byte.
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
    """The text file of each split in a folder, found by its name.

    Args:
        path: A folder with one train, one valid and one test file (such as `train.txt`, `ptb.valid.txt`,
            `wiki.test.tokens`, or `dev`), or the path of a single file.

    Returns:
        {split: path} in the order of `SPLITS`, or {"all": path} for a path that is not a folder.

    Raises:
        DataError: The folder cannot be read, or a split has no file or more than one.
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
