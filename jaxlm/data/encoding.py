"""The one way that text becomes ids, in memory or, for text of any size, in files.

`number_words` reads a text once, in segments, and gives each distinct word a provisional id in the order of first
occurrence. Segments stay in memory, or each is written to a sealed file; a process that was killed and is started
again reads the files that are there and continues with the next segment. `Encoder` then counts the words of train,
makes the vocabulary, and translates provisional ids into ids, a segment at a time. What a token is, `tokens` decides.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import files
from jaxlm.data import text
from jaxlm.data.cache import recall, remember
from jaxlm.data.text import SPLITS
from jaxlm.data.tokens import WORDS
from jaxlm.data.unknown import unlearned_warning
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError

SEGMENT = 4 << 20  # bytes of text in a segment

Stamp = list[Any]  # [absolute path, bytes, time of change in ns]


@dataclass(frozen=True)
class VocabOptions:
    """What determines a corpus besides its text: see `load_corpus`."""

    max_vocab: int | None = None
    min_count: int = 1
    lowercase: bool = False

    def build(self, counts: Mapping[str, int]) -> Vocab:
        """The vocabulary of a text with these counts of words. Raises DataError."""
        return Vocab.build(counts, max_size=self.max_vocab, min_count=self.min_count)


@dataclass(frozen=True)
class NumberedText:
    """A text whose words are numbered."""

    words: Sequence[str]  # of each provisional id
    spans: Mapping[str, tuple[int, int]]  # where each split begins and ends among the tokens
    sizes: Sequence[int]  # the tokens of each segment
    load: Callable[[int], np.ndarray]  # takes the number of a segment; returns its provisional ids, int32
    notes: tuple[str, ...] = ()  # lines to show the user

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The provisional ids of tokens [start, stop), a segment at a time."""
        for number, (first, end) in enumerate(pairwise(accumulate(self.sizes, initial=0))):
            if first < stop and start < end:
                yield self.load(number)[max(0, start - first) : stop - first]


def stamp(path: Path) -> Stamp:
    """What identifies a text and its state without reading it. Raises DataError where it is no regular file."""
    with text.read_errors(path), files.reader(path) as file:
        status = os.fstat(file.fileno())
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def number_words(
    paths: Mapping[str, Path], work: files.Folder | None = None, advance: Callable[[int], object] = lambda _: None
) -> NumberedText:
    """Reads text files in order and numbers their words.

    Args:
        paths: The file of each split, or {"all": path}: one file, which is split 90/5/5 by lines.
        work: A folder for the segments, which the result needs and nothing else writes in; None: they stay in memory.
        advance: Called with the number of bytes just read, for a progress bar.

    Raises:
        DataError: A file is not text, is empty, has too few lines to be split, or changed while it was read.
        OSError: `work` cannot be written.
    """
    known: defaultdict[str, int] = defaultdict()
    known.default_factory = known.__len__  # a new word's id is its place
    stamps = [stamp(path) for path in paths.values()]
    memory: list[np.ndarray] = []
    keys: list[str] = []  # what determines each segment: the texts, the file, where it begins
    sizes: list[int] = []
    ends, lines, ended = [0], 0, True
    for path, expected in zip(paths.values(), stamps, strict=True):
        offset, done, blank = 0, False, True
        while not done:
            name, key, before = f"segment-{len(keys)}", json.dumps([stamps, len(ends), offset]), len(known)
            found = recall(work, name, key) if work else None
            fields, ids = found or _segment(path, offset, known)
            if stamp(path) != expected:
                raise DataError(f"{path} changed while it was read: start the same command again")
            if found:
                known.update(zip(fields["words"], count(before), strict=False))
            elif work:
                remember(work, name, key, fields, ids)
            if not work:
                memory.append(ids)
            keys.append(key)
            sizes.append(len(ids))
            is_end = ids == known.get(EOS, -1)
            lines += int(np.count_nonzero(is_end))
            if len(ids):
                blank, ended = blank and bool(is_end.all()), bool(is_end[-1])
            advance(fields["end"] - offset)
            offset, done = fields["end"], fields["done"]
        if blank:
            raise text.empty(path)
        ends.append(sum(sizes))

    def load(number: int) -> np.ndarray:
        if not work:
            return memory[number]
        if found := recall(work, f"segment-{number}", keys[number]):
            return found[1]
        raise DataError(f"{work.path} was altered while it was in use: start the same command again")

    numbered = NumberedText(list(known), dict(zip(paths, pairwise(ends), strict=True)), sizes, load)
    return _split_by_lines(numbered, paths["all"], lines + (not ended)) if "all" in paths else numbered


def _segment(path: Path, offset: int, known: defaultdict[str, int]) -> tuple[dict[str, Any], np.ndarray]:
    """Reads a segment; returns (its end, whether the file ends there and its new words; its provisional ids)."""
    parts, end, before, done = [np.zeros(0, np.int32)], offset, len(known), False
    for block, end in text.read_blocks(path, offset):
        tokens = WORDS.units(block)
        parts.append(np.fromiter(map(known.__getitem__, tokens), np.int32, len(tokens)))
        if end - offset >= SEGMENT:
            break
    else:
        done = True
    return {"end": end, "done": done, "words": list(islice(known, before, None))}, np.concatenate(parts)


def _split_by_lines(whole: NumberedText, path: Path, lines: int) -> NumberedText:
    """Splits a text into train, then 5% of its lines for valid, then 5% for test; at least one line each."""
    if lines < 3:
        raise DataError(f"{path} needs at least 3 lines, to be split 90/5/5 by lines, and has {lines}")
    held_out = max(1, lines // 20)
    sizes = {"train": lines - 2 * held_out, "valid": held_out, "test": held_out}
    _, stop = whole.spans["all"]
    eos = whole.words.index(EOS)

    def end_of(line: int) -> int:
        tokens = 0
        for ids in whole.read(0, stop):
            ends = np.flatnonzero(ids == eos)
            if line <= len(ends):
                return tokens + int(ends[line - 1]) + 1
            line, tokens = line - len(ends), tokens + len(ids)
        return stop

    borders = [0, end_of(sizes["train"]), end_of(lines - held_out), stop]
    note = f"{path} is split 90/5/5 by lines: {' / '.join(f'{sizes[split]:,}' for split in SPLITS)}"
    return replace(whole, spans=dict(zip(SPLITS, pairwise(borders), strict=True)), notes=(note,))


class Encoder:
    """Translates a numbered text into the ids of a vocabulary, while it counts and hashes them.

    The sha256 of a corpus covers its vocabulary's hash, then the name, size and int32 ids of each split in order; so
    each split must be read by `ids` once, in the order of `SPLITS`, before `describe`.

    """

    vocab: Vocab
    limited: bool  # whether `max_vocab` dropped a word

    def __init__(self, numbered: NumberedText, options: VocabOptions, vocab: Vocab | None = None) -> None:
        """Makes the vocabulary from train, or takes `vocab`. Raises DataError where it or an option does not fit."""
        words = [word.lower() for word in numbered.words] if options.lowercase else numbered.words
        totals = np.zeros(len(words), np.int64)
        for ids in numbered.read(*numbered.spans["train"]):
            totals += np.bincount(ids, minlength=len(words))
        counts: Counter[str] = Counter()
        for word, total in zip(words, totals.tolist(), strict=True):
            if total:  # the others are in valid or test alone
                counts[word] += total
        self.vocab = options.build(counts) if vocab is None else vocab
        kept = 1 + sum(n >= options.min_count or word == EOS for word, n in counts.items() if word != UNK)
        self.limited = options.max_vocab is not None and kept > options.max_vocab
        self._text, self._options = numbered, options
        self._table = self.vocab.encode(words)
        self._digest = hashlib.sha256(self.vocab.sha256.encode())
        self._unknown = dict.fromkeys(SPLITS, 0)

    def ids(self, split: str) -> Iterator[np.ndarray]:
        """The ids of a split, int32, a segment at a time."""
        start, stop = self._text.spans[split]
        self._digest.update(f" {split} {stop - start} ".encode())
        for provisional in self._text.read(start, stop):
            ids = self._table[provisional]
            self._unknown[split] += int(np.count_nonzero(ids == self.vocab.ids.get(UNK, -1)))
            self._digest.update(ids.astype("<i4").tobytes())
            yield ids

    def describe(self, name: str, title: str) -> dict[str, Any]:
        """The name (with each option that changed the corpus after a "+"), description, sha256 and notes."""
        changed = {
            "lowercase": self._options.lowercase,
            f"max_vocab={self._options.max_vocab}": self.limited,
            f"min_count={self._options.min_count}": self._options.min_count != 1,
        }
        sizes = {split: stop - start for split, (start, stop) in self._text.spans.items()}
        shares = {split: self._unknown[split] / size for split, size in sizes.items()}
        tokens = " / ".join(f"{size:,}" for size in sizes.values())
        unknown = " / ".join(f"{share:.1%}" for share in shares.values())
        return {
            "name": "+".join([name, *(option for option, given in changed.items() if given)]),
            "description": f"{title}: {tokens} tokens, of which {unknown} {UNK}; {len(self.vocab):,} types",
            "sha256": self._digest.hexdigest(),
            "notes": (*self._text.notes, *unlearned_warning(shares)),
        }
