"""Text files: find the file of each split, and read it in pieces."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from jaxlm import files
from jaxlm.errors import DataError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
MAX_UNBROKEN = 64 << 20  # bytes without white space that still pass for text
BLOCK = 1 << 20  # bytes that are read at once
_WHITE_SPACE = (b" ", b"\n", b"\t")
BY_BYTES = ("enwik8", "text8")  # files whose splits are 90, 5 and 5% of their bytes
LEAST_TEXTS = 20  # from which on whole texts are held out
_FILE_NAMES = {
    prefix + name + suffix: split
    for prefix in ("", "ptb.", "wiki.")
    for name, split in (
        *zip(SPLITS, SPLITS, strict=True),
        ("validation", "valid"),
        ("dev", "valid"),
    )
    for suffix in ("", ".txt", ".tokens", ".raw")
}


class FilePart(NamedTuple):
    """A part of a file, in bytes; `joined` to other files, it ends with a newline."""

    path: Path
    start: int = 0
    stop: int | None = None
    joined: bool = False


Parts = Mapping[str, Sequence[FilePart]]  # of each split; or of "all", to be split


def read_string(path: str | Path, errors: str = "strict") -> str:
    """The text of a UTF-8 file. Raises DataError where it has no word, or as `read_blocks`."""
    text = "".join(block for block, _ in read_blocks(path, errors=errors))
    if not text.strip():
        raise empty(path)
    return text


def read_blocks(
    path: str | Path, offset: int = 0, stop: int | None = None, errors: str = "strict"
) -> Iterator[tuple[str, int]]:
    """Yields a UTF-8 file from byte `offset` on: pieces of about `BLOCK` bytes, cut before white space, and their ends.

    `errors` says what becomes of bytes that are not UTF-8, as in `bytes.decode`. Raises DataError where the path is no
    regular file that can be read, or the file is binary, not UTF-8, or has `MAX_UNBROKEN` bytes without white space.
    """
    rest = b""
    with read_errors(path), files.reader(path) as file:
        if offset:  # (a pipe has no other place than its beginning)
            file.seek(offset)
        while data := file.read(BLOCK if stop is None else min(BLOCK, stop - offset - len(rest))):
            check_no_zero_byte(
                data, path, offset + len(rest)
            )  # at once: the holes of a sparse file are zeros
            rest += data
            last = max(rest.rfind(space) for space in _WHITE_SPACE) + 1
            cut = len(rest[:last].rstrip(b" \t\r\n"))
            if cut:
                yield decode(rest[:cut], path, offset, errors), offset + cut
                rest = rest[cut:]
                offset = offset + cut
            elif len(rest) > MAX_UNBROKEN:
                raise DataError(
                    f"{path} has {len(rest):,} bytes in a row without a space or a newline: give text"
                )
        if rest:
            yield decode(rest, path, offset, errors), offset + len(rest)


def decode(data: bytes, path: str | Path, start: int = 0, errors: str = "strict") -> str:
    """The text of a part of a file that begins at byte `start`. Raises DataError where it is not UTF-8."""
    check_no_zero_byte(data, path, start)
    try:
        text = data.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {start + error.start} (0x{data[error.start]:02x}) cannot be decoded; convert it"
        ) from None
    if start:
        return text
    return text.removeprefix("\ufeff")


def check_no_zero_byte(data: bytes, path: str | Path, start: int = 0) -> None:
    """Raises DataError if a part of a file that begins at byte `start` holds a zero byte, as binary files do."""
    zero = data.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{path} is not text: byte {start + zero} is zero, as in binary files; give text in UTF-8"
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


def find_splits(path: Path) -> dict[str, list[FilePart]]:
    """The files of each split: in a folder such as `train.txt`, `ptb.valid.txt`, `wiki.test.tokens` or `dev`.

    Of another folder, or a pattern such as `texts/*.txt`, all files are texts, in the order of their names; hidden ones
    and those of a run, a sweep or a prepared corpus below the folder are left out. From `LEAST_TEXTS` on, of each 20
    the 19th is valid, the 20th test. Fewer, and a file, are {"all": files}. `BY_BYTES` are split by their published
    protocol, 90/5/5 million bytes (Mahoney 2011).

    Raises DataError where there is no file, the folder cannot be read, or some split is there, and not each once.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        if path.name in BY_BYTES:
            return stretches(path)
        return {"all": [FilePart(path)]}
    try:
        names = sorted(
            entry.name
            for entry in os.scandir(path)
            if entry.name in _FILE_NAMES and not entry.is_dir()
        )
        every = [] if names else [*path.rglob("*")]
        ours = {
            one.parent for one in every if one.name in (*files.OWNERS, ".partial")
        }  # (of an unfinished corpus)
        shown = (
            one
            for one in every
            if "/." not in f"/{one.relative_to(path)}" and ours.isdisjoint(one.parents)
        )
        texts = sorted(one for one in shown if one.is_file())
    except FileNotFoundError:
        found = [Path(found) for found in glob(str(path), recursive=True) if os.path.isfile(found)]
        names = []
        texts = sorted(found) or [path]
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror}") from None
    if texts:
        parts = [FilePart(found, joined=len(texts) > 1) for found in texts]
        if len(parts) < LEAST_TEXTS:
            return {"all": parts}
        train = [part for place, part in enumerate(parts) if place % 20 < 18]
        return dict(zip(SPLITS, (train, parts[18::20], parts[19::20]), strict=True))
    splits: dict[str, list[FilePart]] = {}
    for split in SPLITS:
        found = [name for name in names if _FILE_NAMES[name] == split]
        if len(found) != 1:
            what = (
                f"{' and '.join(found)}; keep one"
                if found
                else f"none; add one, such as {split}.txt"
            )
            raise DataError(f"the folder {path} should hold one {split} text, and holds {what}")
        splits[split] = [FilePart(path / found[0])]
    return splits


def stretches(path: Path) -> dict[str, list[FilePart]]:
    """The splits of a file by its bytes, 90/5/5, cut between characters. Raises DataError where it cannot be read."""
    with read_errors(path), files.reader(path) as file:
        borders = [0]
        size = os.path.getsize(path)
        for percent in (90, 95):
            at = file.seek(size * percent // 100)
            borders.append(
                at + next((n for n, byte in enumerate(file.read(4)) if byte & 0xC0 != 0x80), 0)
            )
    return {
        split: [FilePart(path, *span)]
        for split, span in zip(SPLITS, pairwise([*borders, size]), strict=True)
    }
