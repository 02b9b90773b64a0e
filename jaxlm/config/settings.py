"""The parts of a config that the step does not see: the counts of a run, and its text."""

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import Section, choice, count, flag, number, shown, text

MOST_KEPT = 10_000  # checkpoints that a schedule may ask for
_NUMBER = re.compile("([0-9]{1,15})([kMG]?)", re.ASCII)
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class TrainConfig(Section):
    """Batches, windows, epochs, checkpoints and seeds of a run."""

    batch_size: int = count(60, "rows B that the token stream is cut into", "rows", low=1)
    small_batch: int = count(
        0,
        "rows of each gradient, with dropout masks of their own; gradients are averaged (0: "
        "batch_size)",
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
    roll_rows: bool = flag(
        False,
        "each epoch begins each row at a token of its own, drawn by seed, and ends with the tokens "
        "before it: partial shuffle (arXiv:1903.04167)",
    )
    baseline_order: int = count(
        5,
        "order of the n-gram model whose test stands beside the run's, where the text has at most "
        "4 million tokens (0: none)",
        high=12,
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
        "also keep checkpoints by words seen: words=FIRST:LAST:EVERY,..., as in words=1M:10M:1M "
        "(empty: none)",
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
        if self.length_deviation is None:
            return
        for name in ("bptt_length", "shortest_window"):
            if getattr(self, name) > self.longest:
                raise JaxlmError(
                    f"{name} {getattr(self, name)} is more than the {self.longest} tokens of "
                    f"longest_window: raise longest_window, or lower {name}"
                )


def word_milestones(schedule: str) -> tuple[int, ...]:
    """The numbers of words of `keep_checkpoints`, ascending.

    Raises:
        JaxlmError: The schedule is malformed, or asks for too many checkpoints.

    >>> word_milestones("words=1M:3M:1M,5k")
    (5000, 1000000, 2000000, 3000000)
    """
    if not schedule:
        return ()
    example = "words=FIRST:LAST:EVERY,..., as in words=1M:10M:1M,10M:100M:10M"
    malformed = JaxlmError(f"keep_checkpoints must be {example}; it is {shown(schedule)}")
    if not schedule.startswith("words="):
        raise malformed
    milestones: list[int] = []
    for span in schedule.removeprefix("words=").split(","):
        numbers = [_number_of_words(text) for text in span.split(":")]
        if len(numbers) == 1:
            numbers = [numbers[0], numbers[0], max(numbers[0], 1)]
        if len(numbers) != 3:
            raise malformed
        first, last, every = numbers
        if not (0 < first <= last and every > 0):
            raise malformed
        if (last - first) // every + len(milestones) >= MOST_KEPT:
            raise JaxlmError(
                f"keep_checkpoints {shown(schedule)} asks for more than {MOST_KEPT:,} checkpoints"
            )
        milestones += range(first, last + 1, every)
    return tuple(sorted({*milestones}))


def _number_of_words(text: str) -> int:
    """The whole number of a text such as 10M; 0 where it is none."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return 0
    return int(match[1]) * _FACTORS[match[2]]


# The fields that tell what a token is.
TOKEN_FIELDS = {"tokens", "normalize", "pieces", "piece_model", "tokenizer_file"}


@dataclass(frozen=True)
class DataConfig(Section):
    """The text, and how it becomes tokens."""

    corpus: str = text(
        "auto",
        "auto, ptb, ptb-char, embedded, embedded-tiny, shakespeare, or a path: a folder of "
        "train/valid/test text, one file or a folder or pattern of files (split 90/5/5), enwik8, "
        "text8, or a folder that `jaxlm prepare` made",
    )
    tokens: str = choice("words", "what a token is", ("words", "characters", "bytes", "subwords"))
    min_count: int = count(1, "rarer words or characters become <unk>", "occurrences", low=1)
    lowercase: bool = flag(False, "lower-case the text")
    lines: str = choice(
        "eos",
        "sentences end at a newline (eos; stripped: without the blanks beside it) or only at a "
        "blank line (unwrap)",
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
            raise JaxlmError(
                f"tokenizer_file {self.tokenizer_file} is for tokens subwords, and tokens is "
                f"{self.tokens}: leave one out"
            )

    @property
    def options(self) -> dict[str, Any]:
        """All fields but the corpus, as `load_corpus` takes them."""
        names = [item.name for item in fields(DataConfig) if item.name != "corpus"]
        return {name: getattr(self, name) for name in names}
