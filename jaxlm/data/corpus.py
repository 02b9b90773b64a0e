"""The corpus: a vocabulary and the ids of three splits, with a name, a description and a hash."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.units import MOST_UNKNOWN
from jaxlm.data.text import SPLITS
from jaxlm.data.vocab import UNK, Vocab, check_ids
from jaxlm.data.windows import batch

BLOCK = 1 << 20  # tokens of train that are counted at once


@dataclass(frozen=True, eq=False)
class Corpus:
    """A vocabulary of V words and the ids of three splits.

    Attributes:
        name: Stands beside every result. The kind of tokens, and options that change the text or
            limit the vocabulary, are part of it.
        description: The corpus's size in one line.
        vocab: The vocabulary, from train alone.
        train: Ids `[N]` in [0, V), of any integer type; `load_corpus` maps them from a file.
        valid: As `train`.
        test: As `train`.
        sha256: The hash of vocabulary and ids (see `encoding.Encoder`).
        floor: The least summed nats of each split, its first token apart; known of the generated
            corpus alone.
        notes: Lines for the user.
        spec: The argument with which `load_corpus` finds this text again, from any working
            directory.
        options: The fields of `DataConfig` with which `load_corpus` read it.

    Raises:
        DataError: A split is not a one-dimensional array of integers, or an id lies outside [0, V);
            of memory-mapped ids only `load_prepared` checks this.
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

    def __post_init__(self) -> None:
        for split in SPLITS:
            ids = getattr(self, split)
            actual = f"a {type(ids).__name__}"
            if isinstance(ids, np.ndarray):
                actual = f"{ids.dtype} {list(ids.shape)}"
            if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise DataError(
                    f"the ids of {split} must be a one-dimensional array of integers, not {actual}"
                )
            if not isinstance(ids, np.memmap):
                check_ids(ids, len(self.vocab), f"the {split} split of {self.name}")

    @property
    def identity(self) -> dict[str, str]:
        """The name and the hashes by which a run knows its corpus."""
        return {"name": self.name, "sha256": self.sha256, "vocab_sha256": self.vocab.sha256}

    def unknown_shares(self, *splits: str) -> dict[str, float]:
        """Returns the share of `<unk>` among the tokens of each split (default: all)."""
        return {split: self.vocab.unknown_share(getattr(self, split)) for split in splits or SPLITS}

    def train_blocks(self) -> Iterator[np.ndarray]:
        """Yields the ids of train in pieces, int32 [at most `BLOCK`]."""
        for start in range(0, len(self.train), BLOCK):
            yield batch(self.train, 1, start=start, stop=start + BLOCK)[:, 0]

    def train_counts(self) -> np.ndarray:
        """Returns how often each id is in train, int [V]."""
        counts = np.zeros(len(self.vocab), int)
        for block in self.train_blocks():
            counts += np.bincount(block, minlength=len(counts))
        return counts


def unknown_text(share: float) -> str:
    """Formats a share of unknown tokens as it stands beside a perplexity.

    >>> unknown_text(0.0582), unknown_text(0.0001), unknown_text(0)
    ('5.8% <unk>', '<0.1% <unk>', '0% <unk>')
    """
    percent = f"{100 * share:.2g}"
    if share >= 0.1:
        percent = f"{100 * share:.3g}"
    elif 0 < share < 0.0005:
        percent = "<0.1"
    return f"{percent}% {UNK}"


def unknown_warning(share: float, text: str) -> str:
    """Warns where too much of a text is unknown: its perplexity compares with no other.

    Args:
        share: The share of unknown tokens, from 0 to 1.
        text: What the text is called.

    Returns:
        A sentence; "" up to `MOST_UNKNOWN`.
    """
    if share <= MOST_UNKNOWN:
        return ""
    return (
        f"warning: {100 * share:.1f}% of {text} are tokens that the model does not know, read as "
        f"{UNK}: the result compares with that of no other vocabulary"
    )


def unlearned_warning(shares: Mapping[str, float]) -> list[str]:
    """Warns if valid has a far larger share of unknown tokens than train, or over 10%; else []."""
    train = shares["train"]
    valid = shares["valid"]
    if valid > 2 * train:
        return [
            f"{valid:.1%} of the tokens of valid are {UNK}, against {train:.1%} of those of train: "
            f"the model hardly learns {UNK}. Raise min_count (2 or more), or take other tokens, "
            "such as subwords or bytes"
        ]
    if valid > 2 * MOST_UNKNOWN:
        return [unknown_warning(valid, "valid")]
    return []
