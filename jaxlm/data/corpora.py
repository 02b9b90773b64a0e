"""Where text comes from: Penn Treebank, a folder or a file of text, a prepared corpus, or the embedded corpus.

Everything ends as a `Corpus`: a vocabulary built from train alone, and the ids of three splits.
"""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.cache import cache_dir, cached
from jaxlm.data.download import PTB_SHA256, download_ptb
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError

SPLITS = ("train", "valid", "test")
EMBEDDED = {"embedded": "full", "embedded-tiny": "tiny"}
PTB_FOLDERS = (".", "ptb", "data", "simple-examples/data")  # beneath any place where it may lie
PTB_NAMES = ("ptb.{}.txt", "{}.txt", "ptb.{}")
TEXT_NAME = re.compile(r"(?:ptb\.|wiki\.)?(train|valid|validation|dev|test)(?:\.txt|\.tokens|\.raw)?")
ALIASES = {"validation": "valid", "dev": "valid"}
FALLBACK = (
    "EMBEDDED CORPUS, NOT PENN TREEBANK: no copy of Penn Treebank was found and none could be downloaded; "
    "ask for the corpus 'ptb' to see why"
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Ids of three splits `[N]`, int32 or (of a prepared corpus) memory-mapped, and what is known of them.

    `name` tells corpora apart in every result: options that change the text or the vocabulary are part of it.
    `sha256` covers the ids and the vocabulary. `floor` is the cost of the true source, in summed nats over
    all tokens of a split but the first; only the embedded corpus has one. `notes` are lines to tell the user.
    `spec` is what `load_corpus` takes to find this text again, from any directory. `options` are the fields of
    `DataConfig` that a prepared corpus has decided.
    """

    name: str
    description: str
    vocab: Vocab
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    sha256: str
    floor: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    spec: str = "custom"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Text:
    """The tokens of each split, and what only the embedded corpus knows: all of its words, and its floor."""

    splits: Mapping[str, Sequence[str]]
    words: Sequence[str] = ()
    floor: Mapping[str, float] | None = None


@dataclass(frozen=True)
class _Source:
    """A text that is read when it is needed; with a `key` to its content, its ids are kept in the cache."""

    name: str
    title: str
    read: Callable[[], _Text]
    key: str = ""
    notes: tuple[str, ...] = ()
    spec: str = ""  # where it is not the name


class _NotFound(DataError):
    """No Penn Treebank here and none to be had; `auto` then goes on with the embedded corpus."""


def load_corpus(
    spec: str | Path = "auto",
    *,
    data_dir: str | Path | None = None,
    max_vocab: int | None = None,
    min_count: int = 1,
    lowercase: bool = False,
    vocab: Vocab | None = None,
    download: bool = True,
    progress: bool | None = None,
) -> Corpus:
    """The corpus that `spec` names.

    `auto` is Penn Treebank, or the embedded corpus where it can neither be found nor downloaded; `ptb`,
    `embedded` and `embedded-tiny` are exactly that; anything else is the path of a folder with train, valid
    and test text, of one file, which is split 90/5/5 by lines, or of a folder that `stream.prepare` made. Text of
    over `stream.LARGE` bytes is prepared in the user's cache. Penn Treebank is looked for in `data_dir`,
    `$JAXLM_DATA`, `./data/ptb` and the user's cache, then downloaded into the cache if `download` allows it.
    `vocab` encodes with a vocabulary that exists already, in place of one built from train with at most
    `max_vocab` words, each seen `min_count` times; the name of a corpus with a known one tells if it differs.
    `progress` shows a bar; None shows it on a terminal.

    Raises `DataError` for text that is missing, empty, binary, ambiguous, or not what its hash says.
    """
    if (prepared := _prepared(spec, max_vocab, min_count, lowercase, vocab, progress)) is not None:
        return prepared
    source = _source(spec, data_dir, download, progress)

    def build(vocab: Vocab | None) -> Corpus:
        return _build(source, vocab, max_vocab, min_count, lowercase)

    key = f"{source.key} {max_vocab} {min_count} {lowercase}"
    corpus = cached(source.name, key, lambda: build(None)) if source.key else build(vocab)
    if vocab not in (None, corpus.vocab):
        corpus = replace(build(vocab), name=f"{corpus.name}+other-vocab")
    return replace(corpus, notes=source.notes, spec=source.spec or source.name)


def read_text(path: str | Path, lowercase: bool = False) -> list[str]:
    """The tokens of a UTF-8 text file, each newline as `<eos>`.

    Raises `DataError`, naming the file (and the byte), if it cannot be read, is empty, binary, or not UTF-8.
    """
    return tokenize(_decoded(_read(path), path), lowercase)


def tokenize(text: str, lowercase: bool = False) -> list[str]:
    """Splits text at white space; each newline, of whichever system, becomes `<eos>`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    tokens: list[str] = []
    for line in (text.lower() if lowercase else text).split("\n"):
        tokens += map(sys.intern, line.split())  # one string a word, however long the text
        tokens.append(EOS)
    return tokens[:-1]  # n newlines make n + 1 lines


def text_files(path: Path) -> dict[str, Path]:
    """The text of each split in a folder; a single file goes by the name `all`. Raises `DataError`."""
    if not os.path.isdir(path):
        return {"all": path}
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror}") from None
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for match in filter(None, map(TEXT_NAME.fullmatch, names)):
        found[ALIASES.get(match[1], match[1])].append(match[0])
    for split, files in found.items():
        if len(files) != 1:
            came = f"{' and '.join(files)}; keep one" if files else f"none; add one, such as {split}.txt"
            raise DataError(f"the folder {path} should hold one {split} text, and holds {came}")
    return {split: path / files[0] for split, files in found.items()}


def line_counts(path: Path, lines: int) -> dict[str, int]:
    """How many of a file's lines go to each split: the last 5% to test, the 5% before to valid, at least one each."""
    if lines < 3:
        raise DataError(f"{path} needs at least 3 lines, to be split 90/5/5 by lines, and has {lines}")
    held = max(1, lines // 20)
    return {"train": lines - 2 * held, "valid": held, "test": held}


def split_note(path: Path, lines: Mapping[str, int]) -> str:
    return f"{path} is split 90/5/5 by lines: {' / '.join(f'{lines[split]:,}' for split in SPLITS)}"


def text_name(path: Path) -> str:
    """What a user's own text is called."""
    return f"text:{os.path.basename(os.path.abspath(path))}"


def named(name: str, counts: Mapping[str, int], max_vocab: int | None, min_count: int, lowercase: bool) -> str:
    """A corpus's name with the options that changed it; `counts` are those of its words, in lower case if asked."""
    usual = 1 + sum(count >= min_count or word == EOS for word, count in counts.items() if word != UNK)
    options = {
        "lowercase": lowercase,
        f"max_vocab={max_vocab}": max_vocab is not None and usual > max_vocab,
        f"min_count={min_count}": min_count != 1,
    }
    return "+".join([name, *(option for option, given in options.items() if given)])


def described(title: str, sizes: Mapping[str, int], unknown: Mapping[str, int], vocab: Vocab) -> str:
    """A line on a corpus: the tokens of each split, how many of them are `<unk>`, and the vocabulary's size."""
    tokens = " / ".join(f"{sizes[split]:,}" for split in SPLITS)
    shares = " / ".join(f"{unknown[split] / sizes[split]:.1%}" for split in SPLITS)
    return f"{title}: {tokens} tokens, of which {shares} {UNK}; {len(vocab):,} types"


def _prepared(
    spec: str | Path, max_vocab: int | None, min_count: int, lowercase: bool, vocab: Vocab | None, progress: bool | None
) -> Corpus | None:
    """A corpus that is prepared already, or that is too large for anything else; None where `spec` names neither."""
    from jaxlm.data import prepared as stream

    if spec in ("auto", "ptb", *EMBEDDED):
        return None
    if stream.is_prepared(spec):
        corpus = stream.load(spec, max_vocab=max_vocab, min_count=min_count, lowercase=lowercase)
        if vocab not in (None, corpus.vocab):
            raise DataError(f"{spec} is prepared with a vocabulary of its own: load the text itself with another one")
        return corpus
    if vocab is None and stream.is_large(spec):
        return stream.prepare_in_cache(
            Path(spec), max_vocab=max_vocab, min_count=min_count, lowercase=lowercase, progress=progress
        )
    return None


def _source(spec: str | Path, data_dir: str | Path | None, download: bool, progress: bool | None) -> _Source:
    if spec == "auto":
        try:
            return _penn_treebank(data_dir, download, progress)
        except _NotFound:
            return replace(_embedded("embedded"), notes=(FALLBACK,))
    if spec == "ptb":
        return _penn_treebank(data_dir, download, progress)
    if spec in EMBEDDED:
        return _embedded(str(spec))
    path = Path(spec)
    if os.path.isdir(path):
        return _folder(path)
    if os.path.exists(path):
        return _one_file(path)
    raise DataError(
        f"there is no corpus or file {str(spec)!r}; expected auto, ptb, {', '.join(EMBEDDED)}, "
        "or the path of a folder or a file of text"
    )


def _penn_treebank(data_dir: str | Path | None, download: bool, progress: bool | None) -> _Source:
    """Penn Treebank, wherever it lies; `_NotFound` if it is neither here nor to be had."""
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(f"the data directory {data_dir} is not a folder; name the one with ptb.train.txt")
    cache = cache_dir() / "ptb"
    places = [Path(place) for place in (data_dir, os.environ.get("JAXLM_DATA"), "data/ptb", cache) if place]
    files = _find_penn_treebank(places)
    failure = "downloading is turned off"
    if files is None and download:
        try:
            download_ptb(cache, progress)
        except DataError as error:
            failure = str(error)
        files = _find_penn_treebank([cache])
    if files is None:
        raise _NotFound(
            f"no Penn Treebank in {', '.join(map(str, places))}, and {failure}; to have it, put "
            "ptb.train.txt, ptb.valid.txt and ptb.test.txt into a folder named by --data-dir or $JAXLM_DATA"
        )
    return _Source(
        "ptb",
        "Penn Treebank (Mikolov's files)",
        lambda: _Text({split: tokenize(_decoded(data, path)) for split, (data, path) in files.items()}),
        key=" ".join(PTB_SHA256.values()),
    )


def _find_penn_treebank(places: Sequence[Path]) -> dict[str, tuple[bytes, Path]] | None:
    """Contents and path of each split, from the first folder that has all three; None if none has.

    Raises `DataError` if one of the three is not what its hash says.
    """
    for folder in [place / inner for place in places for inner in PTB_FOLDERS]:
        candidates = {split: [folder / name.format(split) for name in PTB_NAMES] for split in SPLITS}
        paths = {split: next(filter(os.path.isfile, candidates[split]), None) for split in SPLITS}
        files = {split: (_read(path), path) for split, path in paths.items() if path is not None}
        if len(files) == len(SPLITS):
            for split, (data, path) in files.items():
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 != PTB_SHA256[split]:
                    raise DataError(
                        f"{path} is not Penn Treebank's {split} split: its sha256 is {sha256}, not "
                        f"{PTB_SHA256[split]}; replace it, or give {folder} as the corpus if it is your own"
                    )
            return files
    return None


def _folder(folder: Path) -> _Source:
    """A text for each split, found by its name."""
    return _own_text(folder, {split: read_text(path) for split, path in text_files(folder).items()})


def _one_file(path: Path) -> _Source:
    """One text, split by lines."""
    tokens = read_text(path)
    ends = [place for place, token in enumerate(tokens, 1) if token == EOS]
    if tokens[-1] != EOS:
        ends.append(len(tokens))
    lines = line_counts(path, len(ends))
    valid, test = ends[lines["train"] - 1], ends[lines["train"] + lines["valid"] - 1]
    splits = {"train": tokens[:valid], "valid": tokens[valid:test], "test": tokens[test:]}
    return _own_text(path, splits, split_note(path, lines))


def _own_text(path: Path, splits: dict[str, list[str]], *notes: str) -> _Source:
    return _Source(text_name(path), f"text in {path}", lambda: _Text(splits), notes=notes, spec=os.path.abspath(path))


def _embedded(name: str) -> _Source:
    """The embedded corpus, in its own words."""

    def read() -> _Text:
        from jaxlm.data import embedded

        corpus = embedded.generate(EMBEDDED[name])
        words = np.array(corpus.words, object)
        splits = {split: words[getattr(corpus, split)].tolist() for split in SPLITS}
        return _Text(splits, corpus.words, {split: corpus.floor_nats(split) for split in SPLITS})

    return _Source(name, f"{name} corpus (a generated language)", read, key=name)


def _build(
    source: _Source, vocab: Vocab | None, max_vocab: int | None, min_count: int, lowercase: bool
) -> Corpus:
    """Reads the source and encodes it, with `vocab` or with one of its own."""
    text = source.read()
    splits = text.splits
    if lowercase:
        splits = {split: [sys.intern(token.lower()) for token in tokens] for split, tokens in splits.items()}
    counts = Counter(chain(splits["train"], text.words))  # one more of each known word leaves their order as it is
    if vocab is None:
        vocab = Vocab.build(counts, max_size=max_vocab, min_count=min_count)
    ids = {split: vocab.encode(splits[split]) for split in SPLITS}
    digest = hashlib.sha256(vocab.sha256.encode())
    for split in SPLITS:
        digest.update(f" {split} {ids[split].size} ".encode() + ids[split].astype("<i4").tobytes())
    sizes = {split: ids[split].size for split in SPLITS}
    unknown = {split: int(np.sum(ids[split] == vocab.ids.get(UNK, -1))) for split in SPLITS}
    # The source's floor is one for this text only while each of its words is still told from the others.
    exact = not lowercase and vocab.ids.keys() >= set(text.words)
    return Corpus(
        name=named(source.name, counts, max_vocab, min_count, lowercase),
        description=described(source.title, sizes, unknown, vocab),
        vocab=vocab,
        train=ids["train"],
        valid=ids["valid"],
        test=ids["test"],
        sha256=digest.hexdigest(),
        floor=text.floor if exact else None,
    )


def _read(path: str | Path) -> bytes:
    with readable(path):
        return Path(path).read_bytes()


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """What keeps a file from being read is a `DataError`, in one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name a text file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decoded(data: bytes, path: str | Path) -> str:
    """The text of a file's bytes, without a byte order mark."""
    text = decoded(data, path)
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with some text")
    return text


def decoded(data: bytes, path: str | Path, start: int = 0) -> str:
    """The text of a part of a file's bytes, from byte `start` on, without a byte order mark."""
    if (zero := data.find(b"\0")) >= 0:
        raise DataError(f"{path} is not text: byte {start + zero} is zero, as in binary files; give text in UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {start + error.start} (0x{data[error.start]:02x}) cannot be decoded "
            f"({error.reason}); convert it to UTF-8"
        ) from None
    return text if start else text.removeprefix("\ufeff")
