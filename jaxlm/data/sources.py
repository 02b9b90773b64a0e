"""Sources: the texts that can be encoded, before any is read.

Penn Treebank, the generated corpus, and the user's files, folders, patterns and streams are each
found here by the argument of `load_corpus`, and described by one `Source`.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from jaxlm.base.errors import DataError
from jaxlm.data.embedded import Generator, Size, language
from jaxlm.data.known_texts import PENN_TREEBANK, SHAKESPEARE, find_known_text
from jaxlm.data.options import TextOptions
from jaxlm.data.text import SPLITS, FilePart, Stamp, find_splits, stamp
from jaxlm.data.tokens import EOS, Words
from jaxlm.data.vocab import Vocab

EMBEDDED = ("embedded", "embedded-tiny")  # the generated corpus in its sizes
# All texts that are no path; auto is Penn Treebank, or else the generated corpus.
NAMES = ("auto", "ptb", "ptb-char", *EMBEDDED, "shakespeare")
UNKNOWN = "unknown"  # the corpus of an imported model


class GeneratedSplit(NamedTuple):
    """A split of the generated corpus as text: a space before each word, a sentence a line.

    Attributes:
        size: The corpus's size.
        stream: The number of the split.
        joined: As of a `FilePart`.
    """

    size: Size
    stream: int
    joined: bool = False

    def blocks(self, errors: str) -> Iterator[str]:
        """Yields the text, of a few megabytes, in one piece."""
        generator = Generator(self.size)
        ids = generator.draw(self.size.tokens[self.stream], self.stream)
        words = ["\n" if word == EOS else f" {word}" for word in generator.words]
        yield "".join(words[word_id] for word_id in ids.tolist())


Part = FilePart | GeneratedSplit


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text that can be encoded.

    Attributes:
        name: The name of the corpus that it makes, such as "ptb" or "text:novel.txt".
        title: What the text is, for the corpus's description.
        spec: The argument with which `load_corpus` finds the text again, from any working
            directory; None for a stream, which can be read once.
        state: A stamp of each file, by which the text is known without reading it; or what
            identifies a published or generated text.
        parts: What is read, in order, for each split; or for "all", to be split by lines.
        options: How the text is read.
        vocab: The vocabulary to encode with; None: one is made of train.
        generated: The size of the generated corpus, if the text is that.
    """

    name: str
    title: str
    spec: str | None
    state: Sequence[Stamp]
    parts: Mapping[str, Sequence[Part]]
    options: TextOptions
    vocab: Vocab | None = None
    generated: Size | None = None

    @property
    def files(self) -> list[Path]:
        """The files that must not change while they are read; a stream is none."""
        if self.spec is None:
            return []
        parts = chain.from_iterable(self.parts.values())
        return [part.path for part in parts if isinstance(part, FilePart)]

    @property
    def kind(self) -> Words:
        """The kind of tokens, which cuts the text into units."""
        return self.vocab.tokens if self.vocab else self.options.kind

    def floor(self, vocab: Vocab) -> dict[str, float] | None:
        """The least summed nats of each split; None: unknown.

        They are known of the generated corpus, as long as the vocabulary has all of its words.
        """
        if self.generated is None or self.options.lowercase:
            return None
        if not vocab.ids.keys() >= set(Generator(self.generated).words):
            return None
        return dict(zip(SPLITS, self.generated.floor, strict=True))


def find_source(
    spec: str | Path,
    options: TextOptions,
    data_dir: str | Path | None,
    download: bool,
) -> Source:
    """Finds the text that an argument of `load_corpus` names.

    Args:
        spec: One of `NAMES` ("auto" is Penn Treebank), or a path (`text.find_splits`).
        options: How the text shall be read. Penn Treebank's characters and the generated corpus
            have lines of their own.
        data_dir: Where to look for Penn Treebank first.
        download: Whether Penn Treebank may be downloaded.

    Raises:
        NotFound: Penn Treebank is in none of its places, and cannot be downloaded.
        DataError: There is no such text, or it cannot be read.
    """
    if spec in _KNOWN:
        text, make = _KNOWN[str(spec)]
        return make(str(spec), find_known_text(text, data_dir, download), options)
    if spec in EMBEDDED:
        return _generated(str(spec), options)
    if spec == UNKNOWN:
        raise DataError(
            "the training text of this model is unknown: name one with --corpus (or, to score it, "
            "--text)"
        )
    path = Path(spec)
    if not os.path.exists(spec) and not has_magic(str(path)):  # Path("") would be a folder
        raise DataError(
            f"there is no corpus or file {str(spec)!r}; expected {', '.join(NAMES)}, or the path "
            "of a folder or a file of text"
        )
    parts = find_splits(path)
    paths = dict.fromkeys(part.path for part in chain.from_iterable(parts.values()))
    return Source(
        name=f"text:{os.path.basename(os.path.abspath(path))}",
        title=f"text in {path}",
        spec=None if str(path).startswith("/dev/") else os.path.abspath(path),
        state=[stamp(path) for path in paths],
        parts=parts,
        options=options,
    )


def _penn_treebank(
    spec: str,
    paths: Mapping[str, Path],
    options: TextOptions,
) -> Source:
    """Penn Treebank's words (`ptb`) or characters (`ptb-char`), whose hashes identify the text."""
    name = "ptb"
    title = "Penn Treebank (Mikolov's files)"
    start = 0
    if spec == "ptb-char":
        name = "ptb-char"
        title = (
            "Penn Treebank's characters (Mikolov's files: 5,017k / 393k / 442k of 50 symbols, "
            "a space as _)"
        )
        start = 1  # each file begins with a space, which is no part of the text
        tokens = "characters" if options.tokens == "words" else options.tokens
        options = replace(options, tokens=tokens, lines="stripped")
    return Source(
        name=name,
        title=title,
        spec=name,
        state=[[name, *PENN_TREEBANK.sha256.values()]],
        parts={split: [FilePart(path, start)] for split, path in paths.items()},
        options=options,
    )


def _shakespeare(
    spec: str,
    paths: Mapping[str, Path],
    options: TextOptions,
) -> Source:
    """Tiny Shakespeare as nanoGPT splits it: 90% for train, and the rest for valid and test."""
    path = paths["input"]
    border = os.path.getsize(path) * 9 // 10  # of characters too: the text is ASCII
    held_out = [FilePart(path, border)]
    return Source(
        name=spec,
        title="tiny Shakespeare (nanoGPT's split; test is valid)",
        spec=spec,
        state=[[spec, *SHAKESPEARE.sha256.values()]],
        parts={"train": [FilePart(path, 0, border)], "valid": held_out, "test": held_out},
        options=options,
    )


# The texts whose hashes are published, and the function that makes a source of each.
_KNOWN = {
    "auto": (PENN_TREEBANK, _penn_treebank),
    "ptb": (PENN_TREEBANK, _penn_treebank),
    "ptb-char": (PENN_TREEBANK, _penn_treebank),
    "shakespeare": (SHAKESPEARE, _shakespeare),
}


def _generated(name: str, options: TextOptions) -> Source:
    """The generated corpus, a sentence a line."""
    size = Size.of(name)
    return Source(
        name=name,
        title=f"{name} corpus (a generated language)",
        spec=name,
        state=[[name, json.dumps(language(), sort_keys=True)]],
        parts={split: [GeneratedSplit(size, stream)] for stream, split in enumerate(SPLITS)},
        options=replace(options, lines="eos"),
        generated=size,
    )
