"""Text files: find the files of each split, and read them in pieces."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxlm.base import files
from jaxlm.base.errors import DataError
from jaxlm.base.fields import checked_value
from jaxlm.base.terminal import is_terminal, say

SPLITS: tuple[str, ...] = ("train", "valid", "test")
MAX_UNBROKEN = 64 << 20  # bytes without white space that still pass for text
BLOCK = 1 << 20  # bytes that are read at once
BAR_BYTES = 4 << 20  # progress is shown of a file that has so many
BY_BYTES = ("enwik8", "text8")  # files whose splits are 90, 5 and 5% of their bytes
LEAST_TEXTS = 20  # with so many texts, whole texts are held out
LONGEST_LINE = 1 << 24  # bytes
READ = 1 << 16  # bytes at a time: what a pipe holds
EXACT = "surrogateescape"  # how bytes are decoded, so that encoding gives every byte back
_WHITE_SPACE = (b" ", b"\n", b"\t")
_SPLIT_OF = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
_SPLIT_OF_FILE = {
    f"{prefix}{name}{suffix}": split
    for prefix in ("", "ptb.", "wiki.")
    for name, split in _SPLIT_OF.items()
    for suffix in ("", ".txt", ".tokens", ".raw")
}

Stamp = list[Any]  # [absolute path, bytes, time of modification in ns, time of change in ns]


class FilePart(NamedTuple):
    """A UTF-8 file or a pipe, or a part of one.

    Attributes:
        path: The file.
        start: The first byte.
        stop: The byte behind the last one; None for the end of the file.
        joined: Whether the part is one of several texts, each of which ends with a newline.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    joined: bool = False

    def blocks(self, errors: str = "strict") -> Iterator[str]:
        """Yields the text in pieces of about `BLOCK` bytes, cut before white space.

        Args:
            errors: What becomes of bytes that are not UTF-8, as in `bytes.decode`. With `EXACT` a
                byte order mark is kept too.

        Raises:
            DataError: The path is no regular file that can be read, or the file is binary, not
                UTF-8, or has more than `MAX_UNBROKEN` bytes without white space.
        """
        rest = b""
        place = self.start  # of the first byte of `rest`
        with read_errors(self.path), files.reader(self.path) as opened, _with_bar(opened) as file:
            if self.start:  # a pipe cannot seek, not even to its beginning
                file.seek(self.start)
            while True:
                size = BLOCK if self.stop is None else min(BLOCK, self.stop - place - len(rest))
                data = file.read(size)
                if not data:
                    break
                # Before more is read: the holes of a sparse file may be zeros without an end.
                check_no_zero_byte(data, self.path, place + len(rest))
                rest += data
                last_space = max(rest.rfind(space) for space in _WHITE_SPACE)
                cut = len(rest[: last_space + 1].rstrip(b" \t\r\n"))
                if cut:
                    yield decode(rest[:cut], self.path, place, errors)
                    rest = rest[cut:]
                    place += cut
                elif len(rest) > MAX_UNBROKEN:
                    raise DataError(
                        f"{self.path} has {len(rest):,} bytes in a row without a space or a "
                        "newline: give text"
                    )
            if rest:
                yield decode(rest, self.path, place, errors)


@contextmanager
def _with_bar(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file; of a large one a terminal shows how much is read."""
    size = os.fstat(file.fileno()).st_size
    if size < BAR_BYTES or not is_terminal(sys.stderr):
        yield file
        return
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    with wrap_file(file, size, description="reading", console=console, transient=True) as shown:
        yield shown


def stamp(path: Path) -> Stamp:
    """Identifies a file and its state without reading it.

    Raises:
        DataError: The path is no regular file, or cannot be opened.
    """
    with read_errors(path), files.reader(path) as file:
        status = os.fstat(file.fileno())
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def unchanged(paths: Sequence[Path]) -> Iterator[None]:
    """Checks that some files stay as they are while the block reads them.

    Raises:
        DataError: A file has changed meanwhile, or cannot be opened.
    """
    stamps = [stamp(path) for path in paths]
    yield
    for path, before in zip(paths, stamps, strict=True):
        if stamp(path) != before:
            raise DataError(f"{path} changed while it was read: start the same command again")


def read_string(path: str | Path, errors: str = "strict") -> str:
    """Reads a UTF-8 file whole.

    Args:
        path: The file, or a pipe.
        errors: What becomes of bytes that are not UTF-8 (`FilePart.blocks`).

    Raises:
        DataError: The file has no word, or cannot be read (`FilePart.blocks`).
    """
    text = "".join(FilePart(Path(path)).blocks(errors))
    if not text.strip():
        raise empty(path)
    return text


def decode(
    data: bytes,
    path: str | Path,
    start: int = 0,
    errors: str = "strict",
) -> str:
    """Decodes a part of a UTF-8 file, without a byte order mark at the file's beginning.

    Args:
        data: The bytes of the part.
        path: The file, for the error.
        start: The place of the part's first byte in the file.
        errors: As in `bytes.decode`. With `EXACT` the byte order mark is kept.

    Raises:
        DataError: The bytes are not UTF-8, or one is zero.
    """
    check_no_zero_byte(data, path, start)
    try:
        text = data.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {start + error.start} (0x{data[error.start]:02x}) cannot "
            "be decoded; convert it"
        ) from None
    if start or errors == EXACT:
        return text
    return text.removeprefix("\ufeff")


def check_no_zero_byte(
    data: bytes,
    path: str | Path,
    start: int = 0,
) -> None:
    """Checks that a part of a file holds no zero byte, as binary files do.

    Args:
        data: The bytes of the part.
        path: The file, for the error.
        start: The place of the part's first byte in the file.

    Raises:
        DataError: A byte is zero.
    """
    zero = data.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{path} is not text: byte {start + zero} is zero, as in binary files; "
            "give text in UTF-8"
        )


def empty(path: str | Path) -> DataError:
    """The error for a file without a word."""
    return DataError(f"{path} is empty; give a file with some text")


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Converts any failure to open or read `path` into a DataError of one sentence."""
    with files.explained(DataError, f"{path} cannot be read"):
        try:
            yield
        except FileNotFoundError:
            raise DataError(f"there is no file {path}; check the path") from None


def source(path: str | Path) -> str:
    """The name of a text in errors, of which "-" is standard input."""
    if str(path) == "-":
        return "standard input"
    return str(path)


def lines_of(path: str | Path, longest: int = LONGEST_LINE) -> Iterator[list[str]]:
    """The lines of a text as they come, with their ends, in constant memory.

    A line ends with LF, CR LF or CR.

    Args:
        path: A regular file, or "-" for standard input.
        longest: Most bytes of a line.

    Yields:
        The lines that one read of at most 64 KiB ends.

    Raises:
        DataError: There is no such text, or it is empty, not UTF-8, binary, or has too long a line.
    """
    name = source(checked_value("a file of lines", path, Path))
    rest = bytearray()
    done = 0

    def decoded(lines: list[bytearray]) -> list[str]:
        return [
            decode(bytes(line), f"{name}, line {number}")
            for number, line in enumerate(lines, done + 1)
        ]

    if str(path) == "-" and sys.stdin is None:
        raise DataError("standard input is closed: name a file, or use a pipe")
    if str(path) == "-" and is_terminal(sys.stdin):
        say("reading standard input until its end (Ctrl-D)", file=sys.stderr)
    with (
        read_errors(name),
        nullcontext(sys.stdin.buffer) if str(path) == "-" else files.reader(path) as file,
    ):
        read = getattr(file, "read1", file.read)  # what can be read now, at most
        while chunk := read(READ):
            rest += chunk
            # A text without LF is cut too.
            if b"\n" in chunk or (len(rest) > READ and b"\r" in chunk[:-1]):
                lines = rest.splitlines(keepends=True)
                rest = bytearray()
                if not lines[-1].endswith(b"\n"):
                    rest = lines.pop()
                yield decoded(lines)
                done += len(lines)
            if len(rest) > longest:
                raise DataError(
                    f"{name}, line {done + 1} is longer than {longest:,} bytes: give lines of text"
                )
    if rest.strip():
        yield decoded(rest.splitlines(keepends=True))
    elif not done:
        raise DataError(f"{name} is empty: expected lines of text")


def find_splits(path: Path) -> dict[str, list[FilePart]]:
    """Finds the files of each split.

    - A folder with `train.txt`, `ptb.valid.txt`, `wiki.test.tokens`, `dev` and the like holds one
      file for each split.
    - All files of another folder, or of a pattern such as `texts/*.txt`, are texts, in the order
      of their names; so are `LEAST_TEXTS` files of which one happens to be called `test`. Hidden
      files are left out, and so is all that belongs to a run, a sweep or a prepared corpus.
    - From `LEAST_TEXTS` texts on, of each 20 the 19th is valid and the 20th test. Fewer texts, and
      a single file, are to be split by lines.
    - Files of the names `BY_BYTES` are split 90/5/5 by bytes, as published (Mahoney 2011).

    Returns:
        The parts of each split; or of "all", to be split by lines.

    Raises:
        DataError: There is no file, the folder cannot be read, or some splits are there but not
            each once.
    """
    if os.path.isdir(path):
        with files.explained(DataError, f"the folder {path} cannot be read"):
            names = [entry.name for entry in os.scandir(path) if not entry.is_dir()]
        names = sorted(name for name in names if name in _SPLIT_OF_FILE)
        if sorted(_SPLIT_OF_FILE[name] for name in names) == sorted(SPLITS):
            return _one_file_each(path, names)
        texts = _texts_below(path)
        if not texts or (names and len(texts) < LEAST_TEXTS):
            return _one_file_each(path, names)
    elif os.path.exists(path):
        if path.name in BY_BYTES:
            return by_bytes(path)
        texts = [path]
    else:
        matches = [Path(match) for match in glob(str(path), recursive=True)]
        texts = sorted(match for match in matches if match.is_file()) or [path]
    parts = [FilePart(text, joined=len(texts) > 1) for text in texts]
    if len(parts) < LEAST_TEXTS:
        return {"all": parts}
    train = [part for place, part in enumerate(parts) if place % 20 < 18]
    return {"train": train, "valid": parts[18::20], "test": parts[19::20]}


def _texts_below(folder: Path) -> list[Path]:
    """The files below a folder, except hidden ones and those of runs, sweeps and corpora."""
    entries = [path for path in folder.rglob("*") if "/." not in f"/{path.relative_to(folder)}"]
    owned = {path.parent for path in entries if path.name in files.OWNERS}
    if folder in owned:  # a run lies beside texts, or a text is called as a file of a run
        owned.remove(folder)
        owned.update(folder / name for name in files.OWNED)
    return sorted(
        path for path in entries if path.is_file() and owned.isdisjoint((path, *path.parents))
    )


def _one_file_each(folder: Path, names: Sequence[str]) -> dict[str, list[FilePart]]:
    """The file of each split among the `names` of a folder.

    Raises DataError where a split has no file, or several.
    """
    splits = {}
    for split in SPLITS:
        candidates = [name for name in names if _SPLIT_OF_FILE[name] == split]
        if len(candidates) != 1:
            reason = f"none; add one, such as {split}.txt"
            if candidates:
                reason = f"{' and '.join(candidates)}; keep one"
            raise DataError(f"the folder {folder} should hold one {split} text, and holds {reason}")
        splits[split] = [FilePart(folder / candidates[0])]
    return splits


def by_bytes(path: Path) -> dict[str, list[FilePart]]:
    """Splits a file by its bytes, 90/5/5, between characters.

    Raises:
        DataError: The file cannot be read.
    """
    borders = [0]
    with read_errors(path), files.reader(path) as file:
        size = os.path.getsize(path)
        for percent in (90, 95):
            border = file.seek(size * percent // 100)
            for byte in file.read(4):
                if byte & 0xC0 != 0x80:  # the first byte of a character
                    break
                border += 1
            borders.append(border)
    spans = zip(SPLITS, pairwise([*borders, size]), strict=True)
    return {split: [FilePart(path, start, stop)] for split, (start, stop) in spans}
