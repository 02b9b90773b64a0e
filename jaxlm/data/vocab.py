"""Words and their ids: the most frequent word has the id 0; words of one frequency are in alphabetical order."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np

from jaxlm.data.windows import batch
from jaxlm.errors import DataError

EOS = "<eos>"  # the token of a newline
BLOCK = 1 << 22  # ids read at once
UNK = "<unk>"  # the token of every word outside the vocabulary


@dataclass(frozen=True, repr=False)
class Vocab:
    """An ordered set of words; a word's id is its place.

    Attributes:
        words: The word of each id.

    Raises:
        DataError: There is no word, or one is repeated, empty, contains white space or is not Unicode text: such a
            word could not be read back from a file.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words:
            raise DataError("a vocabulary needs at least one word, and this one is empty")
        for place, word in enumerate(self.words):
            if not isinstance(word, str) or word.split() != [word] or not _is_unicode(word):
                shown = _shown(word) if isinstance(word, str) else f"a {type(word).__name__}"
                raise DataError(f"word {place} of a vocabulary must be text without white space, not {shown}")
        if len(self.ids) < len(self.words):
            word = next(word for place, word in enumerate(self.words) if self.ids[word] != place)
            raise DataError(f"the vocabulary holds the word {_shown(word)} twice, so its ids are ambiguous; keep one")

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        first = ", ".join(map(_shown, self.words[:3]))
        return f"Vocab({first}, ...: {len(self):,} words)" if len(self) > 3 else f"Vocab({first})"

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: place for place, word in enumerate(self.words)}

    @cached_property
    def sha256(self) -> str:
        """The hash of the words in their order; no word contains a newline, so joining by it is unambiguous."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    @property
    def unk(self) -> int:
        """The id of `<unk>`. Raises DataError if the vocabulary has none."""
        return int(self.encode([UNK])[0])

    @property
    def eos(self) -> int:
        """The id of `<eos>`; if the text had no newline, that of `<unk>`. Raises DataError if there is neither."""
        return int(self.encode([EOS])[0])

    def encode(self, tokens: Sequence[str]) -> np.ndarray:
        """The ids of tokens.

        Args:
            tokens: N words; one outside the vocabulary becomes `<unk>`.

        Returns:
            int32 `[N]`.

        Raises:
            DataError: A word is outside a vocabulary that has no `<unk>`.

        >>> Vocab(("the", "<unk>", "cat")).encode("the cat sat".split()).tolist()
        [0, 2, 1]
        """
        unknown = self.ids.get(UNK, -1)
        ids = np.fromiter(map(self.ids.get, tokens, repeat(unknown)), np.int32, len(tokens))
        if unknown < 0 and (ids < 0).any():
            word = tokens[int(np.argmin(ids))]
            raise DataError(
                f"the word {_shown(word)} is not in the vocabulary, which has no {UNK} for it; use another word"
            )
        return ids

    def unknown_share(self, ids: np.ndarray) -> float:
        """The share of ids `[N]` that are `<unk>`, from 0 to 1; 0 without ids, or without `<unk>` in the vocabulary.

        >>> vocab = Vocab(("the", "<unk>", "cat"))
        >>> vocab.unknown_share(vocab.encode("the cat sat here".split()))
        0.5
        """
        unknown = self.ids.get(UNK, -1)
        blocks = (batch(ids, 1, start=start, stop=start + BLOCK) for start in range(0, len(ids), BLOCK))
        return sum(int(np.count_nonzero(block == unknown)) for block in blocks) / max(1, len(ids))

    def decode(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """The words of ids.

        Args:
            ids: Integers `[N]`.

        Returns:
            N words.

        Raises:
            DataError: An id is outside [0, V).
        """
        places = np.fromiter(ids, np.int64)
        wrong = places[(places < 0) | (places >= len(self))]
        if wrong.size:
            raise DataError(f"id {wrong[0]} is outside the vocabulary, whose ids are 0 to {len(self) - 1}")
        return [self.words[place] for place in places.tolist()]

    @classmethod
    def build(
        cls, tokens: Iterable[str] | Mapping[str, int], *, max_size: int | None = None, min_count: int = 1
    ) -> "Vocab":
        """The vocabulary of a training text, sorted by (-count, word).

        Dropped words count as `<unk>`. `<unk>` and `<eos>` are never dropped; `<unk>` is added if the text has none.

        Args:
            tokens: The tokens of the text, or the count of each of its words.
            max_size: The most words of the vocabulary; the rarest beyond them are dropped.
            min_count: Words that occur less often are dropped.

        Returns:
            The vocabulary.

        Raises:
            DataError: `max_size` leaves no room for a word beside `<unk>` and `<eos>`, or `min_count` is below 1.
        """
        counts = Counter(tokens)
        counts.setdefault(UNK, 0)
        special = [word for word in (UNK, EOS) if word in counts]
        if min_count < 1:
            raise DataError(f"the minimum count must be at least 1, not {min_count}")
        if max_size is not None and max_size <= len(special):
            raise DataError(f"the vocabulary size must be over {len(special)} to hold a word, not {max_size}")

        def rank(word: str) -> tuple[int, str]:
            return -counts[word], word

        usual = sorted((w for w in counts if counts[w] >= min_count and w not in special), key=rank)
        kept = special + usual[: None if max_size is None else max_size - len(special)]
        counts[UNK] += counts.total() - sum(counts[word] for word in kept)
        return cls(tuple(sorted(kept, key=rank)))

    def to_json(self) -> str:
        """The words as a JSON list, one on each line; `from_json` reads it back."""
        return json.dumps(self.words, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocab":
        """Reads the vocabulary that `to_json` wrote.

        Raises:
            DataError: The text is anything else.
        """
        try:
            words = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the vocabulary is not valid JSON ({error}); restore it from a copy") from None
        if not isinstance(words, list):
            raise DataError(
                f"the vocabulary must be a JSON list of words, not a {type(words).__name__}; restore it from a copy"
            )
        return cls(tuple(words))


def _is_unicode(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)


def _shown(word: str) -> str:
    """A word for an error message: quoted, without control characters, and not too long."""
    return repr(word[:80])
