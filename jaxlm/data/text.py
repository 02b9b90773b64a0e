"""Text files to tokens: find the file of each split, read it, decode it, and split it at white space."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jaxlm import files
from jaxlm.data.vocab import EOS
from jaxlm.errors import DataError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
MAX_BYTES = 4 << 30  # of a text that is read into memory, where its tokens take some four times that
BLOCK = 1 << 20  # bytes that are read at once
_FILE_NAMES = {
    prefix + name + suffix: split
    for prefix in ("", "ptb.", "wiki.")
    for name, split in (*zip(SPLITS, SPLITS, strict=True), ("validation", "valid"), ("dev", "valid"))
    for suffix in ("", ".txt", ".tokens", ".raw")
}


def read_text(path: str | Path, lowercase: bool = False) -> list[str]:
    """The tokens of a UTF-8 text file, each newline as `<eos>`.

    Args:
        path: A regular file of at most `MAX_BYTES`.
        lowercase: Whether to convert the text to lower case first.

    Returns:
        The tokens, in order.

    Raises:
        DataError: The file cannot be read, is not a regular file, is too large, is empty or binary, or is not
            UTF-8. The message names the file and, where there is one, the offending byte.
    """
    data = bytearray()
    for block in read_blocks(path):
        check_no_zero_byte(block, path, len(data))  # at once: the holes of a sparse file are zeros
        data += block
        if len(data) > MAX_BYTES:
            raise DataError(
                f"{path} has more than {MAX_BYTES:,} bytes, the most that is read into memory; "
                "convert it with `jaxlm prepare`, or give a part of it"
            )
    return tokenize(decode_whole(bytes(data), path), lowercase)


def tokenize(text: str, lowercase: bool = False) -> list[str]:
    """Splits text at white space; each newline (LF, CR LF or CR) becomes `<eos>`.

    Args:
        text: Any text.
        lowercase: Whether to convert it to lower case first.

    Returns:
        The tokens, in order.
    """
    tokens: list[str] = []
    for line in normalize_newlines(text.lower() if lowercase else text).split("\n"):
        tokens += map(sys.intern, line.split())  # one string object for each word, however long the text
        tokens.append(EOS)
    return tokens[:-1]  # n newlines make n + 1 lines


def normalize_newlines(text: str) -> str:
    """The text with every CR LF and CR replaced by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def split_lines(path: Path, lines: int) -> dict[str, int]:
    """How many lines of a single file belong to each split: train, then 5% valid, then 5% test.

    Args:
        path: The file, for the error message.
        lines: How many lines it has.

    Returns:
        {split: number of lines}; valid and test have at least one each.

    Raises:
        DataError: There are fewer than three lines.
    """
    if lines < 3:
        raise DataError(f"{path} needs at least 3 lines, to be split 90/5/5 by lines, and has {lines}")
    held_out = max(1, lines // 20)
    return {"train": lines - 2 * held_out, "valid": held_out, "test": held_out}


def split_note(path: Path, lines: Mapping[str, int]) -> str:
    """One line for the user: how a single file was split."""
    return f"{path} is split 90/5/5 by lines: {' / '.join(f'{lines[split]:,}' for split in SPLITS)}"


def read_blocks(path: str | Path, offset: int = 0) -> Iterator[bytes]:
    """The bytes of a regular file from `offset` on, at most `BLOCK` at a time.

    Raises:
        DataError: The file is missing, cannot be read, or is not a regular file.
    """
    with read_errors(path):
        file = files.reader(path)
    with file:
        file.seek(offset)
        while True:
            with read_errors(path):
                data = file.read(BLOCK)
            if not data:
                return
            yield data


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


def decode_whole(data: bytes, path: str | Path) -> str:
    """The text of a whole file, without a byte order mark.

    Raises:
        DataError: It is empty, binary, or not UTF-8.
    """
    text = decode(data, path)
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with some text")
    return text


def decode(data: bytes, path: str | Path, start: int = 0) -> str:
    """The text of a part of a file that begins at byte `start`, without a byte order mark.

    Raises:
        DataError: It is binary or not UTF-8; the message names the byte.
    """
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
