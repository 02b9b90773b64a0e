"""`load_corpus`: Penn Treebank, a folder or a file of text, a prepared corpus, or the generated corpus.

Each becomes a `Corpus`: a vocabulary built from train alone, and the ids of three splits.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from jaxlm.config.settings import DataConfig
from jaxlm.data import embedded
from jaxlm.data.cache import cached
from jaxlm.data.corpus import Corpus, CorpusHash, corpus_name, describe, text_name
from jaxlm.data.download import PTB_SHA256
from jaxlm.data.penn_treebank import NotFound, find_penn_treebank
from jaxlm.data.prepared import is_large, prepare_in_cache
from jaxlm.data.prepared_format import is_prepared, load_prepared
from jaxlm.data.text import SPLITS, decode_whole, find_splits, read_text, split_lines, split_note, tokenize
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError

EMBEDDED = {"embedded": "full", "embedded-tiny": "tiny"}  # the generated corpus: its name and its size
UNKNOWN = "unknown"  # the corpus of an imported model
FALLBACK = (
    "EMBEDDED CORPUS, NOT PENN TREEBANK: no copy of Penn Treebank was found and none could be downloaded; "
    "ask for the corpus 'ptb' to see why"
)


@dataclass(frozen=True)
class _Text:
    """The tokens of each split; of the generated corpus also all of its words, and its floor."""

    splits: Mapping[str, Sequence[str]]
    words: Sequence[str] = ()
    floor: Mapping[str, float] | None = None


@dataclass(frozen=True)
class _Source:
    """A text that is read when it is needed. Where `key` identifies its content, its ids are kept in the cache."""

    name: str
    title: str
    read: Callable[[], _Text]
    key: str = ""
    notes: tuple[str, ...] = ()
    spec: str = ""  # where it is not the name


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
    """Finds or generates a corpus, and encodes it.

    Args:
        spec: "ptb" is Penn Treebank, "embedded" and "embedded-tiny" are the generated corpus in two sizes, and "auto"
            is Penn Treebank, or the generated corpus where it can neither be found nor downloaded. Anything else is
            the path of a folder with train, valid and test text, of one file of text, which is split 90/5/5 by lines,
            or of a folder that `prepare` made. Text of more than `prepared.LARGE` bytes is prepared in the user's
            cache.
        data_dir: Where to look for Penn Treebank first; then `$JAXLM_DATA`, `./data/ptb` and the user's cache.
        max_vocab: The most words of the vocabulary.
        min_count: How often a word must occur in train to be in the vocabulary.
        lowercase: Whether to convert the text to lower case.
        vocab: A vocabulary to encode with, in place of one built from train. Of Penn Treebank and the generated corpus
            the name then shows it; of other texts only the hash.
        download: Whether Penn Treebank may be downloaded into the user's cache.
        progress: Whether to show progress bars; None shows them on a terminal.

    Returns:
        The corpus.

    Raises:
        DataError: The text is missing, empty, binary, ambiguous, or not what its hash requires, or an option does not
            fit it.
    """
    if spec not in ("auto", "ptb", *EMBEDDED):
        if is_prepared(spec):
            corpus = load_prepared(spec, max_vocab=max_vocab, min_count=min_count, lowercase=lowercase)
            if vocab not in (None, corpus.vocab):
                raise DataError(f"{spec} is prepared with a vocabulary of its own: load its text with another one")
            return corpus
        if vocab is None and is_large(spec):
            return prepare_in_cache(
                Path(spec), max_vocab=max_vocab, min_count=min_count, lowercase=lowercase, progress=progress
            )
    source = _source(spec, data_dir, download, progress)

    def build(vocab: Vocab | None) -> Corpus:
        return _build(source, vocab, max_vocab, min_count, lowercase)

    key = f"{source.key} {max_vocab} {min_count} {lowercase}"
    corpus = cached(source.name, key, lambda: build(None)) if source.key else build(vocab)
    if vocab not in (None, corpus.vocab):
        corpus = replace(build(vocab), name=f"{corpus.name}+other-vocab")
    return replace(corpus, notes=source.notes, spec=source.spec or source.name)


def reload_corpus(data: DataConfig, vocab: Vocab, data_dir: str | Path | None = None) -> Corpus:
    """The corpus that a run with this vocabulary was trained on.

    A run that began from another one's parameters took their vocabulary over, which is not that of its text.

    Args:
        data: The run's.
        vocab: The run's.
        data_dir: Where to look for Penn Treebank first.

    Returns:
        The corpus, encoded with `vocab` where that can be done; the caller compares its hash.

    Raises:
        DataError: As `load_corpus`.
    """

    def load(vocab: Vocab | None) -> Corpus:
        return load_corpus(
            data.corpus,
            data_dir=data_dir,
            max_vocab=size,
            min_count=data.min_count,
            lowercase=data.lowercase,
            vocab=vocab,
        )

    size = len(vocab)
    corpus = load(None)
    if corpus.vocab != vocab:
        with suppress(DataError):  # (it is prepared with its own words, or has some that `vocab` lacks)
            corpus = load(vocab)
    return corpus


def _source(spec: str | Path, data_dir: str | Path | None, download: bool, progress: bool | None) -> _Source:
    if spec == "auto":
        try:
            return _penn_treebank(data_dir, download, progress)
        except NotFound:
            return replace(_generated("embedded"), notes=(FALLBACK,))
    if spec == "ptb":
        return _penn_treebank(data_dir, download, progress)
    if spec in EMBEDDED:
        return _generated(str(spec))
    if spec == UNKNOWN:
        raise DataError("the corpus of an imported model is unknown: name one with --corpus, or a text with --text")
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
    files = find_penn_treebank(data_dir, download, progress)
    return _Source(
        "ptb",
        "Penn Treebank (Mikolov's files)",
        lambda: _Text({split: tokenize(decode_whole(data, path)) for split, (data, path) in files.items()}),
        key=" ".join(PTB_SHA256.values()),
    )


def _folder(folder: Path) -> _Source:
    """A text for each split, found by its name."""
    return _own_text(folder, {split: read_text(path) for split, path in find_splits(folder).items()})


def _one_file(path: Path) -> _Source:
    """One text, split by lines."""
    tokens = read_text(path)
    ends = [place for place, token in enumerate(tokens, 1) if token == EOS]
    if tokens[-1] != EOS:
        ends.append(len(tokens))
    lines = split_lines(path, len(ends))
    valid, test = ends[lines["train"] - 1], ends[lines["train"] + lines["valid"] - 1]
    splits = {"train": tokens[:valid], "valid": tokens[valid:test], "test": tokens[test:]}
    return _own_text(path, splits, split_note(path, lines))


def _own_text(path: Path, splits: dict[str, list[str]], *notes: str) -> _Source:
    return _Source(text_name(path), f"text in {path}", lambda: _Text(splits), notes=notes, spec=os.path.abspath(path))


def _generated(name: str) -> _Source:
    """The generated corpus, in its own words."""

    def read() -> _Text:
        corpus = embedded.generate(EMBEDDED[name])
        words = np.array(corpus.words, object)
        splits = {split: words[getattr(corpus, split)].tolist() for split in SPLITS}
        return _Text(splits, corpus.words, {split: corpus.floor_nats(split) for split in SPLITS})

    return _Source(name, f"{name} corpus (a generated language)", read, key=name)


def _build(source: _Source, vocab: Vocab | None, max_vocab: int | None, min_count: int, lowercase: bool) -> Corpus:
    """Reads the source and encodes it, with `vocab` or with one of its own."""
    text = source.read()
    splits = text.splits
    if lowercase:
        splits = {split: [sys.intern(token.lower()) for token in tokens] for split, tokens in splits.items()}
    counts = Counter(chain(splits["train"], text.words))  # one more of each word leaves their order as it is
    if vocab is None:
        vocab = Vocab.build(counts, max_size=max_vocab, min_count=min_count)
    ids = {split: vocab.encode(splits[split]) for split in SPLITS}
    corpus_hash = CorpusHash(vocab)
    for split in SPLITS:
        corpus_hash.begin(split, ids[split].size)
        corpus_hash.update(ids[split])
    sizes = {split: ids[split].size for split in SPLITS}
    unknown = {split: int(np.sum(ids[split] == vocab.ids.get(UNK, -1))) for split in SPLITS}
    # The source's floor holds for this text only while all of its words are still distinguished.
    exact = not lowercase and vocab.ids.keys() >= set(text.words)
    return Corpus(
        name=corpus_name(source.name, counts, max_vocab=max_vocab, min_count=min_count, lowercase=lowercase),
        description=describe(source.title, sizes, unknown, vocab),
        vocab=vocab,
        train=ids["train"],
        valid=ids["valid"],
        test=ids["test"],
        sha256=corpus_hash.hexdigest(),
        floor=text.floor if exact else None,
    )
