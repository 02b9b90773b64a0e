"""`load_corpus` and `prepare`: from the name of a text to its corpus.

Every text is a source (`sources`), which is encoded once (`encoding`) into a folder (`prepared`),
and a corpus is such a folder opened. The user names the folder, or it lies in the user's cache:

    texts/HASH-NAME     a folder; the hash is of the text, the options and the vocabulary
    texts/HASH          a link to a folder; the hash is of the request: the stamps of the text's
                        files, the options, and the vocabulary if one is given

So a text is read once for each state of its files, and kept once for each vocabulary.
"""

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.base.errors import DataError, reason
from jaxlm.base.fields import checked, checked_value
from jaxlm.base.files import Folder, explained
from jaxlm.data.cache import cache_dir
from jaxlm.data.corpus import Corpus
from jaxlm.data.encoding import Encoder
from jaxlm.data.known_texts import NotFound
from jaxlm.data.options import TextOptions
from jaxlm.data.prepared import HEADER, is_prepared, load_prepared, read_header, write
from jaxlm.data.sources import NAMES, UNKNOWN, Source, find_source
from jaxlm.data.text import Stamp, stamp
from jaxlm.data.vocab import Vocab

__all__ = ["NAMES", "UNKNOWN", "load_corpus", "open_corpus", "prepare", "reload_corpus"]

_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def load_corpus(
    spec: str | Path = "auto",
    *,
    data_dir: str | Path | None = None,
    max_vocab: int | None = None,
    vocab: Vocab | None = None,
    download: bool = True,
    **options: Any,
) -> Corpus:
    """Finds or generates a text, encodes it unless that was done before, and opens its ids.

    Args:
        spec: "ptb" is Penn Treebank, "ptb-char" its characters, "embedded" and "embedded-tiny" are
            the generated corpus in two sizes, "shakespeare" is tiny Shakespeare, and "auto" is Penn
            Treebank, or else the generated corpus. Anything else is the path of a text
            (`text.find_splits`), or of a folder that `prepare` made.
        data_dir: Where to look for Penn Treebank and Shakespeare first; then `$JAXLM_DATA`,
            `./data` and the user's cache.
        max_vocab: The most words or characters of the vocabulary.
        vocab: A vocabulary to encode with, in place of one built from train. It changes the hash
            of the corpus.
        download: Whether they may be downloaded into the user's cache.
        **options: Fields of `DataConfig`, such as `tokens="subwords"`, `min_count` and `lowercase`.

    Returns:
        The corpus, its ids memory-mapped.

    Raises:
        DataError: The text is missing, empty, binary or ambiguous, has another hash, or does not
            fit an option.
    """
    checked_value("corpus", spec, Path)
    text_options = checked(TextOptions(max_vocab=max_vocab, **options))
    return open_corpus(spec, text_options, data_dir, vocab, download)


def open_corpus(
    spec: str | Path,
    options: TextOptions,
    data_dir: str | Path | None = None,
    vocab: Vocab | None = None,
    download: bool = True,
) -> Corpus:
    """`load_corpus` of options that are checked already, as those of a config are.

    Args:
        spec: The text.
        options: How it is read.
        data_dir: Where to look for Penn Treebank and Shakespeare first.
        vocab: A vocabulary to encode with, in place of one built from train.
        download: Whether they may be downloaded.
    """
    if spec == "auto":
        try:
            return open_corpus("ptb", options, data_dir, vocab, download)
        except NotFound:
            corpus = open_corpus("embedded", options, data_dir, vocab, download)
            note = (
                "EMBEDDED CORPUS, NOT PENN TREEBANK: no copy of Penn Treebank was found and none "
                "could be downloaded; ask for the corpus 'ptb' to see why"
            )
            return replace(corpus, notes=(note,))
    if is_prepared(spec):
        corpus = load_prepared(spec, options)
        if vocab not in (None, corpus.vocab):
            raise DataError(
                f"{spec} is prepared with a vocabulary of its own: load its text with another one"
            )
        return corpus
    source = replace(find_source(spec, options, data_dir, download), vocab=vocab)
    notes = ()
    try:
        with Folder.open(cache_dir() / "texts", create=True) as cache:
            corpus = _from_cache(cache, source)
    except OSError as error:
        _TEMPORARY.append(tempfile.TemporaryDirectory(prefix="jaxlm-"))
        scratch = _TEMPORARY[-1].name
        notes = (f"ids are in a temporary folder: {cache_dir()} cannot be used ({reason(error)})",)
        with explained(DataError, f"{scratch} cannot be written"), Folder.open(scratch) as cache:
            corpus = _from_cache(cache, source)
    return replace(corpus, spec=source.spec or corpus.spec, notes=(*corpus.notes, *notes))


def reload_corpus(
    spec: str | Path,
    vocab: Vocab,
    *,
    data_dir: str | Path | None = None,
    **options: Any,
) -> Corpus:
    """Opens the corpus of a run, with the run's vocabulary; compare its hash.

    Args:
        spec: The run's corpus, as `load_corpus` takes it.
        vocab: The vocabulary of the run's checkpoints, which may not be the text's own.
        data_dir: Where to look for Penn Treebank first.
        **options: The run's options of the text, as `load_corpus` takes them.

    Raises:
        DataError: The text cannot be used (`load_corpus`).
    """
    text_options = TextOptions(max_vocab=len(vocab), **options)
    if is_prepared(spec):
        # It has its own vocabulary; the corpus's hash tells whether it is the run's.
        return open_corpus(spec, text_options, data_dir)
    return open_corpus(spec, text_options, data_dir, vocab)


def prepare(
    text: str | Path,
    out: str | Path,
    *,
    max_vocab: int | None = None,
    **options: Any,
) -> Corpus:
    """Encodes a text into a folder, or verifies the folder if it is there.

    Args:
        text: A text, as `load_corpus` takes it.
        out: The folder, which appears once it is whole.
        max_vocab: As `load_corpus` takes it.
        **options: As `load_corpus` takes them.

    Returns:
        The corpus that `load_corpus` makes of the text with these options, its ids memory-mapped.

    Raises:
        DataError: The text or an option cannot be used, or `out` cannot be written or holds
            something else.
    """
    text_options = checked(TextOptions(max_vocab=max_vocab, **options))
    out = Path(os.path.realpath(out) if os.path.islink(out) else os.path.abspath(out))
    if is_prepared(text):
        raise DataError(f"{text} is prepared already: train on it with --corpus")
    source = find_source(text, text_options, None, download=True)
    text_options = source.options
    stamps = _stamps(source)
    remedy = "fix that and run the same command again"
    with explained(DataError, f"{out} cannot be written", remedy):
        entries = sorted(os.listdir(out)) if out.exists() else []
        if entries and HEADER not in entries:
            raise DataError(
                f"{out} is not empty (it holds {', '.join(entries[:4])}): choose another folder"
            )
        if not entries:
            with (
                Folder.open(out.parent, create=True) as parent,
                tempfile.TemporaryFile(dir=parent.path) as scratch,
            ):
                parent.clean(out.name)
                _write(parent, out.name, Encoder(source, scratch))
        with Folder.open(out) as folder:
            header = read_header(folder)
    prepared = {"text": header["text"], "max_vocab": header["max_vocab"], **header["options"]}
    wanted = {"text": stamps, "max_vocab": text_options.max_vocab, **text_options.options}
    changed = [
        f"{name} {prepared[name]}, not {value}"
        for name, value in wanted.items()
        if prepared[name] != value
    ]
    if changed:
        raise DataError(
            f"{out} holds another corpus ({'; '.join(changed)}): choose another folder, or "
            "remove it"
        )
    return load_prepared(out)


def _from_cache(cache: Folder, source: Source) -> Corpus:
    """The corpus of a source, which is encoded unless the cache has it. Raises OSError."""
    options = source.options
    vocab_state = source.vocab.sha256 if source.vocab else _tokenizer_state(options)
    request = _digest(source.state, options.options, options.max_vocab, vocab_state)
    with suppress(OSError, DataError):  # there is no such link, or its folder is damaged
        return load_prepared(cache.path / os.readlink(cache.path / request))
    cache.clean()
    with tempfile.TemporaryFile(dir=cache.path) as scratch:
        encoder = Encoder(source, scratch)
        max_vocab = options.max_vocab if encoder.limited else None
        text = (source.name, source.title, encoder.text.sha256)
        address = _digest(text, options.options, max_vocab, encoder.vocab.sha256)
        name = f"{address}-{source.name.removeprefix('text:')[:40]}"
        try:
            corpus = load_prepared(cache.path / name)
        except DataError:
            if cache.exists(name):
                cache.discard(name)
            _write(cache, name, encoder)
            corpus = load_prepared(cache.path / name)
    vocab = encoder.vocab
    # The request of a resumed run, which gives the vocabulary of its checkpoint (`reload_corpus`).
    resumed = _digest(source.state, corpus.options, len(vocab), vocab.sha256)
    for link in {request, resumed}:
        cache.remove(link)
        with suppress(FileExistsError):  # another process has made it just now
            os.symlink(name, cache.path / link)
    return corpus


def _write(
    parent: Folder,
    name: str,
    encoder: Encoder,
) -> None:
    """Writes an encoded text into a new folder, unless another process has made it just now."""
    try:
        with parent.new_folder(name) as folder:
            write(folder, encoder, _stamps(encoder.source))
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _stamps(source: Source) -> list[Stamp]:
    """What a folder tells of its text: path, bytes and time of modification of each file."""
    return [state[:3] for state in (*source.state, *_tokenizer_state(source.options))]


def _tokenizer_state(options: TextOptions) -> list[Stamp]:
    """The stamp of a tokenizer's file, if one is given."""
    return [stamp(Path(options.tokenizer_file))] if options.tokenizer_file else []


def _digest(*values: Any) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
