"""The parts of a config that the step does not see: the counts of a run, and its text."""

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.fields import Section, choice, count, flag, number, shown, text

MOST_KEPT = 10_000  # checkpoints that a schedule may ask for
_NUMBER = re.compile("([0-9]{1,15})([kMG]?)", re.ASCII)
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class TrainConfig(Section):
    """Batches, windows, epochs, checkpoints and seeds of a run."""

    batch_size: int = count(60, "rows B that the token stream is cut into", "rows", low=1)
    small_batch: int = count(
        0,
        "rows of each gradient, with dropout masks of their own; gradients are averaged (0: batch_size)",
        "rows",
    )
    bptt_length: int = count(20, "steps T that a gradient flows back through", "tokens", low=1)
    length_deviation: float | None = number(
        None,
        "standard deviation of random window lengths (none: all are bptt_length)",
        "tokens",
        low=0,
        high=2**20,
    )
    short_probability: float = number(
        0.05,
        "with random lengths: probability that a window is drawn around half of bptt_length",
        low=0,
        high=1,
    )
    shortest_window: int = count(
        5, "with random lengths: no window is shorter, but an epoch's last", "tokens", low=1
    )
    longest_window: int = count(
        0,
        "with random lengths: no window is longer (0: bptt_length + 8 length_deviation)",
        "tokens",
    )
    length_seed: int = count(
        0,
        "seed of random lengths; apart from seed, so that members of a sweep read the same windows",
        high=2**32 - 1,
    )
    epochs: int = count(15, "passes over the training split", "epochs")
    seed: int = count(0, "seed of the initial parameters and of dropout", high=2**32 - 1)
    windows_per_call: int = count(
        16, "most windows that one jitted call trains", "windows", low=1, high=2**20
    )
    checkpoint_every: int = count(
        0, "also save after every N windows (0: only at the end of an epoch)", "windows"
    )
    keep_last: int = count(
        2, "newest checkpoints to keep, beside the best on validation", "checkpoints", low=1
    )
    keep_every: int = count(
        0, "also keep the checkpoint of every Nth epoch for good (0: none)", "epochs"
    )
    keep_checkpoints: str = text(
        "",
        "also keep checkpoints by words seen: words=FIRST:LAST:EVERY,..., as in words=1M:10M:1M (empty: none)",
    )
    patience: int = count(
        0, "end the run after N validations in a row without a new best (0: never)", "validations"
    )
    on_nonfinite: str = choice(
        "stop",
        "at a window whose cost or gradient is not finite: stop (exit code 3), or skip it",
        ("stop", "skip"),
    )

    @property
    def longest(self) -> int:
        """The steps that every window is padded to."""
        if self.length_deviation is None:
            return self.bptt_length
        return self.longest_window or self.bptt_length + math.ceil(8 * self.length_deviation)

    @property
    def rows_of_gradient(self) -> int:
        """The rows that one gradient is computed of."""
        return self.small_batch or self.batch_size

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        if self.small_batch and self.batch_size % self.small_batch:
            raise JaxlmError(
                f"small_batch must divide batch_size {self.batch_size}; it is {self.small_batch}"
            )
        word_milestones(self.keep_checkpoints)
        lengths = () if self.length_deviation is None else ("bptt_length", "shortest_window")
        name = next((name for name in lengths if getattr(self, name) > self.longest), None)
        if name:
            what = f"{name} {getattr(self, name)} is more than the {self.longest} tokens of longest_window"
            raise JaxlmError(f"{what}: raise longest_window, or lower {name}")


def word_milestones(schedule: str) -> tuple[int, ...]:
    """The numbers of words of `keep_checkpoints`, ascending. Raises JaxlmError for a malformed schedule.

    >>> word_milestones("words=1M:3M:1M,5k")
    (5000, 1000000, 2000000, 3000000)
    """
    found: list[int] = []
    for part in schedule.removeprefix("words=").split(",") if schedule else ():
        numbers = [_NUMBER.fullmatch(number) for number in part.split(":")]
        first, *rest = [int(one[1]) * _FACTORS[one[2]] if one else 0 for one in numbers]
        last, every = rest if len(rest) == 2 else (first, max(first, 1))
        if not (
            schedule.startswith("words=")
            and len(rest) in (0, 2)
            and 0 < first <= last
            and every > 0
        ):
            example = "words=FIRST:LAST:EVERY,..., as in words=1M:10M:1M,10M:100M:10M"
            raise JaxlmError(f"keep_checkpoints must be {example}; it is {shown(schedule)}")
        if (last - first) // every + len(found) >= MOST_KEPT:
            raise JaxlmError(
                f"keep_checkpoints {shown(schedule)} asks for more than {MOST_KEPT:,} checkpoints"
            )
        found += range(first, last + 1, every)
    return tuple(sorted({*found}))


TOKEN_FIELDS = frozenset(
    {"tokens", "normalize", "pieces", "piece_model", "tokenizer_file"}
)  # what a token is


@dataclass(frozen=True)
class DataConfig(Section):
    """The text, and how it becomes tokens."""

    corpus: str = text(
        "auto",
        "auto, ptb, ptb-char, embedded, embedded-tiny, shakespeare, or a path: a folder of "
        "train/valid/test text, one file or a folder or pattern of files (split 90/5/5), enwik8, text8, or a folder that `jaxlm prepare` made",
    )
    tokens: str = choice("words", "what a token is", ("words", "characters", "bytes", "subwords"))
    min_count: int = count(1, "rarer words or characters become <unk>", "occurrences", low=1)
    lowercase: bool = flag(False, "lower-case the text")
    lines: str = choice(
        "eos",
        "sentences end at a newline (eos; stripped: without the blanks beside it) or only at a blank line (unwrap)",
        ("eos", "stripped", "unwrap"),
    )
    normalize: str = choice(
        "nfc", "characters: compose accents as Unicode's NFC does, or none", ("nfc", "none")
    )
    pieces: int | None = count(
        None,
        "subwords: how many the model has, bytes included (default: 8000, or what the text allows)",
        low=1,
        high=2**20,
    )
    piece_model: str = choice(
        "bpe", "subwords: how SentencePiece finds them in train", ("bpe", "unigram")
    )
    tokenizer_file: str = text(
        "", "subwords: a SentencePiece .model or a tokenizer.json, in place of a new model"
    )

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        if self.tokenizer_file and self.tokens != "subwords":
            what = f"tokenizer_file {self.tokenizer_file} is for tokens subwords"
            raise JaxlmError(f"{what}, and tokens is {self.tokens}: leave one out")

    @property
    def options(self) -> dict[str, Any]:
        """All fields but the corpus, as `load_corpus` takes them."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(DataConfig)
            if item.name != "corpus"
        }
