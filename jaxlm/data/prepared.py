"""Prepared corpora, larger than memory: text of any size becomes ids in files that are read a piece at a time.

`ingestion` reads the text once and gives words provisional ids in the order of first occurrence; their counts then
determine the vocabulary, and the ids are translated into it block by block. Memory holds a block and the distinct
words. Until all is finished, the working files lie in `OUT/.partial`. `prepared_format` describes the result.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np

from jaxlm.data.cache import cache_dir
from jaxlm.data.corpus import Corpus, CorpusHash, corpus_name, describe, text_name
from jaxlm.data.ingestion import Stamp, ingest, line_ends, read_ids, stamp
from jaxlm.data.prepared_format import FORMAT, HEADER, IDS, PARTIAL, VOCAB, Header, load_prepared, read_header
from jaxlm.data.text import SPLITS, find_splits, split_lines, split_note
from jaxlm.data.vocab import UNK, Vocab
from jaxlm.errors import DataError
from jaxlm.files import MAX_VOCAB_BYTES, Folder, reason

LARGE = 256 << 20  # bytes of text from which on `load_corpus` prepares it: in memory it takes some four times that


class _Options(TypedDict):
    """What determines a corpus besides its text."""

    max_vocab: int | None
    min_count: int
    lowercase: bool


@dataclass(frozen=True)
class _Job:
    """What is to be prepared."""

    text: Path
    paths: dict[str, Path]
    stamps: list[Stamp]
    options: _Options
    progress: bool | None


def prepare(
    text: str | Path,
    out: str | Path,
    *,
    max_vocab: int | None = None,
    min_count: int = 1,
    lowercase: bool = False,
    progress: bool | None = None,
) -> Corpus:
    """Makes the folder `out` from a text, or resumes what an interrupted process left there.

    Ids, vocabulary and hash are those that `load_corpus` makes of the text with these options. A folder that is
    finished already is verified and returned.

    Args:
        text: One file, which is split 90/5/5 by lines, or a folder with train, valid and test text.
        out: The folder to make.
        max_vocab: The most words of the vocabulary.
        min_count: How often a word must occur in train to be kept.
        lowercase: Whether to convert the text to lower case.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The corpus, its ids memory-mapped.

    Raises:
        DataError: The text or an option cannot be used, or `out` cannot be written or holds something else.
    """
    text, out = Path(text), Path(out)
    options: _Options = {"max_vocab": max_vocab, "min_count": min_count, "lowercase": lowercase}
    Vocab.build({UNK: 1}, max_size=max_vocab, min_count=min_count)  # refuses now what it would refuse at the end
    paths = find_splits(text)
    job = _Job(text, paths, [stamp(path) for path in paths.values()], options, progress)
    try:
        entries = sorted(os.listdir(out)) if out.exists() else []
        if entries and HEADER not in entries and PARTIAL not in entries:
            raise DataError(f"{out} is not empty (it holds {', '.join(entries[:4])}): choose another folder")
        with Folder.open(out, create=True) as folder:
            if not folder.exists(HEADER):
                with _working_folder(folder) as work:
                    if not folder.exists(HEADER):  # another process may have finished it in the meantime
                        folder.clean()
                        _make(job, folder, work)
            header = read_header(folder)
            with contextlib.suppress(OSError):
                folder.remove(PARTIAL)
    except OSError as error:
        raise DataError(
            f"{error.filename or out} cannot be written: {reason(error)}; fix that and run the same "
            "command again: it resumes"
        ) from None
    if changed := [
        f"{name} {getattr(header, name)}, not {value}"
        for name, value in {"text": job.stamps, **options}.items()
        if getattr(header, name) != value
    ]:
        raise DataError(f"{out} holds another corpus ({'; '.join(changed)}): choose another folder, or remove it")
    return load_prepared(out)


def prepare_in_cache(
    text: Path, *, max_vocab: int | None, min_count: int, lowercase: bool, progress: bool | None = None
) -> Corpus:
    """The corpus of a text too large for memory, from the user's cache, where it is prepared unless it is there.

    Args:
        text: As for `prepare`; another text, or another state of it, has another place in the cache.
        max_vocab: The most words of the vocabulary.
        min_count: How often a word must occur in train to be kept.
        lowercase: Whether to convert the text to lower case.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The corpus, its ids memory-mapped; one of its notes names the folder.

    Raises:
        DataError: As for `prepare`.
    """
    stamps = [stamp(path) for path in find_splits(text).values()]
    key = hashlib.sha256(json.dumps([stamps, min_count, lowercase]).encode()).hexdigest()[:16]
    place = cache_dir() / "prepared" / text_name(text).removeprefix("text:") / key
    folder = _within_bound(place, max_vocab)
    if folder is None:
        folder = place / f"{max_vocab or 'all'}"
        corpus = prepare(text, folder, max_vocab=max_vocab, min_count=min_count, lowercase=lowercase, progress=progress)
    else:
        corpus = load_prepared(folder)
    size = sum(size for _, size, _ in stamps) / 1e6
    note = f"{text} has {size:,.0f} MB: its ids are kept in {folder}, and read a piece at a time"
    return replace(corpus, spec=os.path.abspath(text), notes=(*corpus.notes, note))


def is_large(text: str | Path) -> bool:
    """Whether a text has more than `LARGE` bytes in all. Raises DataError for a folder that lacks a split."""
    paths = filter(os.path.isfile, find_splits(Path(text)).values())
    return sum(map(os.path.getsize, paths)) > LARGE


def _within_bound(place: Path, max_vocab: int | None) -> Path | None:
    """A folder whose vocabulary no bound cut short, and is within this one: it is what this bound gives too."""
    if max_vocab is None:
        return None
    for path in sorted(place.glob("*")):
        with contextlib.suppress(DataError, OSError), Folder.open(path) as folder:
            header = read_header(folder)
            if not header.limited and header.words <= max_vocab:
                return path
    return None


def _make(job: _Job, folder: Folder, work: Folder) -> None:
    """Prepares the text, with the working files in `work`; `folder` gets complete files, the header last."""
    with _progress_bar(f"reading {job.text}", sum(size for _, size, _ in job.stamps), job.progress) as advance:
        found = ingest(list(job.paths.values()), job.stamps, work, advance)
    notes, ends, words = [], found.ends, found.words
    if "all" in job.paths:
        lines = split_lines(job.text, found.lines)
        notes.append(split_note(job.text, lines))
        borders = lines["train"], lines["train"] + lines["valid"]
        ends = [*line_ends(work, found.ends[-1], len(words), *borders), *ends]
    spans = dict(zip(SPLITS, pairwise([0, *ends]), strict=True))
    if job.options["lowercase"]:
        words = [word.lower() for word in words]
    counts = _counts(work, spans["train"], words)
    vocab = Vocab.build(counts, max_size=job.options["max_vocab"], min_count=job.options["min_count"])
    name = corpus_name(text_name(job.text), counts, **job.options)
    vocab_json = vocab.to_json().encode()
    if len(vocab_json) > MAX_VOCAB_BYTES:
        raise DataError(
            f"the vocabulary of {job.text} has {len(vocab):,} words, more than fit into "
            f"{MAX_VOCAB_BYTES:,} bytes: give a vocabulary size (max_vocab), or a higher min_count"
        )
    dtype = "<u2" if len(vocab) <= 1 << 16 else "<i4"
    with _progress_bar(f"writing {folder.path}", ends[-1], job.progress) as advance:
        sealed, unknown, sha256 = _translate(folder, work, spans, words, vocab, dtype, advance)
    folder.write(VOCAB, vocab_json)
    sealed[VOCAB] = len(vocab_json), hashlib.sha256(vocab_json).hexdigest()
    sizes = {split: stop - start for split, (start, stop) in spans.items()}
    header = Header(
        format=FORMAT,
        name=name,
        notes=notes,
        text=job.stamps,
        **job.options,
        limited=name != corpus_name(text_name(job.text), counts, **{**job.options, "max_vocab": None}),
        description=describe(f"text in {job.text}", sizes, unknown, vocab),
        words=len(vocab),
        dtype=dtype,
        files=sealed,
        corpus_sha256=sha256,
    )
    folder.write(HEADER, header.to_json().encode())


def _counts(work: Folder, span: tuple[int, int], words: Sequence[str]) -> Counter[str]:
    """How often each word occurs among the provisional ids of a span; those that do not occur are left out."""
    totals = np.zeros(len(words), np.int64)
    for block in read_ids(work, *span, len(words)):
        totals += np.bincount(block, minlength=len(words))
    counts: Counter[str] = Counter()
    for word, total in zip(words, totals.tolist(), strict=True):
        if total:  # the others are in valid or test alone
            counts[word] += total
    return counts


def _translate(
    folder: Folder,
    work: Folder,
    spans: dict[str, tuple[int, int]],
    words: Sequence[str],
    vocab: Vocab,
    dtype: str,
    advance: Callable[[int], None],
) -> tuple[dict[str, tuple[int, str]], dict[str, int], str]:
    """Writes the ids of each split; returns (bytes and sha256 of each file, `<unk>`s of each split, corpus hash)."""
    table, unk = vocab.encode(words), vocab.unk
    sealed: dict[str, tuple[int, str]] = {}
    unknown = dict.fromkeys(SPLITS, 0)
    corpus_hash = CorpusHash(vocab)
    for split, (start, stop) in spans.items():
        corpus_hash.begin(split, stop - start)
        sha256 = hashlib.sha256()
        with folder.replacing(IDS[split]) as file:
            for block in read_ids(work, start, stop, len(words)):
                ids = table[block]
                unknown[split] += int(np.count_nonzero(ids == unk))
                corpus_hash.update(ids)
                data = ids.astype(dtype).tobytes()
                sha256.update(data)
                file.write(data)
                advance(len(ids))
        sealed[IDS[split]] = (stop - start) * np.dtype(dtype).itemsize, sha256.hexdigest()
    return sealed, unknown, corpus_hash.hexdigest()


@contextmanager
def _working_folder(folder: Folder) -> Iterator[Folder]:
    """Makes the working folder and locks it; waits while another process has the lock."""
    for _ in range(3):  # a process that has just finished may remove it in the meantime
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            work = stack.enter_context(folder.folder(PARTIAL, create=True))
            lock = stack.enter_context(work.append("lock"))
            held = stack.pop_all()
            break
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    with held:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {folder.path}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield work


@contextmanager
def _progress_bar(label: str, total: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how much more is done."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    with Progress(console=console, disable=not shown, transient=True) as bars:
        task = bars.add_task(escape(label), total=total)
        yield lambda done: bars.advance(task, done)
