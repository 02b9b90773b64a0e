"""The one way that text becomes ids, in memory or, for text of any size, in files.

`number_units` reads a text once, in segments, and gives each distinct unit (a word or a character) a provisional id in
the order of first occurrence. Segments stay in memory, or each is written to a sealed file; a process that was killed
and is started again reads the files that are there and continues with the next segment. `Encoder` then counts the units
of train, makes the vocabulary, and translates provisional ids into the ids of each unit's tokens, a segment at a time.
What units and tokens are, `tokens` decides.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import files
from jaxlm.config.settings import DataConfig
from jaxlm.data import text
from jaxlm.data.cache import recall, remember
from jaxlm.data.corpus import unlearned_warning
from jaxlm.data.text import SPLITS, FilePart, Parts
from jaxlm.data.tokens import (
    MOST_BYTES,
    UNK,
    WORDS,
    Bytes,
    Characters,
    Subwords,
    Words,
    stripped,
    unwrapped,
)
from jaxlm.data.vocab import Vocab, frequent
from jaxlm.errors import DataError
from jaxlm.fields import count

SEGMENT = 4 << 20  # bytes of text in a segment
LEAST_BYTES = 100  # of a text without lines, so that it is split

Stamp = list[Any]  # [absolute path, bytes, time of change in ns]


@dataclass(frozen=True)
class TextOptions(DataConfig):
    """What determines a corpus besides its text: see `load_corpus`."""

    max_vocab: int | None = count(None, "most words or characters of the vocabulary", low=2)

    @cached_property
    def kind(self) -> Words:
        """What cuts the text into units. Raises DataError where a tokenizer's file cannot be used."""
        match self.tokens:
            case "characters":
                return Characters(self.normalize)
            case "bytes":
                return Bytes()
            case "subwords" if self.tokenizer_file:
                with text.read_errors(self.tokenizer_file):
                    return Subwords.read(
                        files.read_bytes(Path(self.tokenizer_file), MOST_BYTES), self.tokenizer_file
                    )
            case "subwords":
                return Subwords(b"")  # until it is trained
        return WORDS

    def build(self, counts: Mapping[str, int]) -> Vocab:
        """The vocabulary of a text with these counts of units. Raises DataError."""
        kind = self.kind
        if kind.kind in ("words", "characters"):
            return Vocab.build(counts, max_size=self.max_vocab, min_count=self.min_count, kind=kind)
        if self.tokens == "subwords" and not self.tokenizer_file:
            kind = Subwords.train(counts, self.pieces, self.piece_model)
        return Vocab(kind.names, kind)


def as_read(data: DataConfig, text: str) -> str:
    """A text as it is cut into units: in the case and the lines that `data` asks for."""
    text = text.lower() if data.lowercase else text
    return {"eos": str, "stripped": stripped, "unwrap": unwrapped}[data.lines](text)


Segments = Sequence[
    Callable[[], np.ndarray]
]  # each returns the provisional ids of a part of a text, int32 [units]


@dataclass(frozen=True)
class NumberedText:
    """A text whose units are numbered."""

    units: Sequence[str]  # of each provisional id
    segments: Mapping[str, Segments]  # of each split
    notes: tuple[str, ...] = ()  # lines to show the user


def stamp(path: Path) -> Stamp:
    """What identifies a text and its state without reading it. Raises DataError where it is no regular file."""
    with text.read_errors(path), files.reader(path) as file:
        status = os.fstat(file.fileno())
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def stamps_of(parts: Parts) -> dict[Path, Stamp]:
    """The stamp of each file of a text, in order."""
    return {part.path: stamp(part.path) for several in parts.values() for part in several}


def number_units(
    parts: Parts,
    options: TextOptions,
    vocab: Vocab | None = None,
    work: files.Folder | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> NumberedText:
    """Reads text files in order and numbers their units, as `vocab` (None: `options`) cuts a text.

    Segments stay in memory, or lie in `work`, where nothing else writes, as long as the result is used. `advance` is
    called with the number of bytes just read. Raises DataError where a file is not text, is empty, is too short to be
    split, or changed while it was read; OSError where `work` cannot be written.
    """
    kind = vocab.tokens if vocab else options.kind
    known: defaultdict[str, int] = defaultdict()
    known.default_factory = known.__len__  # a new unit's id is its place
    every = [(split, part) for split, several in parts.items() for part in several]
    stamps = stamps_of(parts)
    reading = [kind.kind, getattr(kind, "normalize", ""), options.lowercase, options.lines]
    seal = hashlib.sha256(json.dumps([*stamps.values(), reading]).encode()).hexdigest()
    segments: dict[str, list[Callable[[], np.ndarray]]] = {split: [] for split in parts}
    newlines: list[int] = []  # in each segment
    words = dict.fromkeys(parts, 0)
    ended = True  # the units that are no newline; whether the last one is
    for place, (split, part) in enumerate(every):
        offset = part.start
        done = False
        while not done:
            name = f"segment-{len(newlines)}{'' if part.stop is None else f'-{part.stop}'}"
            before = len(known)
            key = json.dumps(
                [seal, place, part.stop, offset]
            )  # the texts, the file, where the segment begins
            found = recall(work, name, key) if work else None
            fields, ids = found or _segment(part, offset, known, kind, options, ended)
            if stamp(part.path) != stamps[part.path]:
                raise DataError(
                    f"{part.path} changed while it was read: start the same command again"
                )
            if work and not found:
                remember(work, name, key, fields, ids)
            known.update((unit, at) for at, unit in enumerate(fields["units"], before))
            is_end = ids == known.get(kind.newline, -1)
            newlines.append(int(np.count_nonzero(is_end)))
            segments[split].append(
                partial(_recalled, work, name, key) if work else partial(np.asarray, ids)
            )
            words[split] += len(ids) - newlines[-1]
            ended = bool(is_end[-1]) if len(ids) else ended
            advance(fields["end"] - offset)
            offset = fields["end"]
            done = fields["done"]
    empty = next((split for split in parts if not words[split]), None)
    if empty:
        path, _, stop, _ = parts[empty][0]
        raise text.empty(path if stop is None else f"the {empty} split of {path}")
    numbered = NumberedText(list(known), segments)
    if "all" not in parts:
        held_out = " and ".join(f"{len(parts[split])} for {split}" for split in SPLITS[1:])
        note = f"{len(every):,} texts are split by texts: {held_out}"
        return replace(numbered, notes=(note,) if len(every) > len(SPLITS) else ())
    (_, first), *others = every
    title = f"{first.path} with {len(others)} more" if others else str(first.path)
    lines = sum(newlines) + (not ended)
    if lines < 3 and not others and os.path.getsize(first.path) >= LEAST_BYTES:
        numbered = number_units(text.stretches(first.path), options, vocab, work)
        return replace(
            numbered,
            notes=(f"{title} has {lines} line{'s' * (lines > 1)}, and is split 90/5/5 by bytes",),
        )
    return _split_by_lines(numbered, title, lines, newlines, known.get(kind.newline, -1))


def _segment(
    part: FilePart,
    offset: int,
    known: defaultdict[str, int],
    kind: Words,
    options: TextOptions,
    ended: bool,
) -> tuple[dict[str, Any], np.ndarray]:
    """Reads a segment; returns (its end, whether the file ends there and its new units; its provisional ids)."""
    found = [np.zeros(0, np.int32)]
    end = offset
    before = len(known)
    done = False
    for block, end in text.read_blocks(part.path, offset, part.stop, kind.errors):
        lead = "\n" * (
            part.joined and offset == part.start and len(found) == 1
        )  # (of the file before)
        units = kind.units(as_read(options, lead + block)[len(lead) :])
        found.append(np.fromiter(map(known.__getitem__, units), np.int32, len(units)))
        if end - offset >= SEGMENT:
            break
    else:
        done = True
    ids = np.concatenate(found)
    if done and part.joined and not (ids[-1] == known.get(kind.newline) if len(ids) else ended):
        ids = np.append(ids, np.int32(known[kind.newline]))
    return {"end": end, "done": done, "units": list(islice(known, before, None))}, ids


def _recalled(work: files.Folder, name: str, key: str) -> np.ndarray:
    found = recall(work, name, key)
    if found:
        return found[1]
    raise DataError(f"{work.path} was altered while it was in use: start the same command again")


def _split_by_lines(
    whole: NumberedText, title: str, lines: int, newlines: Sequence[int], newline: int
) -> NumberedText:
    """Splits a text into train, then 5% of its lines for valid, then 5% for test; at least one line each.

    `newlines` is how many there are in each segment, `newline` their provisional id.
    """
    if lines < 3:
        raise DataError(
            f"{title} needs at least 3 lines, to be split 90/5/5 by lines, and has {lines}"
        )
    held_out = max(1, lines // 20)
    segments = whole.segments["all"]
    seen = [*accumulate(newlines, initial=0)]
    borders: list[tuple[int, int | None]] = [
        (0, 0)
    ]  # the segment where each split begins, and the unit of the segment
    for line in (lines - 2 * held_out, lines - held_out):  # with which train and valid end
        at = bisect_left(seen, line) - 1
        borders.append(
            (at, int(np.flatnonzero(segments[at]() == newline)[line - seen[at] - 1]) + 1)
        )
    ends = pairwise([*borders, (len(segments) - 1, None)])
    parts = {
        split: _between(segments, *first, *last)
        for split, (first, last) in zip(SPLITS, ends, strict=True)
    }
    note = (
        f"{title} is split 90/5/5 by lines: {lines - 2 * held_out:,} / {held_out:,} / {held_out:,}"
    )
    return replace(whole, segments=parts, notes=(note,))


def _between(
    segments: Segments, first: int, start: int | None, last: int, stop: int | None
) -> Segments:
    """The segments from a unit of the first to a unit of the last."""
    return [
        lambda load=segments[at], units=slice(start if at == first else 0, stop if at == last else None): (
            load()[units]
        )
        for at in range(first, last + 1)
    ]


class Encoder:
    """Translates a numbered text into the ids of a vocabulary, while it counts and hashes them.

    The sha256 of a corpus covers its vocabulary's hash, then the name, size and int32 ids of each split in order; so
    each split must be read by `ids` once, in the order of `SPLITS`, before `describe`.
    """

    def __init__(
        self, numbered: NumberedText, options: TextOptions, vocab: Vocab | None = None
    ) -> None:
        """Makes the vocabulary from train, or takes `vocab`. Raises DataError where it or an option does not fit."""
        totals = {split: np.zeros(len(numbered.units), np.int64) for split in SPLITS}
        for split, total in totals.items():
            for load in numbered.segments[split]:
                total += np.bincount(load(), minlength=len(total))
        counts: Counter[str] = Counter()
        for unit, total in zip(numbered.units, totals["train"].tolist(), strict=True):
            if (
                total or unit == "\n"
            ):  # the others are in valid or test alone; only test may end with a newline
                for token in unit if options.tokens == "characters" else (unit,):
                    counts[token] += total
        self.vocab = vocab or options.build(counts)
        kind = self.vocab.tokens
        most = options.max_vocab  # limited: fewer than the words that there are
        self.limited = (
            not kind.names
            and most is not None
            and most < len(frequent(counts, options.min_count, kind))
        )
        self._text = numbered
        self._options = options
        names = [kind.split(unit) for unit in numbered.units]
        self._lengths = np.array([*map(len, names)], np.int64)  # the tokens of each unit
        self._ends = np.cumsum(self._lengths)
        self._table = self.vocab.encode([name for unit in names for name in unit])
        self.sizes = {
            split: int(total @ self._lengths) for split, total in totals.items()
        }  # in tokens
        self._digest = hashlib.sha256(self.vocab.sha256.encode())
        self._unknown = dict.fromkeys(SPLITS, 0)

    def ids(self, split: str) -> Iterator[np.ndarray]:
        """The ids of a split, int32, a segment at a time."""
        self._digest.update(f" {split} {self.sizes[split]} ".encode())
        for load in self._text.segments[split]:
            provisional = load()
            lengths = self._lengths[provisional]
            shift = self._ends[provisional] - np.cumsum(
                lengths
            )  # from a token's place here to its place in the table
            ids = self._table[np.arange(lengths.sum()) + np.repeat(shift, lengths)]
            self._unknown[split] += int(np.count_nonzero(ids == self.vocab.unknown_id))
            self._digest.update(ids.astype("<i4").tobytes())
            yield ids

    def describe(self, name: str, title: str) -> dict[str, Any]:
        """The name (with each option that changed the corpus after a "+"), description, sha256 and notes."""
        kind = self.vocab.kind
        options = self._options
        changed = {
            kind: kind != "words" and (name, kind) != ("ptb-char", "characters"),
            "unwrap": options.lines == "unwrap",
            "stripped": options.lines == "stripped" and kind != "words" and name != "ptb-char",
            "lowercase": options.lowercase,
            f"max_vocab={options.max_vocab}": self.limited,
            f"min_count={options.min_count}": options.min_count != 1,
        }
        shares = {split: self._unknown[split] / max(1, size) for split, size in self.sizes.items()}
        tokens = f"{' / '.join(f'{size:,}' for size in self.sizes.values())} {'tokens' if kind == 'words' else kind}"
        unknown = f", of which {' / '.join(f'{share:.1%}' for share in shares.values())} {UNK}"
        return {
            "name": "+".join([name, *(option for option, given in changed.items() if given)]),
            "description": f"{title}: {tokens}{unknown * (self.vocab.unknown_id >= 0)}; {len(self.vocab):,} types",
            "sha256": self._digest.hexdigest(),
            "notes": (*self._text.notes, *unlearned_warning(shares)),
        }
