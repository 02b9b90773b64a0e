"""`load_corpus`: Penn Treebank, a folder or a file of text, a prepared corpus, or the generated corpus.

Each becomes a `Corpus`: a vocabulary built from train alone, and the ids of three splits.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.settings import DataConfig
from jaxlm.data import prepared
from jaxlm.data.cache import cache_dir, recall, remember
from jaxlm.data.corpus import Corpus
from jaxlm.data.embedded import Size, Source
from jaxlm.data.encoding import Encoder, NumberedText, TextOptions, number_units, stamps_of
from jaxlm.data.penn_treebank import PTB_SHA256, NotFound, find_penn_treebank
from jaxlm.data.text import SPLITS, FilePart, find_splits
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.errors import DataError
from jaxlm.fields import checked, checked_value
from jaxlm.files import Folder

PENN = ("auto", "ptb", "ptb-char")  # Penn Treebank; auto: or else the generated corpus
EMBEDDED = ("embedded", "embedded-tiny")  # the generated corpus in its sizes
UNKNOWN = "unknown"  # the corpus of an imported model


def load_corpus(
    spec: str | Path = "auto",
    *,
    data_dir: str | Path | None = None,
    max_vocab: int | None = None,
    vocab: Vocab | None = None,
    download: bool = True,
    **options: Any,
) -> Corpus:
    """Finds or generates a corpus, and encodes it.

    Args:
        spec: "ptb" is Penn Treebank, "ptb-char" its characters, "embedded" and "embedded-tiny" are the generated corpus
            in two sizes, and "auto" is Penn Treebank, or else the generated corpus. Anything else is the path of a
            text (`text.find_splits`), or of a folder that `prepare` made. Text of more than `prepared.LARGE` bytes is
            prepared in the user's cache.
        data_dir: Where to look for Penn Treebank first; then `$JAXLM_DATA`, `./data/ptb` and the user's cache.
        max_vocab: The most words or characters of the vocabulary.
        vocab: A vocabulary to encode with, in place of one built from train. It changes the name of Penn Treebank and
            the generated corpus, and the hash of any corpus.
        download: Whether Penn Treebank may be downloaded into the user's cache.
        **options: Fields of `DataConfig`, such as `tokens="subwords"`, `min_count` and `lowercase`.

    Raises:
        DataError: The text is missing, empty, binary or ambiguous, has another hash, or does not fit an option.
    """
    read = checked(TextOptions(max_vocab=max_vocab, **options))
    checked_value("corpus", spec, Path)
    if spec in PENN:
        try:
            paths = find_penn_treebank(data_dir, download)
        except NotFound:
            if spec != "auto":
                raise
            why = "no copy of Penn Treebank was found and none could be downloaded; ask for the corpus 'ptb' to see why"
            return replace(
                _generated("embedded", read, vocab),
                notes=(f"EMBEDDED CORPUS, NOT PENN TREEBANK: {why}",),
            )
        title = "Penn Treebank (Mikolov's files)"
        start = 0
        name = "ptb"
        if spec == "ptb-char":
            title = "Penn Treebank's characters (Mikolov's files: 5,017k / 393k / 442k of 50 symbols, a space as _)"
            tokens = "characters" if read.tokens == "words" else read.tokens
            read = replace(read, tokens=tokens, lines="stripped")
            start = 1
            name = "ptb-char"  # (a space comes first)
        parts = {split: [FilePart(path, start)] for split, path in paths.items()}

        def build(vocab: Vocab | None) -> Corpus:
            return _encode(name, title, number_units(parts, read, vocab), read, vocab)

        return _cached(name, " ".join(PTB_SHA256.values()), read, vocab, build)
    if spec in EMBEDDED:
        return _generated(str(spec), read, vocab)
    if spec == UNKNOWN:
        raise DataError(
            "the corpus of an imported model is unknown: name one with --corpus (or, to score it, --text)"
        )
    path = Path(spec)
    if prepared.is_prepared(path):
        corpus = prepared.load_prepared(path, read)
        if vocab not in (None, corpus.vocab):
            raise DataError(
                f"{spec} is prepared with a vocabulary of its own: load its text with another one"
            )
        return corpus
    if not os.path.exists(spec) and not has_magic(str(path)):  # ("" is no folder)
        expected = f"{', '.join((*PENN, *EMBEDDED))}, or the path of a folder or a file of text"
        raise DataError(f"there is no corpus or file {str(spec)!r}; expected {expected}")
    parts = find_splits(path)
    if sum(size for _, size, _ in stamps_of(parts).values()) > prepared.LARGE:
        return prepared.prepare_in_cache(path, parts, read, vocab)
    corpus = _encode(
        prepared.text_name(path), f"text in {path}", number_units(parts, read, vocab), read, vocab
    )
    return replace(corpus, spec=os.path.abspath(path))


def reload_corpus(data: DataConfig, vocab: Vocab, data_dir: str | Path | None = None) -> Corpus:
    """The corpus that a run was trained on, encoded with the run's vocabulary where it can be; compare its hash.

    A run that began from another run has the vocabulary of that run, and the subwords of a run are not found anew.
    Raises DataError as `load_corpus`.
    """
    load = partial(
        load_corpus, data.corpus, data_dir=data_dir, max_vocab=len(vocab), **data.options
    )
    with suppress(DataError):  # it is prepared with its own words, or has some that `vocab` lacks
        return load(vocab=vocab)
    return load()


def _generated(name: str, options: TextOptions, vocab: Vocab | None) -> Corpus:
    """The generated corpus, which has no paragraphs; its floor holds while all of its words are still distinguished."""
    options = replace(options, lines="eos")

    def build(vocab: Vocab | None) -> Corpus:
        source = Source(Size.of(name))
        drawn = [
            [partial(np.asarray, source.draw(size, stream))]
            for stream, size in enumerate(source.spec.tokens)
        ]
        words = [word.lower() for word in source.words] if options.lowercase else source.words
        if (vocab.tokens if vocab else options.kind).kind != "words":
            words = ["\n" if word == EOS else f" {word}" for word in words]
        numbered = NumberedText(words, dict(zip(SPLITS, drawn, strict=True)))
        corpus = _encode(name, f"{name} corpus (a generated language)", numbered, options, vocab)
        if not corpus.vocab.ids.keys() >= {*source.words, *words}:
            return corpus
        return replace(corpus, floor=dict(zip(SPLITS, source.spec.floor, strict=True)))

    return _cached(name, name, options, vocab, build)


def _encode(
    name: str, title: str, numbered: NumberedText, options: TextOptions, vocab: Vocab | None
) -> Corpus:
    """A corpus in memory, encoded with `vocab` or with a vocabulary of its own."""
    encoder = Encoder(numbered, options, vocab)
    ids = {split: np.concatenate(list(encoder.ids(split))) for split in SPLITS}
    known = encoder.describe(name, title)
    fixed = options.options | {"tokens": encoder.vocab.kind}
    return Corpus(vocab=encoder.vocab, **ids, **known, spec=name, options=fixed)


def _cached(
    name: str,
    key: str,
    options: TextOptions,
    vocab: Vocab | None,
    build: Callable[[Vocab | None], Corpus],
) -> Corpus:
    """A corpus from the user's cache; what `build` makes is kept there, unless the cache cannot be written."""
    if vocab and vocab.kind == "subwords":  # a model of them is not made again to compare it
        return build(vocab)
    corpus = None
    key = f"{key} {options} {hashlib.sha256(getattr(options.kind, 'model', b'')).hexdigest()}"
    with suppress(OSError), Folder.open(cache_dir() / "ids", create=True) as folder:
        found = recall(folder, name, key)
        if found:
            known, ids = found
            train, valid, test = np.split(ids, np.cumsum(known.pop("sizes"))[:-1])
            known |= {"vocab": Vocab.from_json(known["vocab"]), "notes": tuple(known["notes"])}
            corpus = Corpus(**known, train=train, valid=valid, test=test)
        else:
            corpus = build(None)
            known = {**vars(corpus), "vocab": corpus.vocab.to_json()}
            splits = [known.pop(split) for split in SPLITS]
            remember(
                folder, name, key, {**known, "sizes": [*map(len, splits)]}, np.concatenate(splits)
            )
    corpus = corpus or build(None)
    if vocab not in (None, corpus.vocab):
        return replace(build(vocab), name=f"{corpus.name}+other-vocab")
    return corpus
