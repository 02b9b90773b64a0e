"""Tokens and their ids.

The most frequent word has the id 0; words of one frequency are in alphabetical order.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.fields import shown
from jaxlm.base.files import explained
from jaxlm.base.units import TextSize
from jaxlm.data.subwords import Subwords
from jaxlm.data.tokens import EOS, UNK, WORDS, Bytes, Characters, Words
from jaxlm.data.windows import batch, num_windows

BLOCK = 1 << 22  # ids read at once
MAX_VOCAB_BYTES = 256 << 20  # of a vocabulary, in whichever file it is
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which no UTF-8 has


@dataclass(frozen=True, repr=False)
class Vocab:
    """An ordered set of V tokens; a token's id is its place.

    Attributes:
        words: The name of each id in tables: a word, a character, a byte such as `a` or `<0x0A>`,
            a piece.
        tokens: The kind of token, which turns text into names of tokens, and names into text.

    Raises:
        DataError: There is no word, or a word is repeated, empty, contains white space or is not
            Unicode text, and could not be read back from a file. (The names of other tokens may
            contain white space.)
    """

    words: tuple[str, ...]
    tokens: Words = WORDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        if not self.words:
            raise DataError("a vocabulary needs at least one word, and this one is empty")
        for place, word in enumerate(self.words):
            if not self._can_be_stored(word):
                actual = shown(word) if isinstance(word, str) else f"a {type(word).__name__}"
                raise DataError(
                    f"word {place} of a vocabulary must be text without white space, not {actual}"
                )
        if len(self.ids) < len(self.words):
            counts = Counter(self.words)
            word = max(counts, key=counts.__getitem__)
            raise DataError(
                f"the vocabulary holds the word {shown(word)} twice, so its ids are ambiguous; "
                "keep one"
            )

    def _can_be_stored(self, word: object) -> bool:
        """Whether a word can be written to a file of this kind of tokens and read back."""
        if not isinstance(word, str) or _SURROGATE.search(word):
            return False
        return self.kind != "words" or word.split() == [word]

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        first = ", ".join(map(shown, self.words[:3]))
        if len(self) > 3:
            return f"Vocab({first}, ...: {len(self):,} {self.kind})"
        return f"Vocab({first})"

    @property
    def kind(self) -> str:
        """The kind of token: words, characters, bytes or subwords."""
        return self.tokens.kind

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: word_id for word_id, word in enumerate(self.words)}

    @cached_property
    def sha256(self) -> str:
        """The hash of the words, a line each, or of other tokens as `to_json` has them."""
        text = "\n".join(self.words) if self.kind == "words" else self.to_json()
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def unknown_id(self) -> int:
        """The id of unknown tokens; -1 if no token can be unknown."""
        return self.ids.get(self.tokens.unknown, -1)

    @property
    def eos(self) -> int:
        """The id of the token that ends a sentence: a newline (among words `<eos>`).

        If the text had no newline: among words the id of `<unk>` (DataError without `<unk>`), else
        of a space, or 0.
        """
        names = [name for name in self.tokens.ends if name in self.ids]
        if names or self.kind == "words":
            return int(self.encode(names[:1] or [EOS])[0])
        return 0

    @property
    def newline_id(self) -> int:
        """The id of a newline, the first of `tokens.ends`; -1 if the training text had none."""
        return self.ids.get(self.tokens.ends[0], -1)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 that each id stands for; a word has the space before it."""
        return tuple(map(self.tokens.data, self.words))

    def tokenize(self, text: str) -> list[str]:
        """Cuts a text into the names of its tokens, as if it stood in a file.

        Raises:
            DataError: The text is not Unicode.
        """
        try:
            return [name for unit in self.tokens.units(text) for name in self.tokens.split(unit)]
        except UnicodeError as error:
            raise DataError(f"the text is not Unicode ({error}): give text in UTF-8") from None

    def encode_text(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 `[N]`.

        Raises:
            DataError: The text is not Unicode, or has an unknown token (`encode`).
        """
        return self.encode(self.tokenize(text))

    def decode_text(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns the text of ids.

        It is exact, but for white space among words; what is not UTF-8 becomes U+FFFD.
        """
        return "".join(self.tokens.pieces(self.decode(ids)))

    def text_size(
        self,
        ids: np.ndarray,
        rows: int = 1,
        window: int = 1,
        tokens: Sequence[str] = (),
    ) -> TextSize:
        """Measures the text that a model predicts.

        Words have single spaces between them, and `<eos>` is a newline. Counts are exact and
        additive: those of `[0, n]` and of `[n, N - 1]` together are those of all.

        >>> Vocab(("the", "cat", "<eos>")).text_size(np.array([0, 1, 2, 0, 1]))
        TextSize(tokens=4, bytes=12, characters=12, words=4)

        Args:
            ids: The ids of the text `[N]`.
            rows: The rows into which the ids are cut. The first token of a row is not predicted.
            window: The steps of a window; a row is read in whole windows.
            tokens: The tokens of a text that is read as one row: unknown ones count as they stand
                there, instead of as `<unk>`.
        """
        predicted = num_windows(len(ids) // rows, window) * window
        total = np.zeros(4, np.int64)
        step = max(1, BLOCK // rows)
        for start in range(0, predicted, step):
            stop = min(start + step, predicted) + 1
            columns = batch(ids, rows, start=start, stop=stop).T
            names = [tokens[start:stop]] if tokens else map(self.decode, columns.tolist())
            for row in names:
                total += self._size(row) - self._size(row[:1])
        return TextSize(*map(int, total))

    def _size(self, names: Sequence[str]) -> np.ndarray:
        """The text of some tokens in each unit of `TextSize`, as an array that can be added up."""
        if self.kind == "words":
            data = "".join(self.tokens.pieces(names)).encode()
        else:
            known = self.token_bytes
            data = b"".join(
                known[self.ids[name]] if name in self.ids else self.tokens.data(name)
                for name in names
            )
        text = data.decode("utf-8", "replace")
        characters = np.count_nonzero(np.frombuffer(data, np.uint8) & 0xC0 != 0x80)
        return np.array([len(names), len(data), characters, len(text.split()) + text.count("\n")])

    def encode(self, tokens: Sequence[str]) -> np.ndarray:
        """Returns the ids of names of tokens, int32 `[N]`; an unknown one is `<unk>`.

        >>> Vocab(("the", "<unk>", "cat")).encode("the cat sat".split()).tolist()
        [0, 2, 1]

        Raises:
            DataError: A token is unknown and the vocabulary has no `<unk>`, or a text is given.
        """
        if isinstance(tokens, str):
            raise DataError(
                f"encode takes a list of tokens; it is {shown(tokens)}: a text goes to encode_text"
            )
        unknown = self.unknown_id
        ids = np.fromiter(map(self.ids.get, tokens, repeat(unknown)), np.int32, len(tokens))
        if unknown < 0 and (ids < 0).any():
            word = tokens[int(np.argmin(ids))]
            remedy = "learn one with a min_count of 2 or more, or use another text"
            if self.kind == "words":
                remedy = "use another word"
            raise DataError(
                f"the {self.kind[:-1]} {shown(word)} is not in the vocabulary, which has no {UNK} "
                f"for it; {remedy}"
            )
        return ids

    def unknown_share(self, ids: np.ndarray) -> float:
        """Returns the share of ids `[N]` that are `<unk>`, from 0 to 1; without ids it is 0."""
        unknown = 0
        for start in range(0, len(ids), BLOCK):
            block = batch(ids, 1, start=start, stop=start + BLOCK)
            unknown += int(np.count_nonzero(block == self.unknown_id))
        return unknown / max(1, len(ids))

    def decode(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """Returns the N words of ids, integers `[N]`.

        Raises:
            DataError: An id is outside [0, V).
        """
        checked_ids = np.fromiter(ids, np.int64)
        check_ids(checked_ids, len(self), "the list")
        return [self.words[word_id] for word_id in checked_ids.tolist()]

    @classmethod
    def build(
        cls,
        tokens: Iterable[str] | Mapping[str, int],
        *,
        max_size: int | None = None,
        min_count: int = 1,
        kind: Words = WORDS,
    ) -> "Vocab":
        """Makes the vocabulary of a training text, sorted by (-count, word).

        Dropped words count as `<unk>`. `<unk>` and the newline are never dropped. Among words
        `<unk>` is added if the text has none; among characters it is there only if one was
        dropped, so that training sees it.

        Args:
            tokens: The tokens of the text, or the count of each of its words.
            max_size: The most words of the vocabulary; the rarest beyond them are dropped.
            min_count: Words that occur less often are dropped.
            kind: `Words()` or `Characters()`.

        Raises:
            DataError: `max_size` leaves no room for a word beside `<unk>` and `<eos>`.
        """
        counts = Counter(tokens)

        def rank(word):
            return -counts[word], word

        words = sorted(frequent(counts, min_count, kind), key=rank)
        if max_size is not None and len(words) > max_size:
            special = {UNK} | ({kind.newline} & counts.keys())
            if max_size <= len(special):
                raise DataError(
                    f"the vocabulary size must be over {len(special)} to hold a word, not "
                    f"{max_size}"
                )
            usual = [word for word in words if word not in special]
            words = [*special, *usual[: max_size - len(special)]]
        counts[UNK] += counts.total() - sum(counts[word] for word in words)
        return cls(tuple(sorted(words, key=rank)), kind)

    def to_bytes(self) -> bytes:
        """The vocabulary as a file has it: `to_json`, in ASCII.

        Raises:
            DataError: It takes more bytes than are read back.
        """
        data = self.to_json().encode()
        if len(data) > MAX_VOCAB_BYTES:
            raise DataError(
                f"a vocabulary of {len(self):,} {self.kind} takes {len(data):,} bytes in a file, "
                f"and one of at most {MAX_VOCAB_BYTES:,} is read: take a smaller vocab_size, or a "
                "higher min_count"
            )
        return data

    def to_json(self) -> str:
        """Returns words as a JSON list, one on each line; other tokens as an object."""
        if self.kind == "words":
            return json.dumps(self.words, indent=0) + "\n"
        tree = {"tokens": self.kind, **self.tokens.fields()}
        if not self.tokens.names:
            tree["words"] = self.words
        return json.dumps(tree, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocab":
        """Reads the vocabulary that `to_json` wrote.

        Raises:
            DataError: The text is anything else.
        """
        with explained(DataError, "the vocabulary is not valid JSON", "restore it from a copy"):
            tree = json.loads(text)
            words = tree
            kind = WORDS
            if isinstance(tree, dict) and "tokens" in tree:
                words = tree.pop("words", [])
                kind = _kind_of_tokens(tree.pop("tokens"), tree)
                words = list(kind.names) or words
        if not isinstance(words, list):
            raise DataError("this JSON is no vocabulary that jaxlm wrote; restore it from a copy")
        return cls(tuple(words), kind)


def _kind_of_tokens(name: str, fields: Mapping[str, Any]) -> Words:
    """The kind of tokens with a name, from what its `fields` returned.

    Raises ValueError where they are anything else, DataError for a model that cannot be read.
    """
    match name, fields:
        case "characters", {"normalize": "nfc" | "none" as normalize, **rest} if not rest:
            return Characters(normalize)
        case "bytes", {**rest} if not rest:
            return Bytes()
        case "subwords", {"model": str(model), **rest} if not rest:
            return Subwords.read(base64.b64decode(model, validate=True), "the vocabulary")
    raise ValueError(f"{name!r:.40} with {', '.join(fields)} is no kind of tokens")


def check_ids(
    ids: np.ndarray,
    words: int,
    where: str,
) -> None:
    """Checks that ids are those of a vocabulary.

    Args:
        ids: Integers of any shape.
        words: How many words the vocabulary has.
        where: What holds the ids, to begin an error with.

    Raises:
        DataError: An id lies outside [0, words).
    """
    if not ids.size:
        return
    low = int(ids.min())
    high = int(ids.max())
    if low < 0 or high >= words:
        raise DataError(
            f"{where} holds the id {low if low < 0 else high}, outside the vocabulary, whose ids "
            f"are 0 to {words - 1}: encode the text again with this vocabulary"
        )


def frequent(
    counts: Mapping[str, int],
    min_count: int,
    kind: Words,
) -> list[str]:
    """Selects the words that occur often enough for a vocabulary, in any order.

    The newline is always one of them, and among words so is `<unk>`, which stands for the others.

    Args:
        counts: How often each word occurs.
        min_count: Words that occur less often are left out.
        kind: `Words()` or `Characters()`.
    """
    words = [
        word
        for word, count in counts.items()
        if (count >= min_count or word == kind.newline) and word != UNK
    ]
    if kind.kind == "words" or len(words) < len(counts):
        return [*words, UNK]
    return words
