"""The one way that text becomes ids, whatever its size.

`number_units` reads a text once and gives each distinct unit (a word or a character, as `tokens`
tells) a number, in the order of first occurrence. The numbers go to a scratch file; memory holds a
block of the text and the distinct units. `Encoder` then counts the units of train, makes the
vocabulary, and translates the numbers into the ids of each unit's tokens.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.data.corpus import unlearned_warning
from jaxlm.data.options import as_read
from jaxlm.data.sources import Part, Source
from jaxlm.data.subwords import DEFAULT_PIECES
from jaxlm.data.text import SPLITS, FilePart, by_bytes, empty, unchanged
from jaxlm.data.tokens import UNK
from jaxlm.data.vocab import frequent

UNITS_AT_ONCE = 1 << 19  # units whose numbers are translated in one piece
LEAST_BYTES = 100  # a text of one or two lines is split by bytes if it has so many


@dataclass(frozen=True)
class NumberedText:
    """A text whose units are numbered.

    Attributes:
        units: The unit of each number.
        numbers: A file of the numbers of all units in order, int32.
        spans: The places of each split's first unit, and of the unit behind its last.
        lines: How many lines the text has.
        sha256: The hash of units, numbers and spans.
        notes: Lines to show the user.
    """

    units: Sequence[str]
    numbers: BinaryIO
    spans: Mapping[str, tuple[int, int]]
    lines: int
    sha256: str
    notes: tuple[str, ...] = ()

    def blocks(self, split: str) -> Iterator[np.ndarray]:
        """Yields the numbers of a split's units, int32 [at most `UNITS_AT_ONCE`]."""
        start, stop = self.spans[split]
        self.numbers.seek(4 * start)
        while start < stop:
            size = min(stop - start, UNITS_AT_ONCE)
            yield np.frombuffer(self.numbers.read(4 * size), np.int32)
            start += size


def number_units(source: Source, scratch: BinaryIO) -> NumberedText:
    """Reads a text once and numbers its units.

    Args:
        source: The text.
        scratch: An empty file for the numbers; it must stay open while the result is used.

    Returns:
        The text, with the units of train, valid and test.

    Raises:
        DataError: A file is not text, has no word, is too short to be split, or changed while it
            was read.
        OSError: The scratch file cannot be written.
    """
    with unchanged(source.files):
        numbered = _number_parts(source, source.parts, scratch)
        if "all" in source.parts:
            numbered = _split_whole(numbered, source, scratch)
    if "all" not in source.parts and len(source.files) > len(SPLITS):
        held_out = " and ".join(f"{len(source.parts[split])} for {split}" for split in SPLITS[1:])
        note = f"{len(source.files):,} texts are split by texts: {held_out}"
        numbered = replace(numbered, notes=(note,))
    return numbered


def _split_whole(
    numbered: NumberedText,
    source: Source,
    scratch: BinaryIO,
) -> NumberedText:
    """Splits a text without splits by its lines; a single file of a line or two by its bytes."""
    first, *others = source.parts["all"]
    assert isinstance(first, FilePart)  # generated text has its splits
    path = first.path
    lines = numbered.lines
    if lines >= 3 or others or os.path.getsize(path) < LEAST_BYTES:
        title = f"{path} with {len(others)} more" if others else str(path)
        return _split_by_lines(numbered, title, source.kind.newline)
    scratch.seek(0)
    scratch.truncate()
    numbered = _number_parts(source, by_bytes(path), scratch)
    noun = "line" if lines == 1 else "lines"
    return replace(numbered, notes=(f"{path} has {lines} {noun}, and is split 90/5/5 by bytes",))


class _Numbers(dict[str, int]):
    """The number of each unit; a unit that is looked up for the first time gets the next one."""

    def __missing__(self, unit: str) -> int:
        self[unit] = len(self)
        return self[unit]


def _number_parts(
    source: Source,
    parts: Mapping[str, Sequence[Part]],
    scratch: BinaryIO,
) -> NumberedText:
    """Numbers the units of all parts. Raises as `number_units` does."""
    newline = source.kind.newline
    number_of = _Numbers()
    digest = hashlib.sha256()
    spans = {}
    lines = 0
    count = 0  # units so far
    last_unit = newline
    for split, parts_of_split in parts.items():
        start = count
        has_words = False
        for part in parts_of_split:
            for units in _units(part, source):
                numbers = np.fromiter(map(number_of.__getitem__, units), np.int32, len(units))
                newlines = int(np.count_nonzero(numbers == number_of.get(newline, -1)))
                if units:
                    last_unit = units[-1]
                has_words = has_words or newlines < len(units)
                lines += newlines
                count += len(units)
                scratch.write(numbers.tobytes())
                digest.update(numbers.tobytes())
        if not has_words:
            raise _no_word(split, parts_of_split[0])
        spans[split] = (start, count)
    if last_unit != newline:
        lines += 1
    units = list(number_of)
    digest.update(json.dumps([units, spans]).encode())
    return NumberedText(units, scratch, spans, lines, digest.hexdigest())


def _units(part: Part, source: Source) -> Iterator[list[str]]:
    """Yields the units of a part, a block at a time."""
    kind = source.kind
    end_before = "\n" if part.joined else ""  # how the text before this one ends
    last_unit = kind.newline
    for block in part.blocks(kind.errors):
        units = kind.units(as_read(source.options, end_before + block)[len(end_before) :])
        end_before = ""
        if units:
            last_unit = units[-1]
        yield units
    if part.joined and last_unit != kind.newline:
        yield [kind.newline]


def _no_word(split: str, part: Part) -> DataError:
    """The error for a split without a word, which begins with a part of a file."""
    assert isinstance(part, FilePart)  # generated text has words
    if part.stop is None:
        return empty(part.path)
    return empty(f"the {split} split of {part.path}")


def _split_by_lines(
    text: NumberedText,
    title: str,
    newline: str,
) -> NumberedText:
    """Splits the span "all" into train, then 5% of its lines for valid, then 5% for test.

    Args:
        text: The text.
        title: What it is called in the note.
        newline: The unit of a newline.

    Raises:
        DataError: The text has fewer than three lines.
    """
    lines = text.lines
    if lines < 3:
        raise DataError(
            f"{title} needs at least 3 lines, to be split 90/5/5 by lines, and has {lines}"
        )
    held_out = max(1, lines // 20)
    last_lines = (lines - 2 * held_out, lines - held_out)  # of train and of valid
    first_units = []  # of valid and of test
    lines_before = 0
    units_before = 0
    newline_number = text.units.index(newline)
    for block in text.blocks("all"):
        ends = np.flatnonzero(block == newline_number)
        for line in last_lines:
            if lines_before < line <= lines_before + len(ends):
                first_units.append(units_before + int(ends[line - lines_before - 1]) + 1)
        lines_before += len(ends)
        units_before += len(block)
    valid, test = first_units
    note = f"{title} is split 90/5/5 by lines: {last_lines[0]:,} / {held_out:,} / {held_out:,}"
    spans = {"train": (0, valid), "valid": (valid, test), "test": (test, units_before)}
    return replace(text, spans=spans, notes=(note,))


class Encoder:
    """Translates a numbered text into the ids of a vocabulary, while it counts and hashes them.

    The sha256 of a corpus covers its vocabulary's hash, then the name, size and int32 ids of each
    split in order. So `ids` must read each split once, in the order of `SPLITS`, before `describe`.

    Attributes:
        source: The text.
        text: Its units.
        vocab: The vocabulary.
        limited: Whether `max_vocab` left words out.
        sizes: The tokens of each split.
    """

    def __init__(self, source: Source, scratch: BinaryIO) -> None:
        """Reads the text, and makes the vocabulary from train unless the source gives one.

        Args:
            source: The text.
            scratch: An empty file, which must stay open.

        Raises:
            DataError: The text cannot be used, or the vocabulary or an option does not fit it.
            OSError: The scratch file cannot be written.
        """
        options = source.options
        text = number_units(source, scratch)
        self.source = source
        self.text = text
        totals = {split: np.zeros(len(text.units), np.int64) for split in SPLITS}
        for split, total in totals.items():
            for numbers in text.blocks(split):
                total += np.bincount(numbers, minlength=len(total))
        counts: Counter[str] = Counter()
        for unit, total in zip(text.units, totals["train"].tolist(), strict=True):
            # A newline that only valid or test has is in the vocabulary too.
            if total or unit == "\n":
                counts[unit] = total
        self.vocab = source.vocab or options.build(counts)
        kind = self.vocab.tokens
        self.limited = False
        if options.max_vocab is not None and not kind.names:
            self.limited = options.max_vocab < len(frequent(counts, options.min_count, kind))
        # The ids of all distinct units one after the other, how many each unit has, and where they
        # end.
        names_of_units = [kind.split(unit) for unit in text.units]
        self._ids = self.vocab.encode([name for names in names_of_units for name in names])
        self._lengths = np.array([len(names) for names in names_of_units], np.int64)
        self._ends = np.cumsum(self._lengths)
        self.sizes = {split: int(total @ self._lengths) for split, total in totals.items()}
        self._digest = hashlib.sha256(self.vocab.sha256.encode())
        self._unknown = dict.fromkeys(SPLITS, 0)

    def ids(self, split: str) -> Iterator[np.ndarray]:
        """Yields the ids of a split in pieces, int32."""
        self._digest.update(f" {split} {self.sizes[split]} ".encode())
        for numbers in self.text.blocks(split):
            lengths = self._lengths[numbers]
            # From a token's place in this piece to its place in `_ids`.
            shift = self._ends[numbers] - np.cumsum(lengths)
            ids = self._ids[np.arange(lengths.sum()) + np.repeat(shift, lengths)]
            self._unknown[split] += int(np.count_nonzero(ids == self.vocab.unknown_id))
            self._digest.update(ids.astype("<i4").tobytes())
            yield ids

    def describe(self) -> dict[str, Any]:
        """Returns the fields of `prepared.FIELDS` that describe the corpus.

        To the source's name, each option that changed the corpus is added behind a "+".
        """
        kind = self.vocab.kind
        name = self.source.name
        options = self.source.options
        notes = [*self.text.notes]
        if kind == "subwords" and not (options.pieces or options.tokenizer_file):
            size = f"{len(self.vocab):,} pieces"
            if len(self.vocab) < DEFAULT_PIECES:
                size += ", the most that this text allows"
            notes.append(f"subwords: {size} (--pieces sets their number)")
        changes = {
            kind: kind != "words" and (name, kind) != ("ptb-char", "characters"),
            "unwrap": options.lines == "unwrap",
            "stripped": options.lines == "stripped" and kind != "words" and name != "ptb-char",
            "lowercase": options.lowercase,
            f"max_vocab={options.max_vocab}": self.limited,
            f"min_count={options.min_count}": options.min_count != 1,
        }
        shares = {split: self._unknown[split] / max(1, size) for split, size in self.sizes.items()}
        sizes = " / ".join(f"{size:,}" for size in self.sizes.values())
        unknown = ""
        if self.vocab.unknown_id >= 0:
            percents = " / ".join(f"{share:.1%}" for share in shares.values())
            unknown = f", of which {percents} {UNK}"
        tokens = "tokens" if kind == "words" else kind
        return {
            "name": "+".join([name, *(option for option, changed in changes.items() if changed)]),
            "description": (
                f"{self.source.title}: {sizes} {tokens}{unknown}; {len(self.vocab):,} types"
            ),
            "corpus_sha256": self._digest.hexdigest(),
            "floor": self.source.floor(self.vocab),
            "notes": (*notes, *unlearned_warning(shares)),
        }
