"""Prepared corpora, larger than memory: the ids of a text of any size, in files that are read a piece at a time.

    prepared.json (seals the rest)  vocab.json  train.ids  valid.ids  test.ids (plain little-endian integers)

`encoding` makes the ids; memory holds a segment of the text and the distinct words. Until all is finished, the
segments lie in `OUT/.partial`. A folder from a stranger is only data: nothing in it is opened through a link, only
the files above are opened, every byte of them is verified before it is used, and every id is one of the vocabulary's.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.settings import DataConfig
from jaxlm.data.cache import cache_dir
from jaxlm.data.corpus import Corpus
from jaxlm.data.encoding import Encoder, Stamp, TextOptions, number_units, stamp, stamps_of
from jaxlm.data.text import SPLITS, Parts, find_splits, read_errors
from jaxlm.data.vocab import Vocab, check_ids
from jaxlm.errors import DataError
from jaxlm.fields import checked
from jaxlm.files import MAX_VOCAB_BYTES, Folder, explained
from jaxlm.hashed_json import from_hashed_json
from jaxlm.terminal import say_line

LARGE = 256 << 20  # bytes of text from which on `load_corpus` prepares it
FORMAT = 1
HEADER = "prepared.json"
VOCAB = "vocab.json"
IDS = {split: f"{split}.ids" for split in SPLITS}
PARTIAL = ".partial"  # the working folder of a corpus that is not finished
_BLOCK = 1 << 20  # bytes that are read at once
_MOST = 64 << 20  # bytes of a header, which names every file of the text: half a million of them

_VALID: dict[str, Callable[[Any], bool]] = {  # the fields of `prepared.json`, and what each may be
    "format": lambda value: value == FORMAT,
    **dict.fromkeys(("name", "description", "corpus_sha256"), lambda value: type(value) is str),
    "notes": lambda value: type(value) is list and all(type(note) is str for note in value),
    "text": lambda value: type(value) is list,  # the stamp of each text file
    "max_vocab": lambda value: value is None or _is_count(value),
    **dict.fromkeys(
        ("min_count", "words"), lambda value: _is_count(value)
    ),  # words: of the vocabulary
    **dict.fromkeys(
        ("lowercase", "limited"), lambda value: type(value) is bool
    ),  # limited: max_vocab dropped a word
    "options": lambda value: (
        type(value) is dict and value.keys() <= DataConfig().options.keys()
    ),  # all, or newer ones
    "dtype": lambda value: value in ("<u2", "<i4"),  # of the ids
    "files": lambda value: (
        type(value) is dict
        and value.keys() == {*IDS.values(), VOCAB}
        and all(
            type(entry) is list and len(entry) == 2 for entry in value.values()
        )  # bytes, sha256
    ),
}


def prepare(
    text: str | Path, out: str | Path, *, max_vocab: int | None = None, **options: Any
) -> Corpus:
    """Makes the folder `out` from a text, or resumes an interrupted folder; a finished folder is verified.

    Args:
        text: Files, a folder or a pattern, as `load_corpus` takes them.
        out: The folder to make.
        max_vocab, **options: As `load_corpus` takes them.

    Returns:
        The corpus that `load_corpus` makes of the text with these options, its ids memory-mapped.

    Raises:
        DataError: The text or an option cannot be used, or `out` cannot be written or holds something else.
    """
    return _prepare(Path(text), Path(out), checked(TextOptions(max_vocab=max_vocab, **options)))


def _prepare(text: Path, out: Path, read: TextOptions, vocab: Vocab | None = None) -> Corpus:
    """Makes, resumes or verifies `out`, with a vocabulary of the text's own or the one given."""
    if is_prepared(text):
        raise DataError(f"{text} is prepared already: train on it with --corpus")
    parts = find_splits(text)
    stamps = _stamps(parts, read, vocab)
    with explained(
        DataError, f"{out} cannot be written", "fix that and run the same command again: it resumes"
    ):
        entries = sorted(os.listdir(out)) if out.exists() else []
        if entries and HEADER not in entries and PARTIAL not in entries:
            raise DataError(
                f"{out} is not empty (it holds {', '.join(entries[:4])}): choose another folder"
            )
        with Folder.open(out, create=True) as folder:
            if not folder.exists(HEADER):
                # Another process that has finished just now may remove the working folder: its header is then there.
                with suppress(FileNotFoundError), _working_folder(folder) as work:
                    if not folder.exists(HEADER):
                        folder.clean()
                        _make(folder, work, text, parts, stamps, read, vocab)
            header = read_header(folder)
            with suppress(OSError):
                folder.remove(PARTIAL)
    found = {"text": header["text"], "max_vocab": header["max_vocab"], **_options(header)}
    asked = {"text": stamps, "max_vocab": read.max_vocab, **read.options}
    changed = [
        f"{name} {found[name]}, not {value}"
        for name, value in asked.items()
        if found[name] != value
    ]
    if changed:
        raise DataError(
            f"{out} holds another corpus ({'; '.join(changed)}): choose another folder, or remove it"
        )
    return load_prepared(out)


def prepare_in_cache(
    text: Path, parts: Parts, options: TextOptions, vocab: Vocab | None = None
) -> Corpus:
    """The corpus of a text too large for memory, from the user's cache, where it is prepared unless it is there.

    Another text or tokenizer file, or another state of it, has another place in the cache, and so has a given
    vocabulary that is not the text's own; a note of the corpus names the folder. Raises DataError as `prepare`.
    """
    stamps = _stamps(parts, options, vocab)
    above = cache_dir() / "prepared" / text_name(text).removeprefix("text:")

    def place(*given: str) -> Path:
        key = json.dumps([stamps, options.options, *given])
        return above / hashlib.sha256(key.encode()).hexdigest()[:16]

    found = _finished(place(), options.max_vocab, vocab)
    folder = found or place(*[vocab.sha256] if vocab else []) / f"{options.max_vocab or 'all'}"
    corpus = load_prepared(found) if found else _prepare(text, folder, options, vocab)
    size = sum(size for _, size, _ in stamps_of(parts).values()) / 1e6
    note = f"{text} has {size:,.0f} MB: its ids are kept in {folder}, and read a piece at a time"
    fixed = {**corpus.options, "tokens": corpus.vocab.kind}
    return replace(corpus, spec=os.path.abspath(text), notes=(*corpus.notes, note), options=fixed)


def is_prepared(folder: str | Path) -> bool:
    """Whether a path is a folder with a prepared corpus, finished or not."""
    return any(os.path.lexists(os.path.join(folder, name)) for name in (HEADER, PARTIAL))


def text_name(path: Path) -> str:
    """The name of the corpus that a user's own text makes."""
    return f"text:{os.path.basename(os.path.abspath(path))}"


def load_prepared(path: str | Path, options: TextOptions | None = None) -> Corpus:
    """The corpus of a prepared folder, its ids memory-mapped, after every byte was verified.

    Raises DataError where a file is missing, altered or no regular file, an id is outside the vocabulary, or an option
    is neither a default nor that of the preparation (`max_vocab`: fewer words or characters than there are).
    """
    options = options or TextOptions()
    with read_errors(path), Folder.open(path) as folder:
        header = read_header(folder)
        with _intact(folder, VOCAB):
            data = folder.read(VOCAB, MAX_VOCAB_BYTES)
            if [len(data), hashlib.sha256(data).hexdigest()] != header["files"][VOCAB]:
                raise ValueError("its content is not what was prepared")
            vocab = Vocab.from_json(data.decode())
            if len(vocab) != header["words"]:
                raise ValueError(f"it has {len(vocab):,} words, not {header['words']:,}")
        defaults = DataConfig().options
        fixed = _options(header)
        wrong = [
            f"{name} {fixed[name]}, not {asked}: leave that out"
            for name, asked in options.options.items()
            if asked not in (defaults[name], fixed[name])
        ]
        if (
            options.max_vocab is not None
            and len(vocab) > options.max_vocab
            and not vocab.tokens.names
        ):
            wrong.append(
                f"{len(vocab):,} words, more than the vocabulary size {options.max_vocab:,}: raise that"
            )
        if wrong:
            raise DataError(
                f"{path} was prepared with {wrong[0]}, or prepare the text again in another folder"
            )
        return Corpus(
            header["name"],
            header["description"],
            vocab,
            *(_map_ids(folder, header, name) for name in IDS.values()),
            sha256=header["corpus_sha256"],
            notes=tuple(header["notes"]),
            spec=os.path.abspath(path),
            options=fixed,
        )


def read_header(folder: Folder) -> dict[str, Any]:
    """The fields of `prepared.json`. Raises DataError where there is none, or it is not what was written."""
    if not folder.exists(HEADER):
        raise DataError(
            f"{folder.path} is not a finished corpus: resume it by the `jaxlm prepare` that began it"
        )
    with _intact(folder, HEADER):
        tree = from_hashed_json(folder.read(HEADER, _MOST), _sealed)
        strange = {"options": {}, **tree}.keys() ^ _VALID.keys()
        wrong = strange or [name for name in tree if not _VALID[name](tree[name])]
        if wrong:
            raise ValueError(f"its {ascii(', '.join(sorted(wrong)))[1:-1]:.200} cannot be right")
        return tree


def _options(header: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a header. A header of 0.1 has two options at its top level; the others are defaults."""
    old = {name: header[name] for name in ("min_count", "lowercase")}
    return DataConfig().options | old | header.get("options", {})


def _stamps(parts: Parts, options: TextOptions, vocab: Vocab | None) -> list[Stamp]:
    """The stamps of all files that a corpus is made of. Raises DataError."""
    path = Path(options.tokenizer_file) if options.tokenizer_file else None
    tokenizer = (
        [stamp(path)] if path and (vocab is None or path.exists()) else []
    )  # a given vocabulary holds its own
    return [*stamps_of(parts).values(), *tokenizer]


def _finished(place: Path, max_vocab: int | None, vocab: Vocab | None) -> Path | None:
    """A folder in the cache with this vocabulary, or else whose whole vocabulary the bound would give too."""
    sealed = vocab and hashlib.sha256(vocab.to_json().encode()).hexdigest()
    for path in sorted(place.glob("*")):
        with suppress(DataError, OSError), Folder.open(path) as folder:
            header = read_header(folder)
            if sealed == header["files"][VOCAB][1]:
                return path
            if (
                not (vocab or max_vocab is None or header["limited"])
                and header["words"] <= max_vocab
            ):
                return path
    return None


def _make(
    folder: Folder,
    work: Folder,
    text: Path,
    parts: Parts,
    stamps: list[Stamp],
    options: TextOptions,
    vocab: Vocab | None,
) -> None:
    """Prepares the text, with the segments in `work`; `folder` gets complete files, the header last."""
    with _progress_bar(f"reading {text}", sum(size for _, size, _ in stamps)) as advance:
        numbered = number_units(parts, options, vocab, work, advance)
    encoder = Encoder(numbered, options, vocab)
    vocab_json = encoder.vocab.to_json().encode()
    if len(vocab_json) > MAX_VOCAB_BYTES:
        why = f"more than fit into {MAX_VOCAB_BYTES:,} bytes: give a vocabulary size (max_vocab), or a higher min_count"
        raise DataError(f"the vocabulary of {text} has {len(encoder.vocab):,} words, {why}")
    dtype = "<u2" if len(encoder.vocab) <= 1 << 16 else "<i4"
    sealed: dict[str, tuple[int, str]] = {}
    with _progress_bar(f"writing {folder.path}", sum(encoder.sizes.values())) as advance:
        for split, name in IDS.items():
            digest = hashlib.sha256()
            with folder.replacing(name) as file:
                for ids in encoder.ids(split):
                    data = ids.astype(dtype).tobytes()
                    digest.update(data)
                    file.write(data)
                    advance(len(ids))
                sealed[name] = file.tell(), digest.hexdigest()
    folder.write(VOCAB, vocab_json)
    sealed[VOCAB] = len(vocab_json), hashlib.sha256(vocab_json).hexdigest()
    described = encoder.describe(text_name(text), f"text in {text}")
    header = {
        "format": FORMAT,
        "text": stamps,
        "max_vocab": options.max_vocab,
        "min_count": options.min_count,
        "lowercase": options.lowercase,
        "options": options.options,
        "limited": encoder.limited,
        "words": len(encoder.vocab),
        "dtype": dtype,
        "files": sealed,
        "corpus_sha256": described.pop("sha256"),
        **described,
    }
    folder.write(HEADER, _sealed(header).encode())


def _map_ids(folder: Folder, header: dict[str, Any], name: str) -> np.memmap:
    """The ids of a file, memory-mapped, once one pass over the open file has verified all of them."""
    path, (size, sha256) = folder.path / name, header["files"][name]
    with _intact(folder, name), folder.reader(name) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"it has {found:,} bytes, not {size:,}")
        digest = hashlib.sha256()
        bounds = [0]
        while data := file.read(_BLOCK):
            digest.update(data)
            block = np.frombuffer(data, header["dtype"])
            bounds += [int(block.min()), int(block.max())]
        if digest.hexdigest() != sha256:
            raise ValueError("its content is not what was prepared")
        check_ids(np.array(bounds), header["words"], str(path))
        ids = np.memmap(file, np.dtype(header["dtype"]), "r")  # pyright: ignore[reportCallIssue, reportArgumentType]
    setattr(ids, "filename", os.path.abspath(path))  # noqa: B010 (typed as final) an open descriptor has no name
    return ids


def _intact(folder: Folder, name: str) -> AbstractContextManager[None]:
    """Turns what is wrong with a file into one sentence."""
    remedy = f"remove {folder.path} and prepare the text again"
    return explained(DataError, f"{folder.path / name} is damaged", remedy)


def _sealed(tree: dict[str, Any]) -> str:
    """JSON with the sha256 of the rest inside, in the form of format 1."""
    body = json.dumps(tree, sort_keys=True)
    return (
        json.dumps({**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1) + "\n"
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


@contextmanager
def _working_folder(folder: Folder) -> Iterator[Folder]:
    """Makes the working folder and locks it; waits while another process has the lock.

    Where a DataError ends the block within the first segment, nothing is left behind.
    """
    with folder.folder(PARTIAL, create=True) as work, work.append("lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if sys.stderr is not None:
                say_line(f"another process is preparing {folder.path}: waiting for it", sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield work
        except DataError:
            if len(work.names()) <= 2:  # the lock, and a segment
                with suppress(OSError):
                    folder.remove(PARTIAL)
                    os.rmdir(folder.path)
            raise


@contextmanager
def _progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how much more is done."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(escape(label), total=total)
        yield lambda done: bars.advance(task, done)
