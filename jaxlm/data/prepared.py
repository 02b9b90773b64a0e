"""Corpora larger than memory: text of any size becomes ids in files that are read a piece at a time.

    OUT/  prepared.json (seals the rest)  vocab.json  train.ids  valid.ids  test.ids (plain little-endian integers)

The text is read once. Words get provisional ids in the order of first sight; when all is read their counts give the
vocabulary, and the ids are translated into it block by block. Memory holds a block and the distinct words. Until then
all lies in `OUT/.partial`, with a journal of the last position that is safely on the disk: killed at any moment and
started again, it goes on from there and ends with the same bytes.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.data import corpora
from jaxlm.data.cache import cache_dir
from jaxlm.data.corpora import SPLITS, Corpus
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError

LARGE = 256 << 20  # bytes of text from which on `load_corpus` prepares it: in memory it takes some four times that
BLOCK = 1 << 20  # bytes of text, or ids, that are held at once
JOURNAL = 64 << 20  # bytes of text between two records of the position
LONGEST = 64 << 20  # bytes without white space that still pass for text
FORMAT, HEADER, PARTIAL = 1, "prepared.json", ".partial"
PROVISIONAL = np.dtype("<i4")


def prepare(text: str | Path, out: str | Path, *, max_vocab: int | None = None, min_count: int = 1,
            lowercase: bool = False, progress: bool | None = None) -> Corpus:
    """Makes the folder `out` of a text: one file, or a folder with train, valid and test text; returns its corpus.

    Ids, vocabulary and hash are those that `load_corpus` makes of the text with these options. What a process left
    unfinished in `out` is gone on with; what is finished is returned. `progress` shows a bar; None shows it on a
    terminal. Raises `DataError` where the text cannot be used, or `out` cannot be written or holds something else.
    """
    text, out = Path(text), Path(out)
    options = {"max_vocab": max_vocab, "min_count": min_count, "lowercase": lowercase}
    Vocab.build({UNK: 1}, max_size=max_vocab, min_count=min_count)  # refuses now what it would refuse at the end
    files = corpora.text_files(text)
    origin = {"text": [_stamp(path) for path in files.values()]}
    try:
        held = sorted(os.listdir(out)) if out.exists() else []
        if held and HEADER not in held and PARTIAL not in held:
            raise DataError(f"{out} is not empty (it holds {', '.join(held[:4])}): choose another folder")
        if not (out / HEADER).exists():
            with _alone(out / PARTIAL):
                if not (out / HEADER).exists():  # another process may have finished it while we waited
                    _make(text, files, origin, out, options, progress)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{out} cannot be written: {reason}; mend that, then go on with the same command") from None
    header = _header(out)
    if changed := [f"{name} {header.get(name)}, not {value}" for name, value in {**origin, **options}.items()
                   if header.get(name) != value]:
        raise DataError(f"{out} holds another corpus ({'; '.join(changed)}): choose another folder, or remove it")
    return load(out)


def prepare_in_cache(text: Path, *, max_vocab: int | None, min_count: int, lowercase: bool,
                     progress: bool | None = None) -> Corpus:
    """The corpus of a text too large for memory, from the user's cache, where it is prepared if it is not yet there.

    Its notes tell where. Another text or other options have another place.
    """
    name = corpora.text_name(text)
    stamps = [_stamp(path) for path in corpora.text_files(text).values()]
    key = hashlib.sha256(json.dumps([stamps, min_count, lowercase]).encode()).hexdigest()[:16]
    place = cache_dir() / "prepared" / name.removeprefix("text:") / key
    for folder in sorted(place.glob("*")):  # a vocabulary that no bound cut short is that of every wider bound
        with contextlib.suppress(DataError):
            header = _header(folder)
            if max_vocab is not None and not header["limited"] and header["words"] <= max_vocab:
                break
    else:
        folder = place / f"{max_vocab or 'all'}"
        prepare(text, folder, max_vocab=max_vocab, min_count=min_count, lowercase=lowercase, progress=progress)
    corpus = load(folder)
    size = sum(stamp[1] for stamp in stamps) / 1e6
    note = f"{text} has {size:,.0f} MB: its ids are kept in {folder}, and read a piece at a time"
    return replace(corpus, spec=os.path.abspath(text), notes=(*corpus.notes, note))


def load(folder: str | Path, *, max_vocab: int | None = None, min_count: int = 1, lowercase: bool = False) -> Corpus:
    """The corpus of a prepared folder, its ids memory-mapped.

    Every byte is held to its hash first. Raises `DataError` where a file is missing, shortened or altered, or where
    the options, unless they are the defaults, are not those that it was prepared with.
    """
    folder = Path(folder)
    header = _header(folder)
    for name, asked, default in (("min_count", min_count, 1), ("lowercase", lowercase, False)):
        if asked not in (default, header[name]):
            raise DataError(f"{folder} was prepared with {name} {header[name]}, not {asked}: leave that out, or "
                            f"prepare the text again in another folder")
    if max_vocab is not None and header["words"] > max_vocab:
        raise DataError(f"{folder} was prepared with {header['words']:,} words, more than the vocabulary size "
                        f"{max_vocab:,}: raise that, or prepare the text again in another folder")
    for name, (size, sha256) in header["files"].items():
        with corpora.readable(folder / name), open(folder / name, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            whole = found == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if not whole:
            what = f"it has {found:,} bytes, not {size:,}" if found != size else "its content is not what was prepared"
            raise DataError(f"{folder / name} is damaged: {what}; remove {folder} and prepare the text again")
    ids = {split: np.memmap(folder / f"{split}.ids", np.dtype(header["dtype"]), "r") for split in SPLITS}
    return Corpus(
        name=header["name"],
        description=header["description"],
        vocab=Vocab.from_json((folder / "vocab.json").read_text(encoding="utf-8")),
        train=ids["train"],
        valid=ids["valid"],
        test=ids["test"],
        sha256=header["corpus_sha256"],
        notes=tuple(header["notes"]),
        spec=os.path.abspath(folder),
        options={name: header[name] for name in ("min_count", "lowercase")},
    )


def is_prepared(folder: str | Path) -> bool:
    """Whether a path is a folder that `prepare` made, or began to make."""
    return any(os.path.exists(os.path.join(folder, name)) for name in (HEADER, PARTIAL))


def is_large(text: str | Path) -> bool:
    """Whether a path is that of text with more than `LARGE` bytes."""
    paths = filter(os.path.isfile, corpora.text_files(Path(text)).values())
    return sum(map(os.path.getsize, paths)) > LARGE


def _make(text: Path, files: Mapping[str, Path], origin: dict[str, Any], out: Path, options: dict[str, Any],
          progress: bool | None) -> None:
    """The whole work, in `out/.partial`; `out` itself gets its files by renames, the header last."""
    scratch = out / PARTIAL
    with _bar(f"reading {text}", sum(stamp[1] for stamp in origin["text"]), progress) as told:
        words, ends, lines = _read(files, origin, scratch, told)
    notes = []
    if "all" in files:
        split = corpora.line_counts(text, lines)
        notes.append(corpora.split_note(text, split))
        ends = [*_line_ends(scratch / "ids", split["train"], split["train"] + split["valid"]), *ends]
    spans = dict(zip(SPLITS, pairwise([0, *ends]), strict=True))

    totals = np.zeros(len(words), np.int64)
    for block in _ids(scratch / "ids", *spans["train"]):
        totals += np.bincount(block, minlength=len(words))
    if options["lowercase"]:
        words = [word.lower() for word in words]
    counts: Counter[str] = Counter()
    for word, total in zip(words, totals.tolist(), strict=True):
        if total:  # the others are in valid or test alone
            counts[word] += total
    vocab = Vocab.build(counts, max_size=options["max_vocab"], min_count=options["min_count"])
    name = corpora.named(corpora.text_name(text), counts, **options)
    limited = name != corpora.named(corpora.text_name(text), counts, **{**options, "max_vocab": None})

    dtype = np.dtype("<u2" if len(vocab) <= 1 << 16 else "<i4")
    table, unk = vocab.encode(words), vocab.unk
    sealed: dict[str, tuple[int, str]] = {}
    sizes = {split: stop - start for split, (start, stop) in spans.items()}
    unknown: dict[str, int] = dict.fromkeys(SPLITS, 0)
    digest = hashlib.sha256(vocab.sha256.encode())  # as `corpora` computes it
    with _bar(f"writing {out}", sum(sizes.values()), progress) as told:
        for split, span in spans.items():
            digest.update(f" {split} {sizes[split]} ".encode())
            sha256 = hashlib.sha256()
            with open(scratch / f"{split}.ids", "wb") as file:
                for block in _ids(scratch / "ids", *span):
                    ids = table[block]
                    unknown[split] += int(np.count_nonzero(ids == unk))
                    digest.update(ids.astype("<i4").tobytes())
                    sha256.update(data := ids.astype(dtype).tobytes())
                    file.write(data)
                    told(len(ids))
                _sync(file)
            sealed[f"{split}.ids"] = sizes[split] * dtype.itemsize, sha256.hexdigest()
    _write(scratch / "vocab.json", data := vocab.to_json().encode())
    sealed["vocab.json"] = len(data), hashlib.sha256(data).hexdigest()
    header = {"format": FORMAT, "name": name, "notes": notes, **origin, **options, "limited": limited,
              "description": corpora.described(f"text in {text}", sizes, unknown, vocab),
              "words": len(vocab), "dtype": dtype.str, "files": sealed, "corpus_sha256": digest.hexdigest()}
    for file_name in sealed:
        os.replace(scratch / file_name, out / file_name)
    _write(out / HEADER, _seal(header).encode())


def _read(files: Mapping[str, Path], origin: dict[str, Any], scratch: Path, told: Callable[[int], None]
          ) -> tuple[list[str], list[int], int]:
    """The one pass over the text: provisional ids go to `ids`, new words to `words`.

    Returns the words, by provisional id; how many ids there are up to the end of each file; and the lines of all.
    """
    at = _resume(origin, scratch)
    with open(scratch / "ids", "ab") as ids_file, open(scratch / "words", "ab") as words_file:
        ids_file.truncate(at["ids"] * PROVISIONAL.itemsize)
        words_file.truncate(at["words"])
        known: defaultdict[str, int] = defaultdict()
        known[EOS] = 0  # wherever it is first seen
        known.update((word, place) for place, word in enumerate(_words(scratch), 1))
        known.default_factory = known.__len__  # a new word's id is its place
        told(sum(stamp[1] for stamp in origin["text"][: len(at["ends"])]) + at["offset"])

        def record() -> None:
            _sync(ids_file)
            _sync(words_file)
            at["words"] = os.fstat(words_file.fileno()).st_size
            _write(scratch / "journal.json", _seal({**at, **origin}).encode())

        for path, stamp in list(zip(files.values(), origin["text"], strict=True))[len(at["ends"]) :]:
            recorded = at["offset"]
            for data in _blocks(path, at["offset"]):
                text = corpora.decoded(data, path, at["offset"])
                at["blank"] = at["blank"] and not text.strip()
                text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", f" {EOS} ")
                tokens, before = text.split(), len(known)
                ids = np.fromiter(map(known.__getitem__, tokens), PROVISIONAL, len(tokens))
                new = list(islice(reversed(known), len(known) - before))
                words_file.write("".join(f"{word}\n" for word in reversed(new)).encode())
                ids_file.write(ids.tobytes())
                at["ids"] += len(ids)
                at["lines"] += int(np.count_nonzero(ids == 0))
                at["ended"] = bool(ids[-1] == 0) if len(ids) else at["ended"]
                at["offset"] += len(data)
                told(len(data))
                if at["offset"] - recorded >= JOURNAL:
                    record()
                    recorded = at["offset"]
            if at["blank"]:
                raise DataError(f"{path} is empty; give a file with some text")
            if _stamp(path) != stamp:
                raise DataError(f"{path} was changed while it was read: start the same command again")
            at.update(ends=[*at["ends"], at["ids"]], offset=0, blank=True)
            record()
    return list(known), at["ends"], at["lines"] + (not at["ended"])


def _resume(origin: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The last recorded position, if it is one of this text and all that it speaks of is there; else the beginning."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        at = _unseal((scratch / "journal.json").read_text(encoding="utf-8"))
        there = (scratch / "ids").stat().st_size >= at["ids"] * PROVISIONAL.itemsize
        if at.pop("text") == origin["text"] and there and (scratch / "words").stat().st_size >= at["words"]:
            return at
    # ids so far, bytes of words, byte in the present file, ids up to each finished file's end, lines;
    # whether the last token ended a line, whether the present file has no word yet
    return {"ids": 0, "words": 0, "offset": 0, "ends": [], "lines": 0, "ended": True, "blank": True}


def _words(scratch: Path) -> list[str]:
    return (scratch / "words").read_bytes().decode().split("\n")[:-1]


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    """The bytes of a file from an offset on, cut behind ASCII white space: within no word, no letter, no CR LF."""
    rest = b""
    with corpora.readable(path):
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below)
    with file:
        file.seek(offset)
        while True:
            with corpora.readable(path):
                data = file.read(BLOCK)
            if not data:
                break
            rest += data
            if cut := max(rest.rfind(space) for space in (b" ", b"\n", b"\t")) + 1:
                yield rest[:cut]
                rest = rest[cut:]
            elif len(rest) > LONGEST:
                raise DataError(f"{path} has {len(rest):,} bytes on end without a space or a newline: give text")
    if rest:
        yield rest


def _ids(path: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """Provisional ids [start, stop), a block at a time."""
    with open(path, "rb") as file:
        file.seek(start * PROVISIONAL.itemsize)
        for at in range(start, stop, BLOCK):
            yield np.fromfile(file, PROVISIONAL, min(BLOCK, stop - at))


def _line_ends(path: Path, *lines: int) -> Iterator[int]:
    """How many ids there are up to the end of each of these lines (counted from 1, ascending)."""
    tokens = seen = 0
    wanted = list(lines)
    for block in _ids(path, 0, path.stat().st_size // PROVISIONAL.itemsize):
        ends = np.flatnonzero(block == 0)
        while wanted and wanted[0] <= seen + len(ends):
            yield tokens + int(ends[wanted.pop(0) - seen - 1]) + 1
        tokens, seen = tokens + len(block), seen + len(ends)


def _header(folder: Path) -> dict[str, Any]:
    """What `prepared.json` says. Raises `DataError` where there is none, or its seal is broken."""
    if not (folder / HEADER).exists():
        raise DataError(f"{folder} is not a corpus that is finished: go on with the `jaxlm prepare` that began it")
    try:
        header = _unseal((folder / HEADER).read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}, not {FORMAT}")
        return header
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / HEADER} is damaged ({error}): remove {folder} and prepare the text again") from None


def _seal(tree: dict[str, Any]) -> str:
    """JSON with the sha256 of the rest inside."""
    body = json.dumps(tree, sort_keys=True)
    return json.dumps({**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1) + "\n"


def _unseal(text: str) -> dict[str, Any]:
    """What `_seal` was given; `ValueError` where a byte was changed."""
    tree = json.loads(text)
    sha256 = tree.pop("sha256", None)
    if _seal(tree) != text:
        raise ValueError(f"its seal {sha256} is broken")
    return tree


def _stamp(path: Path) -> list[Any]:
    """What tells a text from others and from its other states, without reading it: path, bytes, time of change."""
    with corpora.readable(path):
        status = os.stat(path)
    if stat.S_ISFIFO(status.st_mode):
        raise DataError(f"{path} is a pipe, which cannot be gone on with after an interruption: give a file")
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder and holds it; waits while another process does."""
    for _ in range(3):  # one that has just finished may remove the folder under us
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / "lock", "ab")  # noqa: SIM115 (closed below)
            break
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {folder.parent}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, data: bytes) -> None:
    """A whole file or none, safely on the disk."""
    with open(path.with_name(f".{path.name}.new"), "wb") as file:
        file.write(data)
        _sync(file)
    os.replace(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _bar(label: str, total: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields what is told how much more is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    with Progress(console=console, disable=not shown, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.advance(task, done)
