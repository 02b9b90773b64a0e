"""One resumable pass over a text of any size: provisional ids, in files, and the distinct words, in memory.

A word's provisional id is its place in the order of first occurrence, with `<eos>` as 0. The working folder holds

    ids           provisional ids so far, little-endian int32
    words         the distinct words so far but `<eos>`, one a line
    journal.json  the last position of which everything is on the disk, and the hashes of both files up to there

so that a process killed at any moment and started again resumes from the journal and ends with the same bytes.
"""

import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data import text
from jaxlm.data.vocab import EOS
from jaxlm.errors import DataError
from jaxlm.files import Folder, reader, seal, unseal

JOURNAL_INTERVAL = 64 << 20  # bytes of text between two records of the position
MAX_UNBROKEN = 64 << 20  # bytes without white space that still pass for text
IDS, WORDS, JOURNAL = "ids", "words", "journal.json"
PROVISIONAL = np.dtype("<i4")
_MAX_JOURNAL = 1 << 20  # bytes
_WHITE_SPACE = (b" ", b"\n", b"\t")

Stamp = list[Any]  # [absolute path, bytes, time of change in ns]


@dataclass
class _Position:
    """How far the pass has come."""

    ids: int = 0  # provisional ids written
    words: int = 0  # bytes of words written
    offset: int = 0  # byte of the present file
    ends: list[int] = field(default_factory=list)  # ids up to the end of each finished file
    lines: int = 0  # ended by a newline
    ended: bool = True  # the last token ended a line
    blank: bool = True  # the present file has had no word yet
    ids_sha256: str = ""
    words_sha256: str = ""


@dataclass(frozen=True)
class Ingested:
    """What the pass found: the words by provisional id, the ids up to the end of each file, and all lines."""

    words: list[str]
    ends: list[int]
    lines: int


def stamp(path: Path) -> Stamp:
    """What identifies a text and its state without reading it: absolute path, bytes, time of change.

    Raises:
        DataError: It is missing or not a regular file, so that no position in it could be resumed.
    """
    with text.read_errors(path), reader(path) as file:
        status = os.fstat(file.fileno())
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def ingest(paths: Sequence[Path], stamps: Sequence[Stamp], work: Folder, advance: Callable[[int], None]) -> Ingested:
    """Reads the files in order, or resumes the pass that `work` holds of the same files in the same state.

    Args:
        paths: The text files.
        stamps: The `stamp` of each.
        work: The working folder, which nothing else writes in.
        advance: Called with the number of bytes just read, for a progress bar.

    Returns:
        The words by provisional id, the number of ids at the end of each file, and the number of lines.

    Raises:
        DataError: A file is not text, is empty, or changed while it was read.
        OSError: `work` cannot be written.
    """
    at, words, (ids_digest, words_digest) = _resume(stamps, work)
    with (
        _Output(work, IDS, at.ids * PROVISIONAL.itemsize, ids_digest) as ids_out,
        _Output(work, WORDS, at.words, words_digest) as words_out,
    ):
        known: defaultdict[str, int] = defaultdict()
        known[EOS] = 0  # wherever it first occurs
        known.update((word, place) for place, word in enumerate(words, 1))
        known.default_factory = known.__len__  # a new word's id is its place
        advance(sum(size for _, size, _ in stamps[: len(at.ends)]) + at.offset)

        def record() -> None:
            at.ids_sha256, at.words_sha256 = ids_out.sync(), words_out.sync()
            work.write(JOURNAL, seal({**asdict(at), "text": list(stamps)}).encode())

        for path, expected in list(zip(paths, stamps, strict=True))[len(at.ends) :]:
            recorded = at.offset
            for data in _blocks(path, at.offset):
                decoded = text.decode(data, path, at.offset)
                at.blank = at.blank and not decoded.strip()
                tokens, before = text.normalize_newlines(decoded).replace("\n", f" {EOS} ").split(), len(known)
                ids = np.fromiter(map(known.__getitem__, tokens), PROVISIONAL, len(tokens))
                new = list(islice(reversed(known), len(known) - before))
                at.words += words_out.write("".join(f"{word}\n" for word in reversed(new)).encode())
                at.ids += ids_out.write(ids.tobytes()) // PROVISIONAL.itemsize
                at.lines += int(np.count_nonzero(ids == 0))
                at.ended = bool(ids[-1] == 0) if len(ids) else at.ended
                at.offset += len(data)
                advance(len(data))
                if at.offset - recorded >= JOURNAL_INTERVAL:
                    record()
                    recorded = at.offset
            if at.blank:
                raise DataError(f"{path} is empty; give a file with some text")
            if stamp(path) != expected:
                raise DataError(f"{path} changed while it was read: start the same command again")
            at.ends, at.offset, at.blank = [*at.ends, at.ids], 0, True
            record()
    return Ingested(list(known), at.ends, at.lines + (not at.ended))


def read_ids(work: Folder, start: int, stop: int, words: int) -> Iterator[np.ndarray]:
    """Provisional ids [start, stop), a block at a time.

    Raises:
        DataError: An id is outside [0, words), or the file is too short: it was altered while it was in use.
    """
    with work.reader(IDS) as file:
        file.seek(start * PROVISIONAL.itemsize)
        for at in range(start, stop, text.BLOCK):
            count = min(text.BLOCK, stop - at)
            ids = np.frombuffer(file.read(count * PROVISIONAL.itemsize), PROVISIONAL)
            if len(ids) < count or ids.min() < 0 or ids.max() >= words:
                raise DataError(
                    f"{work.path / IDS} was altered while it was in use: remove {work.path}, and start "
                    "the same command again"
                )
            yield ids


def line_ends(work: Folder, total: int, words: int, *lines: int) -> Iterator[int]:
    """How many of the `total` ids there are up to the end of each of these lines (counted from 1, ascending)."""
    tokens = seen = 0
    wanted = list(lines)
    for block in read_ids(work, 0, total, words):
        ends = np.flatnonzero(block == 0)
        while wanted and wanted[0] <= seen + len(ends):
            yield tokens + int(ends[wanted.pop(0) - seen - 1]) + 1
        tokens, seen = tokens + len(block), seen + len(ends)


class _Output:
    """A file of the working folder that grows, and the hash of all its bytes."""

    def __init__(self, work: Folder, name: str, size: int, digest: "hashlib._Hash"):
        """Opens it, and cuts off what is beyond its first `size` bytes, whose hash `digest` is: it was not recorded."""
        self._file = work.append(name)
        self._file.truncate(size)
        self._digest = digest

    def write(self, data: bytes) -> int:
        """Appends; returns the number of bytes."""
        self._digest.update(data)
        self._file.write(data)
        return len(data)

    def sync(self) -> str:
        """Waits until all is on the disk; returns its hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _resume(stamps: Sequence[Stamp], work: Folder) -> tuple[_Position, list[str], list["hashlib._Hash"]]:
    """The recorded position, the words up to there, and the hash of each file up to there.

    It is the beginning where nothing is recorded of this text in this state, or where a file is not what it was.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):
        tree = unseal(work.read(JOURNAL, _MAX_JOURNAL))
        if tree.pop("text", None) == list(stamps) and _consistent(at := _Position(**tree), stamps):
            digests = [_prefix_digest(work, IDS, at.ids * PROVISIONAL.itemsize), _prefix_digest(work, WORDS, at.words)]
            if [digest.hexdigest() for digest in digests] == [at.ids_sha256, at.words_sha256]:
                with work.reader(WORDS) as file:
                    return at, file.read(at.words).decode().split("\n")[:-1], digests
    return _Position(), [], [hashlib.sha256(), hashlib.sha256()]


def _consistent(at: _Position, stamps: Sequence[Stamp]) -> bool:
    """Whether a position could be one of these files."""
    counts = [0, *at.ends, at.ids]
    size = stamps[len(at.ends)][1] if len(at.ends) < len(stamps) else 0
    total = sum(size for _, size, _ in stamps)  # a token has a byte or more, and no word is recorded twice
    return (
        all(type(count) is int and count >= 0 for count in (*counts, at.words, at.offset, at.lines))
        and counts == sorted(counts)
        and len(at.ends) <= len(stamps)
        and at.offset <= size
        and at.ids <= total
        and at.words <= 2 * total
    )


def _prefix_digest(work: Folder, name: str, size: int) -> "hashlib._Hash":
    """The hash of a file's first `size` bytes. Raises ValueError if it has fewer."""
    digest = hashlib.sha256()
    with work.reader(name) as file:
        while data := file.read(min(size, 1 << 20)):
            digest.update(data)
            size -= len(data)
    if size:
        raise ValueError(f"{work.path / name} lacks {size} bytes")
    return digest


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    """The bytes of a file from `offset` on, each block cut behind ASCII white space: inside no word and no CR LF."""
    rest = b""
    for data in text.read_blocks(path, offset):
        text.check_no_zero_byte(data, path, offset + len(rest))  # at once: the holes of a sparse file are zeros
        rest += data
        if cut := max(rest.rfind(space) for space in _WHITE_SPACE) + 1:
            yield rest[:cut]
            rest, offset = rest[cut:], offset + cut
        elif len(rest) > MAX_UNBROKEN:
            raise DataError(f"{path} has {len(rest):,} bytes in a row without a space or a newline: give text")
    if rest:
        yield rest
